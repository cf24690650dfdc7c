/* Who the request loop serves when, and where. */
#include <semaphore.h>
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

enum { TURNS = 5, SEGMENT = 1 << 20, VOLUME = 1 << 20, NUMBER = 4 };

/* A protocol of which every byte is a request. */
struct counted {
    struct bd_client base;
    int number;
};

static sem_t entered; /* the gate's thread is in it */
static sem_t go_on;
static sem_t over;    /* a client has had its last turn */
static int order[64]; /* one thread serves all */
static int order_length;

static enum bd_served serve_gate(struct bd_client *client, struct bd_worker *worker)
{
    (void)worker;
    client->input.start = client->input.end;
    sem_post(&entered);
    sem_wait(&go_on);
    return BD_SERVED_ALL;
}

static enum bd_served serve_counted(struct bd_client *client, struct bd_worker *worker)
{
    (void)worker;
    order[order_length++] = ((struct counted *)client)->number;
    if (++client->input.start < client->input.end)
        return BD_SERVED_SOME;
    sem_post(&over);
    return BD_SERVED_ALL;
}

static void finish(struct bd_client *client, struct bd_job *job)
{
    (void)client;
    (void)job;
    abort(); /* nobody begins one */
}

static void destroy(struct bd_client *client)
{
    (void)client;
}

static const struct bd_protocol gate = {serve_gate, finish, destroy};
static const struct bd_protocol counted = {serve_counted, finish, destroy};

/* A client of that protocol with `turns` requests, in the loop; its peer's end in *peer. */
static struct bd_client *add(struct bd_loop *loop, const struct bd_protocol *protocol, int number,
                             size_t turns, int *peer)
{
    static const uint8_t input[TURNS];
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    *peer = pair[1];
    struct counted *client = calloc(1, sizeof *client);
    CHECK(client != NULL);
    CHECK_EQ(bd_client_init(&client->base, protocol, NULL, pair[0], input, turns), 0);
    client->number = number;
    CHECK_EQ(bd_loop_add(loop, &client->base), 0);
    return &client->base;
}

static void end(struct bd_loop *loop)
{
    struct bd_client *told;
    bd_loop_end(loop);
    while ((told = bd_loop_news(loop)) != NULL) {
        CHECK(told->stopped);
        bd_client_release(told);
    }
    bd_loop_free(loop);
}

/* A client that keeps the loop's only thread until `go_on` is posted. */
static struct bd_client *close_gate(struct bd_loop *loop, int *peer)
{
    struct bd_client *client = add(loop, &gate, 0, 1, peer);
    sem_wait(&entered);
    return client;
}

static void test_clients_of_a_thread_take_turns(void)
{
    int peers[3];
    struct bd_client *clients[3];
    struct bd_loop *loop = bd_loop_new(1, 1, 1);
    CHECK(loop != NULL);
    order_length = 0;
    clients[0] = close_gate(loop, &peers[0]);
    for (int i = 1; i < 3; i++)
        clients[i] = add(loop, &counted, i, TURNS, &peers[i]);
    sem_post(&go_on);
    for (int i = 1; i < 3; i++)
        sem_wait(&over);
    CHECK_EQ(order_length, 2 * TURNS);
    for (int i = 1; i < order_length; i++)
        CHECK(order[i] != order[i - 1]);
    end(loop);
    for (int i = 0; i < 3; i++) {
        bd_client_release(clients[i]);
        close(peers[i]);
    }
}

/* One writes its requests' numbers to one place, again and again; what another reads there says
 * after how many of them it was served. */
static void test_a_deep_pipeline_is_served_round_by_round(void)
{
    enum { DEPTH = 10 * BD_BATCH };
    static uint8_t writes[DEPTH * (BD_NBD_REQUEST + NUMBER)];
    uint8_t read[BD_NBD_REQUEST];
    size_t length = 0;
    for (uint32_t number = 1; number <= DEPTH; number++) {
        length += put_request(writes + length, BD_NBD_CMD_WRITE, number, 0, NUMBER);
        bd_put_be32(writes + length, number);
        length += NUMBER;
    }
    put_request(read, BD_NBD_CMD_READ, 7, 0, NUMBER);
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct bd_loop *loop = bd_loop_new(1, 1, 1);
    CHECK(loop != NULL);
    int peer;
    struct bd_client *blocker = close_gate(loop, &peer);

    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    int deep_pair[2];
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, deep_pair), 0);
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct bd_client *modest = bd_nbd_client_new(rig.volume, pair[0], &terms, read, BD_NBD_REQUEST);
    struct bd_client *deep = bd_nbd_client_new(rig.volume, deep_pair[0], &terms, writes, length);
    CHECK(modest != NULL && deep != NULL);
    CHECK_EQ(bd_loop_add(loop, modest), 0); /* who comes last is looked at first */
    CHECK_EQ(bd_loop_add(loop, deep), 0);
    sem_post(&go_on);

    uint8_t reply[16 + NUMBER];
    CHECK_EQ(recv(pair[1], reply, sizeof reply, MSG_WAITALL), sizeof reply);
    CHECK_EQ(bd_get_be32(reply + 16), BD_BATCH);
    for (uint64_t number = 1; number <= DEPTH; number++) {
        CHECK_EQ(recv(deep_pair[1], reply, 16, MSG_WAITALL), 16);
        CHECK_EQ(bd_get_be32(reply + 4), 0);
        CHECK_EQ(bd_get_be64(reply + 8), number);
    }
    end(loop);
    bd_client_release(blocker);
    bd_client_release(modest);
    bd_client_release(deep);
    close(peer);
    close(pair[1]);
    close(deep_pair[1]);
    rig_destroy(&rig);
}

static void test_clients_are_spread_over_the_threads(void)
{
    enum { WORKERS = 4, CLIENTS = 12 };
    struct bd_client *clients[CLIENTS];
    int peers[CLIENTS];
    struct bd_loop *loop = bd_loop_new(WORKERS, 1, 1);
    CHECK(loop != NULL);
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = add(loop, &counted, i, 0, &peers[i]);
    for (int i = 0; i < CLIENTS; i++) {
        int companions = 0;
        for (int j = 0; j < CLIENTS; j++)
            companions += clients[j]->worker == clients[i]->worker;
        CHECK_EQ(companions, CLIENTS / WORKERS);
    }
    end(loop);
    for (int i = 0; i < CLIENTS; i++) {
        bd_client_release(clients[i]);
        close(peers[i]);
    }
}

int main(void)
{
    sem_init(&entered, 0, 0);
    sem_init(&go_on, 0, 0);
    sem_init(&over, 0, 0);
    test_clients_of_a_thread_take_turns();
    test_a_deep_pipeline_is_served_round_by_round();
    test_clients_are_spread_over_the_threads();
    return 0;
}
