/* NBD clients of the loop whose volume is limited: what waits, for how long, and what ends that. */
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "nbd_serve.h"
#include "nbd_wire.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 20, BLOCK = 512, REPLY = 16, SECOND = 1000000000 };
enum { CHUNKS = VOLUME / RIG_CHUNK };

struct world {
    struct rig rig;
    struct bd_limit limit;
    struct bd_loop *loop;
    struct bd_client *client;
    int peer;
};

/* `ops` or `bytes` a second, without a burst; 0: not limited. */
static void set(struct world *world, uint64_t ops, uint64_t bytes)
{
    uint64_t rates[BD_LIMITS] = {[BD_LIMIT_OPS] = ops, [BD_LIMIT_BYTES] = bytes};
    bd_limit_set(&world->limit, rates, 0, bd_loop_monotonic_ns());
}

static struct bd_client *connect_client(struct world *world, int *peer)
{
    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct bd_client *client = bd_nbd_client_new(world->rig.volume, pair[0], &terms, NULL, 0);
    CHECK(client != NULL);
    client->limit = &world->limit;
    CHECK_EQ(bd_loop_add(world->loop, client), 0);
    *peer = pair[1];
    return client;
}

/* The places of that many chunks are known. */
static void init(struct world *world, uint64_t known)
{
    rig_init(&world->rig, SEGMENT, 4, VOLUME);
    rig_holes(&world->rig, known);
    bd_limit_init(&world->limit);
    world->loop = bd_loop_new(1, 1, 1);
    CHECK(world->loop != NULL);
    world->client = connect_client(world, &world->peer);
}

static void destroy(struct world *world)
{
    struct bd_client *told;
    bd_loop_end(world->loop);
    while ((told = bd_loop_news(world->loop)) != NULL)
        bd_client_release(told);
    bd_client_release(world->client);
    bd_loop_free(world->loop);
    bd_limit_destroy(&world->limit);
    if (world->peer >= 0)
        close(world->peer);
    rig_destroy(&world->rig);
}

static void ask(int peer, uint16_t command, uint64_t cookie, uint64_t offset, uint32_t length)
{
    static const uint8_t data[BLOCK] = {1};
    uint8_t request[BD_NBD_REQUEST + BLOCK] = {0};
    bd_put_be32(request, BD_NBD_REQUEST_MAGIC);
    bd_put_be16(request + 6, command);
    bd_put_be64(request + 8, cookie);
    bd_put_be64(request + 16, offset);
    bd_put_be32(request + 24, length);
    size_t bytes = BD_NBD_REQUEST;
    if (command == BD_NBD_CMD_WRITE) {
        memcpy(request + bytes, data, length);
        bytes += length;
    }
    CHECK_EQ(send(peer, request, bytes, 0), (ssize_t)bytes);
}

/* The next reply is a good one, to `cookie`, with `length` bytes of data. */
static void answered(int peer, uint64_t cookie, uint32_t length)
{
    uint8_t reply[REPLY + VOLUME / 4];
    CHECK_EQ(recv(peer, reply, REPLY + length, MSG_WAITALL), REPLY + length);
    CHECK_EQ(bd_get_be32(reply + 4), 0);
    CHECK_EQ(bd_get_be64(reply + 8), cookie);
}

static void pass_time(void)
{
    struct timespec moment = {.tv_nsec = 100000};
    nanosleep(&moment, NULL);
}

static void is_silent(int peer)
{
    uint8_t byte;
    CHECK_EQ(recv(peer, &byte, 1, MSG_DONTWAIT), -1);
}

/* Until the loop's thread has looked at what has come, and holds a client. */
static void until_held(struct world *world)
{
    while (bd_limit_held(&world->limit).waiting == 0)
        pass_time();
}

/* What is let go on is never more than the rate says, however busy the machine is. */
static void requests_take_the_time_that_the_rate_says(void)
{
    enum { RATE = 500, COUNT = 100 };
    struct world world;
    init(&world, CHUNKS);
    set(&world, RATE, 0);
    uint64_t start_ns = bd_loop_monotonic_ns();
    for (uint64_t cookie = 1; cookie <= COUNT; cookie++)
        ask(world.peer, cookie % 2 ? BD_NBD_CMD_READ : BD_NBD_CMD_WRITE, cookie, 0, BLOCK);
    for (uint64_t cookie = 1; cookie <= COUNT; cookie++) {
        answered(world.peer, cookie, cookie % 2 ? BLOCK : 0);
        CHECK((cookie - 1) * SECOND <= RATE * (bd_loop_monotonic_ns() - start_ns));
    }
    struct bd_held held = bd_limit_held(&world.limit);
    CHECK(held.waiting == 0 && held.count > 0 && held.ns > 0);
    destroy(&world);
}

static void a_flush_waits_for_its_own_line_only(void)
{
    struct world world;
    init(&world, CHUNKS);
    set(&world, 0, 1);
    int other_peer;
    struct bd_client *other = connect_client(&world, &other_peer);
    ask(world.peer, BD_NBD_CMD_WRITE, 1, 0, BLOCK); /* goes on, and fills the bucket */
    answered(world.peer, 1, 0);
    ask(world.peer, BD_NBD_CMD_WRITE, 2, BLOCK, BLOCK); /* its time is in 512 s */
    ask(world.peer, BD_NBD_CMD_FLUSH, 3, 0, 0);
    until_held(&world);
    ask(other_peer, BD_NBD_CMD_FLUSH, 4, 0, 0);
    answered(other_peer, 4, 0);
    CHECK_EQ(world.rig.journal->synced_lsn, world.rig.journal->next_lsn - 1);
    is_silent(world.peer);
    set(&world, 0, 0);
    answered(world.peer, 2, 0);
    answered(world.peer, 3, 0);
    CHECK_EQ(world.rig.journal->synced_lsn, world.rig.journal->next_lsn - 1);
    close(other_peer);
    destroy(&world);
    bd_client_release(other);
}

