/* Clients of the request loop that come, ask and go, all at once: every reply is whole and says
 * what it has to. Of most use under ThreadSanitizer (-DCMAKE_C_FLAGS=-fsanitize=thread). */
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "nbd_serve.h"
#include "nbd_requests.h"
#include "nbd_wire.h"
#include "rig.h"

enum {
    SEGMENT = 4 << 20,
    VOLUME = 1 << 20,
    SLOT = VOLUME / 8, /* each client's own */
    CLIENTS = 8,
    WORKERS = 3,
    READERS = 2,
    PER_CLIENT = 200,
    LENGTH = 512,
    REPLY = 16,
    UNKNOWN = 77, /* a command that goes by mail */
    PIECE = REPLY + LENGTH,
};

struct peer {
    pthread_t thread;
    int number;
    int fd;
};

static void send_all(int fd, const uint8_t *data, size_t length)
{
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        CHECK(sent > 0);
        data += sent;
        length -= (size_t)sent;
    }
}

/* Its own requests in rounds: a write, a flush, a request for the engine, a read of what it wrote.
 * The first three may be answered in any order. */
static void *run_peer(void *argument)
{
    struct peer *peer = argument;
    uint64_t state = (uint64_t)peer->number;
    uint64_t base = (uint64_t)peer->number * SLOT;
    for (uint64_t round = 1; round <= PER_CLIENT; round++) {
        uint8_t out[3 * BD_NBD_REQUEST + LENGTH];
        uint8_t reply[PIECE];
        uint64_t offset = base + random_below(&state, SLOT - LENGTH);
        put_request(out, BD_NBD_CMD_WRITE, 4 * round, offset, LENGTH);
        memset(out + BD_NBD_REQUEST, (int)(round & 0xff), LENGTH);
        put_request(out + BD_NBD_REQUEST + LENGTH, BD_NBD_CMD_FLUSH, 4 * round + 1, 0, 0);
        put_request(out + 2 * BD_NBD_REQUEST + LENGTH, UNKNOWN, 4 * round + 2, 0, 0);
        send_all(peer->fd, out, sizeof out);
        unsigned seen = 0;
        for (int i = 0; i < 3; i++) {
            CHECK_EQ(recv(peer->fd, reply, REPLY, MSG_WAITALL), REPLY);
            CHECK_EQ(bd_get_be32(reply), 0x67446698);
            uint64_t which = bd_get_be64(reply + 8) - 4 * round;
            CHECK(which < 3);
            CHECK_EQ(bd_get_be32(reply + 4), which == 2 ? 22 : 0);
            seen |= 1U << which;
        }
        CHECK_EQ(seen, 7);
        put_request(out, BD_NBD_CMD_READ, 4 * round + 3, offset, LENGTH);
        send_all(peer->fd, out, BD_NBD_REQUEST);
        CHECK_EQ(recv(peer->fd, reply, PIECE, MSG_WAITALL), PIECE);
        CHECK(bd_get_be64(reply + 8) == 4 * round + 3);
        for (int i = REPLY; i < PIECE; i++)
            CHECK_EQ(reply[i], round & 0xff);
    }
    uint8_t out[BD_NBD_REQUEST];
    put_request(out, BD_NBD_CMD_DISC, 0, 0, 0);
    send_all(peer->fd, out, sizeof out);
    return NULL;
}

/* What the engine does: refuse what is not known. True when the client has stopped. */
static bool take_news(struct bd_client *client)
{
    pthread_mutex_lock(&client->lock);
    for (size_t at = 0; at + BD_NBD_REQUEST <= client->mail_length; at += BD_NBD_REQUEST) {
        uint8_t reply[REPLY];
        CHECK_EQ(bd_get_be16(client->mail + at + 6), UNKNOWN);
        bd_put_be32(reply, 0x67446698);
        bd_put_be32(reply + 4, 22);
        memcpy(reply + 8, client->mail + at + 8, 8);
        struct iovec piece = {reply, sizeof reply};
        bd_client_send(client, &piece, 1, NULL);
    }
    client->mail_length = 0;
    bd_loop_relieve(client);
    bool stopped = client->stopped;
    pthread_mutex_unlock(&client->lock);
    return stopped;
}

/* `cold`: every read has to wait for the disk, and is a job. */
static void test_all_at_once(bool cold)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, RIG_SEGMENTS, VOLUME);
    for (int slot = 0; slot < RIG_SEGMENTS; slot++)
        rig.files[slot].would_wait = cold;
    rig_holes(&rig, VOLUME / RIG_CHUNK);
    struct bd_loop *loop = bd_loop_new(WORKERS, READERS, 1);
    CHECK(loop != NULL);
    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    struct peer peers[CLIENTS];
    struct bd_client *clients[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        int pair[2];
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        clients[i] = bd_nbd_client_new(rig.volume, pair[0], &terms, NULL, 0);
        CHECK(clients[i] != NULL);
        CHECK_EQ(bd_loop_add(loop, clients[i]), 0);
        peers[i] = (struct peer){.number = i, .fd = pair[1]};
        CHECK_EQ(pthread_create(&peers[i].thread, NULL, run_peer, &peers[i]), 0);
    }
    int left = CLIENTS;
    while (left > 0) {
        struct pollfd news = {.fd = bd_loop_fd(loop), .events = POLLIN};
        CHECK_EQ(poll(&news, 1, 60000), 1);
        struct bd_client *told;
        while ((told = bd_loop_news(loop)) != NULL) {
            left -= take_news(told);
            bd_client_release(told);
        }
    }
    for (int i = 0; i < CLIENTS; i++) {
        CHECK_EQ(pthread_join(peers[i].thread, NULL), 0);
        CHECK_EQ(clients[i]->counters.requests[BD_OP_READ], PER_CLIENT);
        CHECK_EQ(clients[i]->counters.requests[BD_OP_WRITE], PER_CLIENT);
        CHECK_EQ(clients[i]->counters.requests[BD_OP_FLUSH], PER_CLIENT);
        bd_client_release(clients[i]);
        close(peers[i].fd);
    }
    for (unsigned i = 0; i < loop->worker_count; i++) { /* whose last clients have left */
        CHECK(loop->workers[i].spare == NULL);
        CHECK(loop->workers[i].arena == NULL);
    }
    bd_loop_end(loop);
    bd_loop_free(loop);
    rig_destroy(&rig);
}

int main(void)
{
    test_all_at_once(false);
    test_all_at_once(true);
    return 0;
}
