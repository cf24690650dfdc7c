/* Answers of a volume that other nodes have as well wait until they have what was done. */
#include "gate.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "nbd_serve.h"
#include "nbd_wire.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 20, BLOCK = 4096 };

static const uint64_t HOUR_NS = UINT64_C(3600000000000);

static void gated_rig(struct rig *rig)
{
    rig_init(rig, SEGMENT, 4, VOLUME);
    rig_holes(rig, VOLUME / RIG_CHUNK);
    CHECK_EQ(bd_gate_new(rig->volume), 0);
    CHECK_EQ(bd_gate_new(rig->volume), -EEXIST);
}

static void open_gate(struct rig *rig, bool strict)
{
    bd_gate_open(rig->volume, rig->volume->seq, strict, HOUR_NS);
    bd_gate_lease(rig->volume->gate, bd_gate_now_ns() + HOUR_NS);
}

static bool wants_sync(struct rig *rig)
{
    struct pollfd wake = {.fd = rig->volume->gate->wake, .events = POLLIN};
    return poll(&wake, 1, 0) == 1;
}

static int write_block(struct rig *rig, uint64_t offset)
{
    uint8_t data[BLOCK] = {1};
    return rig_do(rig, BD_ACTION_WRITE, offset, BLOCK, data, NULL);
}

static int read_block(struct rig *rig, uint64_t offset)
{
    uint8_t data[BLOCK];
    return rig_do(rig, BD_ACTION_READ, offset, BLOCK, data, NULL);
}

static void test_a_shut_gate_lets_nothing_in(void)
{
    struct rig rig;
    gated_rig(&rig);
    int status;
    uint8_t data[BLOCK] = {0};
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, BLOCK, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ESHUTDOWN);
    CHECK_EQ(rig_do(&rig, BD_ACTION_READ, 0, BLOCK, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ESHUTDOWN);
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ESHUTDOWN);
    CHECK_EQ(rig.volume->seq, 0);
    open_gate(&rig, false);
    CHECK_EQ(write_block(&rig, 0), BD_ACTION_WAIT_ACKS);
    bd_gate_shut(rig.volume);
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, BLOCK, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ESHUTDOWN);
    CHECK_EQ(rig.volume->seq, 1);
    rig_destroy(&rig);
}

static void test_reads_wait_for_writes_that_they_return(void)
{
    struct rig rig;
    gated_rig(&rig);
    open_gate(&rig, false);
    CHECK_EQ(read_block(&rig, 0), BD_ACTION_DONE);
    CHECK_EQ(write_block(&rig, 0), BD_ACTION_WAIT_ACKS);
    CHECK_EQ(write_block(&rig, 8 * BLOCK), BD_ACTION_WAIT_ACKS);
    CHECK_EQ(read_block(&rig, 0), BD_ACTION_WAIT_ACKS);
    CHECK_EQ(read_block(&rig, 4 * BLOCK), BD_ACTION_DONE);
    CHECK_EQ(bd_gate_seen(rig.volume->gate, 0, BLOCK), 1);
    CHECK_EQ(bd_gate_seen(rig.volume->gate, 0, VOLUME), 2);
    CHECK_EQ(bd_gate_seen(rig.volume->gate, BLOCK, 7 * BLOCK), 0);
    bd_gate_advance(rig.volume->gate, 1, 0);
    CHECK_EQ(read_block(&rig, 0), BD_ACTION_DONE);
    CHECK_EQ(read_block(&rig, 8 * BLOCK), BD_ACTION_WAIT_ACKS);
    bd_gate_advance(rig.volume->gate, 2, 0);
    bd_gate_advance(rig.volume->gate, 1, 0); /* never back */
    CHECK_EQ(read_block(&rig, 8 * BLOCK), BD_ACTION_DONE);
    rig_destroy(&rig);
}