static void a_change_lets_those_go_on_who_wait(void)
{
    struct world world;
    init(&world, CHUNKS);
    set(&world, 0, 1);
    for (uint64_t cookie = 1; cookie <= 4; cookie++)
        ask(world.peer, BD_NBD_CMD_READ, cookie, 0, BLOCK);
    answered(world.peer, 1, BLOCK);
    until_held(&world);
    is_silent(world.peer);
    set(&world, 0, 1000000); /* raised */
    for (uint64_t cookie = 2; cookie <= 4; cookie++)
        answered(world.peer, cookie, BLOCK);
    set(&world, 0, 1);
    ask(world.peer, BD_NBD_CMD_READ, 5, 0, BLOCK);
    ask(world.peer, BD_NBD_CMD_READ, 6, 0, BLOCK);
    ask(world.peer, BD_NBD_CMD_READ, 7, 0, BLOCK);
    answered(world.peer, 5, BLOCK);
    until_held(&world);
    set(&world, 0, 0); /* removed */
    answered(world.peer, 6, BLOCK);
    answered(world.peer, 7, BLOCK);
    destroy(&world);
}

static uint64_t fullness_ns(struct world *world)
{
    pthread_mutex_lock(&world->limit.lock);
    uint64_t empty_ns = world->limit.empty_ns[BD_LIMIT_BYTES];
    pthread_mutex_unlock(&world->limit.lock);
    return empty_ns;
}

static void until_stopped(struct bd_client *client)
{
    bool stopped = false;
    while (!stopped) {
        pthread_mutex_lock(&client->lock);
        stopped = client->stopped;
        pthread_mutex_unlock(&client->lock);
        pass_time();
    }
}

/* Asked to stop, as by a server that drains: what waits is there to go on with, none is lost, and
 * its place is given up. */
static void a_stop_takes_along_what_waits(void)
{
    struct world world;
    init(&world, CHUNKS);
    set(&world, 0, 1);
    ask(world.peer, BD_NBD_CMD_READ, 1, 0, BLOCK);
    answered(world.peer, 1, BLOCK);
    uint64_t before_ns = fullness_ns(&world);
    ask(world.peer, BD_NBD_CMD_WRITE, 2, 0, BLOCK);
    ask(world.peer, BD_NBD_CMD_FLUSH, 3, 0, 0);
    until_held(&world);
    CHECK_EQ(fullness_ns(&world), before_ns + (uint64_t)BLOCK * SECOND);
    pthread_mutex_lock(&world.client->lock);
    bd_client_stop(world.client);
    pthread_mutex_unlock(&world.client->lock);
    until_stopped(world.client);
    CHECK_EQ(fullness_ns(&world), before_ns);
    size_t left = world.client->input.end - world.client->input.start;
    CHECK(left >= BD_NBD_REQUEST + BLOCK);
    CHECK_EQ(bd_get_be64(world.client->input.data + world.client->input.start + 8), 2);
    is_silent(world.peer);
    destroy(&world);
}

/* The peer is gone, with a reset: nothing of what waits is done, and all of it is freed. */
static void a_client_that_is_gone_leaves_nothing(void)
{
    struct world world;
    init(&world, CHUNKS);
    set(&world, 0, 1);
    ask(world.peer, BD_NBD_CMD_READ, 1, 0, BLOCK);
    answered(world.peer, 1, BLOCK);
    uint64_t before_ns = fullness_ns(&world);
    uint64_t lsn = world.rig.journal->next_lsn;
    ask(world.peer, BD_NBD_CMD_WRITE, 2, 0, BLOCK);
    until_held(&world);
    close(world.peer);
    world.peer = -1;
    until_stopped(world.client);
    CHECK(world.client->cut);
    CHECK_EQ(fullness_ns(&world), before_ns);
    CHECK_EQ(world.rig.journal->next_lsn, lsn);
    destroy(&world);
}

/* A read whose chunk's place is not known is Python's, and has been paid for. */
static void what_is_left_to_python_is_paid_for(void)
{
    struct world world;
    init(&world, 0);
    for (int limited = 0; limited < 2; limited++) {
        set(&world, limited ? 1000 : 0, 0);
        ask(world.peer, BD_NBD_CMD_READ, 1, 0, BLOCK);
        size_t length = 0;
        while (length == 0) {
            pthread_mutex_lock(&world.client->lock);
            length = world.client->mail_length;
            world.client->mail_length = 0;
            pthread_mutex_unlock(&world.client->lock);
        }
        CHECK_EQ(length, BD_NBD_REQUEST);
        pthread_mutex_lock(&world.client->lock);
        CHECK_EQ(world.client->paid.requests[BD_OP_READ], limited);
        CHECK_EQ(world.client->paid.bytes[BD_OP_READ], limited * BLOCK);
        pthread_mutex_unlock(&world.client->lock);
    }
    destroy(&world);
}

int main(void)
{
    requests_take_the_time_that_the_rate_says();
    a_flush_waits_for_its_own_line_only();
    a_change_lets_those_go_on_who_wait();
    a_stop_takes_along_what_waits();
    a_client_that_is_gone_leaves_nothing();
    what_is_left_to_python_is_paid_for();
    return 0;
}
