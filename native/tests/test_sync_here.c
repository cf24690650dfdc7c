/* The loop's own thread syncs for a client that is alone with one request at a time, and nobody
 * else; what is answered is durable all the same, and an error of the disk is told. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "lone.h"
#include "nbd_serve.h"
#include "nbd_wire.h"
#include "rig.h"

enum { SEGMENT = 4 << 20, VOLUME = 1 << 20, LENGTH = 512, REPLY = 16 };

struct served {
    struct rig rig;
    struct bd_loop *loop;
    struct bd_client *clients[4];
    int fds[4];
    int client_count;
    atomic_uint here; /* syncs on the first worker's thread */
    atomic_uint elsewhere;
    pthread_mutex_t disk; /* a sync takes until it is free */
};

static void during_sync(void *argument)
{
    struct served *served = argument;
    bool here = pthread_equal(pthread_self(), served->loop->workers[0].thread) != 0;
    atomic_fetch_add(here ? &served->here : &served->elsewhere, 1);
    pthread_mutex_lock(&served->disk);
    pthread_mutex_unlock(&served->disk);
}

static void add_client(struct served *served)
{
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    struct bd_client *client = bd_nbd_client_new(served->rig.volume, pair[0], &terms, NULL, 0);
    CHECK(client != NULL);
    CHECK_EQ(bd_loop_add(served->loop, client), 0);
    served->clients[served->client_count] = client;
    served->fds[served->client_count++] = pair[1];
}

static void begin_with(struct served *served, unsigned workers)
{
    memset(served, 0, sizeof *served);
    pthread_mutex_init(&served->disk, NULL);
    rig_init(&served->rig, SEGMENT, 2, VOLUME);
    for (int slot = 0; slot < RIG_SEGMENTS; slot++) {
        served->rig.files[slot].during_sync = during_sync;
        served->rig.files[slot].during_sync_with = served;
    }
    served->loop = bd_loop_new(workers, 1, 1);
    CHECK(served->loop != NULL);
    served->loop->long_wait_ns = UINT64_MAX; /* however busy the machine is */
    add_client(served);
}

static void begin(struct served *served)
{
    begin_with(served, 1);
}

static void end(struct served *served)
{
    bd_loop_end(served->loop);
    struct bd_client *told;
    while ((told = bd_loop_news(served->loop)) != NULL)
        bd_client_release(told);
    for (int i = 0; i < served->client_count; i++) {
        bd_client_release(served->clients[i]);
        close(served->fds[i]);
    }
    bd_loop_free(served->loop);
    rig_destroy(&served->rig);
    pthread_mutex_destroy(&served->disk);
}

static void ask(struct served *served, int client, uint16_t command)
{
    uint8_t out[BD_NBD_REQUEST + LENGTH] = {0};
    bool writes = command == BD_NBD_CMD_WRITE;
    bd_put_be32(out, BD_NBD_REQUEST_MAGIC);
    bd_put_be16(out + 6, command);
    bd_put_be32(out + 24, command == BD_NBD_CMD_FLUSH ? 0 : LENGTH);
    size_t length = BD_NBD_REQUEST + (writes ? LENGTH : 0);
    CHECK_EQ(send(served->fds[client], out, length, MSG_NOSIGNAL), (ssize_t)length);
}

static void expect(struct served *served, int client, size_t length)
{
    uint8_t reply[REPLY + LENGTH];
    CHECK_EQ(recv(served->fds[client], reply, length, MSG_WAITALL), (ssize_t)length);
    CHECK_EQ(bd_get_be32(reply), 0x67446698);
    CHECK_EQ(bd_get_be32(reply + 4), 0);
}

static void write_one(struct served *served, int client)
{
    ask(served, client, BD_NBD_CMD_WRITE);
    expect(served, client, REPLY);
}

static void flush(struct served *served, int client)
{
    ask(served, client, BD_NBD_CMD_FLUSH);
    expect(served, client, REPLY);
    struct bd_journal *journal = served->rig.journal;
    pthread_mutex_lock(&journal->lock);
    CHECK_EQ(journal->synced_lsn + 1, journal->next_lsn);
    pthread_mutex_unlock(&journal->lock);
}

/* Until the client is known for flushes that come alone, and for writes each with one. */
static void settle(struct served *served)
{
    for (int i = 0; i < BD_LONE_ROW; i++) {
        write_one(served, 0);
        flush(served, 0);
    }
    CHECK(served->here > 0);
}

/* No news of a sync but the counter: it is another thread's. */
static void wait_for_syncs(struct served *served, unsigned count)
{
    for (int i = 0; i < 60000 && atomic_load(&served->here) < count; i++)
        poll(NULL, 0, 1);
    CHECK_EQ(served->here, count);
}