static void test_writes_that_are_not_told_apart_hold_every_read(void)
{
    struct rig rig;
    gated_rig(&rig);
    open_gate(&rig, false);
    struct bd_gate *gate = rig.volume->gate;
    for (uint64_t seq = 1; seq <= BD_GATE_WRITES + 3; seq++)
        bd_gate_note(gate, seq, (seq % 2) * BLOCK, BLOCK);
    CHECK_EQ(bd_gate_seen(gate, 8 * BLOCK, BLOCK), 3);
    CHECK_EQ(bd_gate_seen(gate, 0, BLOCK), BD_GATE_WRITES + 2);
    bd_gate_advance(gate, 3, 0);
    CHECK_EQ(bd_gate_seen(gate, 8 * BLOCK, BLOCK), 0);
    bd_gate_advance(gate, BD_GATE_WRITES + 3, 0);
    CHECK_EQ(bd_gate_seen(gate, 0, VOLUME), 0);
    rig_destroy(&rig);
}

static void test_a_flush_waits_for_disks_and_says_so(void)
{
    struct rig rig;
    gated_rig(&rig);
    open_gate(&rig, false);
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, NULL), BD_ACTION_DONE);
    write_block(&rig, 0);
    bd_gate_advance(rig.volume->gate, 1, 0);
    CHECK(!wants_sync(&rig));
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, NULL), BD_ACTION_WAIT_ACKS);
    CHECK(wants_sync(&rig));
    CHECK_EQ(rig.volume->gate->wanted, 1);
    bd_gate_advance(rig.volume->gate, 1, 1);
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, NULL), BD_ACTION_DONE);
    rig_destroy(&rig);
}

static void test_in_strict_every_write_waits_for_disks(void)
{
    struct rig rig;
    gated_rig(&rig);
    open_gate(&rig, true);
    write_block(&rig, 0);
    CHECK_EQ(rig.volume->gate->wanted, 1);
    rig_destroy(&rig);
}

static void test_no_read_is_answered_without_a_lease(void)
{
    struct rig rig;
    gated_rig(&rig);
    bd_gate_open(rig.volume, 0, false, HOUR_NS);
    CHECK_EQ(read_block(&rig, 0), BD_ACTION_WAIT_ACKS);
    bd_gate_lease(rig.volume->gate, bd_gate_now_ns());
    CHECK_EQ(read_block(&rig, 0), BD_ACTION_WAIT_ACKS);
    bd_gate_lease(rig.volume->gate, bd_gate_now_ns() + HOUR_NS);
    CHECK_EQ(read_block(&rig, 0), BD_ACTION_DONE);
    rig_destroy(&rig);
}

/* One client of the loop. */

struct served {
    struct bd_loop *loop;
    struct bd_client *client;
    int fd;
};

static void serve(struct served *served, struct rig *rig)
{
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    served->loop = bd_loop_new(1, 1, 1);
    CHECK(served->loop != NULL);
    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    served->client = bd_nbd_client_new(rig->volume, pair[0], &terms, NULL, 0);
    CHECK(served->client != NULL);
    served->fd = pair[1];
    CHECK_EQ(bd_loop_add(served->loop, served->client), 0);
}

static void end(struct served *served)
{
    bd_loop_end(served->loop);
    struct bd_client *told;
    while ((told = bd_loop_news(served->loop)) != NULL)
        bd_client_release(told);
    bd_client_release(served->client);
    bd_loop_free(served->loop);
    close(served->fd);
}

static void ask(struct served *served, uint16_t command, uint64_t cookie, uint64_t offset,
                uint32_t length)
{
    uint8_t bytes[BD_NBD_REQUEST + BLOCK] = {0};
    bd_put_be32(bytes, BD_NBD_REQUEST_MAGIC);
    bd_put_be16(bytes + 6, command);
    bd_put_be64(bytes + 8, cookie);
    bd_put_be64(bytes + 16, offset);
    bd_put_be32(bytes + 24, length);
    size_t total = BD_NBD_REQUEST + (command == BD_NBD_CMD_WRITE ? length : 0);
    memset(bytes + BD_NBD_REQUEST, 7, total - BD_NBD_REQUEST);
    CHECK_EQ(write(served->fd, bytes, total), (ssize_t)total);
}