static void test_a_lone_client_is_synced_for_by_its_own_thread(void)
{
    struct served served;
    begin(&served);
    settle(&served);
    unsigned elsewhere = served.elsewhere;
    CHECK(elsewhere < BD_LONE_ROW);
    for (int i = 0; i < 100; i++) {
        write_one(&served, 0);
        flush(&served, 0);
    }
    CHECK_EQ(served.elsewhere, elsewhere);
    end(&served);
}

static void test_a_write_is_synced_before_its_flush_comes(void)
{
    struct served served;
    begin(&served);
    settle(&served);
    unsigned before = served.here;
    write_one(&served, 0);
    wait_for_syncs(&served, before + 1);
    flush(&served, 0); /* has nothing to do */
    CHECK_EQ(served.here, before + 1);
    write_one(&served, 0);
    write_one(&served, 0); /* no flush between the two: once in vain, and not again */
    write_one(&served, 0);
    CHECK_EQ(served.here, before + 2);
    flush(&served, 0);
    CHECK_EQ(served.here, before + 3);
    end(&served);
}

static void test_clients_of_one_thread_do_not_wait_for_each_others_syncs(void)
{
    struct served served;
    begin(&served);
    settle(&served);
    add_client(&served);
    write_one(&served, 1); /* it is there now */
    unsigned here = served.here;
    unsigned elsewhere = served.elsewhere;
    for (int i = 0; i < BD_LONE_ROW; i++) {
        write_one(&served, 0);
        flush(&served, 0);
    }
    CHECK_EQ(served.here, here);
    CHECK_EQ(served.elsewhere, elsewhere + BD_LONE_ROW);
    end(&served);
}

static void test_reads_between_flushes_do_not_wait_for_the_disk(void)
{
    struct served served;
    begin(&served);
    settle(&served);
    ask(&served, 0, BD_NBD_CMD_READ);
    expect(&served, 0, REPLY + LENGTH);
    unsigned here = served.here;
    write_one(&served, 0);
    flush(&served, 0);
    CHECK_EQ(served.here, here);
    end(&served);
}

static void test_new_clients_do_not_come_to_a_thread_that_waits_for_a_stuck_disk(void)
{
    struct served served;
    begin_with(&served, 2);
    settle(&served);
    add_client(&served); /* of the second worker */
    unsigned here = served.here;
    pthread_mutex_lock(&served.disk);
    write_one(&served, 0);
    wait_for_syncs(&served, here + 1); /* ahead; and there it stays */
    served.loop->long_wait_ns = 0;
    for (int client = 2; client < 4; client++) { /* and the first worker has one client only */
        add_client(&served);
        ask(&served, client, BD_NBD_CMD_READ);
        struct pollfd reply = {.fd = served.fds[client], .events = POLLIN};
        CHECK_EQ(poll(&reply, 1, 10000), 1);
        expect(&served, client, REPLY + LENGTH);
    }
    pthread_mutex_unlock(&served.disk);
    flush(&served, 0);
    end(&served);
}

static void test_a_sync_ahead_that_fails_is_told_by_the_flush(void)
{
    struct served served;
    begin(&served);
    settle(&served);
    served.rig.files[0].fail_sync = -EIO;
    ask(&served, 0, BD_NBD_CMD_WRITE);
    expect(&served, 0, REPLY);
    ask(&served, 0, BD_NBD_CMD_FLUSH);
    struct pollfd news = {.fd = bd_loop_fd(served.loop), .events = POLLIN};
    CHECK_EQ(poll(&news, 1, 60000), 1);
    struct bd_client *told = bd_loop_news(served.loop);
    CHECK(told == served.clients[0]);
    pthread_mutex_lock(&told->lock); /* the engine finds out what is wrong, and says it */
    CHECK_EQ(told->mail_length, BD_NBD_REQUEST);
    CHECK_EQ(bd_get_be16(told->mail + 6), BD_NBD_CMD_FLUSH);
    pthread_mutex_unlock(&told->lock);
    bd_client_release(told);
    CHECK_EQ(served.rig.journal->sealed, EIO);
    end(&served);
}

int main(void)
{
    test_a_lone_client_is_synced_for_by_its_own_thread();
    test_a_write_is_synced_before_its_flush_comes();
    test_clients_of_one_thread_do_not_wait_for_each_others_syncs();
    test_reads_between_flushes_do_not_wait_for_the_disk();
    test_new_clients_do_not_come_to_a_thread_that_waits_for_a_stuck_disk();
    test_a_sync_ahead_that_fails_is_told_by_the_flush();
    return 0;
}