static void hear(struct served *served, uint64_t cookie, uint32_t length)
{
    uint8_t bytes[16 + BLOCK];
    size_t have = 0;
    while (have < 16 + length) {
        struct pollfd reply = {.fd = served->fd, .events = POLLIN};
        CHECK_EQ(poll(&reply, 1, 60000), 1);
        ssize_t got = read(served->fd, bytes + have, 16 + length - have);
        CHECK(got > 0);
        have += (size_t)got;
    }
    CHECK_EQ(bd_get_be32(bytes + 4), 0);
    CHECK(bd_get_be64(bytes + 8) == cookie);
    for (uint32_t i = 0; i < length; i++)
        CHECK_EQ(bytes[16 + i], 7);
}

static void wait_for_jobs(struct rig *rig, uint32_t count)
{
    struct bd_gate *gate = rig->volume->gate;
    uint32_t waiting = 0;
    while (waiting != count) {
        usleep(100);
        pthread_mutex_lock(&gate->lock);
        waiting = gate->waiting;
        pthread_mutex_unlock(&gate->lock);
    }
}

static void test_a_client_is_answered_when_w_have_it(void)
{
    struct rig rig;
    struct served served;
    gated_rig(&rig);
    open_gate(&rig, false);
    serve(&served, &rig);
    ask(&served, BD_NBD_CMD_WRITE, 1, 0, BLOCK);
    ask(&served, BD_NBD_CMD_READ, 2, 0, BLOCK);
    ask(&served, BD_NBD_CMD_FLUSH, 3, 0, 0);
    wait_for_jobs(&rig, 3);
    struct pollfd reply = {.fd = served.fd, .events = POLLIN};
    CHECK_EQ(poll(&reply, 1, 0), 0);
    bd_gate_advance(rig.volume->gate, 1, 0);
    hear(&served, 1, 0);
    hear(&served, 2, BLOCK);
    CHECK_EQ(poll(&reply, 1, 0), 0);
    bd_gate_advance(rig.volume->gate, 1, 1);
    hear(&served, 3, 0);
    end(&served);
    rig_destroy(&rig);
}

/* What is mailed, the engine answers: a write as one of nothing, which asks for durability. */
static void expect_mail(struct served *served, uint16_t command, uint64_t cookie)
{
    struct pollfd news = {.fd = bd_loop_fd(served->loop), .events = POLLIN};
    CHECK_EQ(poll(&news, 1, 60000), 1);
    struct bd_client *told = bd_loop_news(served->loop);
    CHECK(told == served->client);
    pthread_mutex_lock(&told->lock);
    CHECK_EQ(told->mail_length, BD_NBD_REQUEST);
    CHECK_EQ(bd_get_be16(told->mail + 6), command);
    CHECK(bd_get_be64(told->mail + 8) == cookie);
    told->mail_length = 0;
    pthread_mutex_unlock(&told->lock);
    bd_client_release(told);
}

static void test_who_waits_too_long_fails(void)
{
    struct rig rig;
    struct served served;
    gated_rig(&rig);
    open_gate(&rig, false);
    rig.volume->gate->timeout_ns = 0;
    serve(&served, &rig);
    ask(&served, BD_NBD_CMD_WRITE, 5, 0, BLOCK);
    wait_for_jobs(&rig, 1);
    bd_gate_expire(rig.volume->gate);
    expect_mail(&served, BD_NBD_CMD_WRITE, 5);
    end(&served);
    rig_destroy(&rig);
}

static void test_who_waits_when_it_shuts_fails(void)
{
    struct rig rig;
    struct served served;
    gated_rig(&rig);
    open_gate(&rig, false);
    serve(&served, &rig);
    ask(&served, BD_NBD_CMD_WRITE, 6, 0, BLOCK);
    wait_for_jobs(&rig, 1);
    bd_gate_shut(rig.volume);
    expect_mail(&served, BD_NBD_CMD_WRITE, 6);
    end(&served);
    rig_destroy(&rig);
}

int main(void)
{
    test_a_shut_gate_lets_nothing_in();
    test_reads_wait_for_writes_that_they_return();
    test_writes_that_are_not_told_apart_hold_every_read();
    test_a_flush_waits_for_disks_and_says_so();
    test_in_strict_every_write_waits_for_disks();
    test_no_read_is_answered_without_a_lease();
    test_a_client_is_answered_when_w_have_it();
    test_who_waits_too_long_fails();
    test_who_waits_when_it_shuts_fails();
    return 0;
}
