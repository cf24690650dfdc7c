/* Large reads whose pages go from packs to sockets without being copied. */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "big_endian.h"
#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "nbd_reply.h"
#include "nbd_serve.h"
#include "nbd_requests.h"
#include "nbd_wire.h"
#include "rig.h"
#include "sites.h"
#include "view.h"

enum {
    MIB = 1 << 20,
    SEGMENT = 4 << 20,
    CHUNKS = 32,
    VOLUME = CHUNKS * RIG_CHUNK,
    GAP = 128, /* before each chunk in its pack: none begins at a page */
    PAGES = RIG_CHUNK / BD_PAGE,
    FEW_DESCRIPTORS = 31, /* no pipe for who may not have more */
};

/* A volume all of whose chunks are in one pack, a real file. */
struct world {
    struct rig rig;
    uint8_t *bytes; /* what the volume has */
    int fd;         /* of the pack */
    int free_fd;    /* the first that is neither the pack's nor standard */
    struct bd_pack *pack;
    struct bd_loop *loop;
};

static int lowest_free_descriptor(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

static void put_chunk(struct world *world, uint64_t index)
{
    const uint8_t *bytes = world->bytes + index * RIG_CHUNK;
    uint64_t at = index * (RIG_CHUNK + GAP) + GAP;
    uint8_t table[4 * PAGES];
    CHECK_EQ(pwrite(world->fd, bytes, RIG_CHUNK, (off_t)at), RIG_CHUNK);
    for (size_t page = 0; page < PAGES; page++)
        bd_put32(table + 4 * page, bd_crc32c(0, bytes + page * BD_PAGE, BD_PAGE));
    CHECK_EQ(bd_table_put(world->rig.table, 1, index, BD_CHUNK_RAW, world->pack, at, RIG_CHUNK,
                          table, sizeof table),
             0);
}

/* Of no name; for reading and writing. */
static int new_file(void)
{
    char path[] = "/tmp/blockd-view-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0);
    unlink(path);
    return fd;
}

static void init_with(struct world *world, uint64_t seed, unsigned workers)
{
    rig_init(&world->rig, SEGMENT, 4, VOLUME);
    world->bytes = malloc(VOLUME);
    CHECK(world->bytes != NULL);
    random_bytes(&seed, world->bytes, VOLUME);
    world->fd = new_file();
    struct bd_file file;
    bd_file_open_fd(&file, dup(world->fd));
    world->pack = bd_pack_new(file, 7);
    CHECK(world->pack != NULL);
    for (uint64_t index = 0; index < CHUNKS; index++)
        put_chunk(world, index);
    world->free_fd = lowest_free_descriptor();
    world->loop = bd_loop_new(workers, 1, 1);
    CHECK(world->loop != NULL);
}

static void init(struct world *world, uint64_t seed)
{
    init_with(world, seed, 1);
}

static void end_loop(struct world *world)
{
    if (world->loop == NULL)
        return;
    struct bd_client *told;
    bd_loop_end(world->loop);
    while ((told = bd_loop_news(world->loop)) != NULL)
        bd_client_release(told);
    bd_loop_free(world->loop);
    world->loop = NULL;
}

static void destroy(struct world *world)
{
    end_loop(world);
    rig_destroy(&world->rig);
    bd_pack_release(world->pack);
    close(world->fd);
    free(world->bytes);
}

/* Two ends of a connection, of TCP or of a local socket. */
static void connect_pair(bool tcp, int pair[2])
{
    if (!tcp) {
        CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
        return;
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    int listening = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(bind(listening, (struct sockaddr *)&address, sizeof address), 0);
    CHECK_EQ(listen(listening, 1), 0);
    CHECK_EQ(getsockname(listening, (struct sockaddr *)&address, &length), 0);
    pair[1] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(connect(pair[1], (struct sockaddr *)&address, sizeof address), 0);
    pair[0] = accept(listening, NULL, NULL);
    CHECK(pair[0] >= 0);
    close(listening);
}

static struct bd_client *add_client(struct world *world, bool tcp, int *peer)
{
    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    int pair[2];
    connect_pair(tcp, pair);
    struct bd_client *client = bd_nbd_client_new(world->rig.volume, pair[0], &terms, NULL, 0);
    CHECK(client != NULL);
    CHECK_EQ(bd_loop_add(world->loop, client), 0);
    *peer = pair[1];
    return client;
}

static void ask(int peer, uint64_t cookie, uint64_t offset, uint32_t length)
{
    uint8_t request[BD_NBD_REQUEST];
    put_request(request, BD_NBD_CMD_READ, cookie, offset, length);
    CHECK_EQ(send(peer, request, sizeof request, 0), (ssize_t)sizeof request);
}

/* The next reply has the volume's bytes from there. */
static void expect(struct world *world, int peer, uint64_t cookie, uint64_t offset, size_t length)
{
    uint8_t reply[BD_NBD_SIMPLE_REPLY];
    CHECK_EQ(recv(peer, reply, sizeof reply, MSG_WAITALL), (ssize_t)sizeof reply);
    CHECK_EQ(bd_get_be32(reply), BD_NBD_SIMPLE_REPLY_MAGIC);
    CHECK_EQ(bd_get_be32(reply + 4), 0);
    CHECK_EQ(bd_get_be64(reply + 8), cookie);
    uint8_t *data = malloc(length);
    CHECK(data != NULL);
    CHECK_EQ(recv(peer, data, length, MSG_WAITALL), (ssize_t)length);
    CHECK_EQ(memcmp(data, world->bytes + offset, length), 0);
    free(data);
}

static void leave(struct bd_client *client, int peer)
{
    close(peer);
    bd_client_release(client);
}

/* A peer may have the bytes before they are counted, but not with the client's lock. */
static uint64_t spliced(struct bd_client *client)
{
    pthread_mutex_lock(&client->lock);
    uint64_t bytes = bd_view_spliced();
    pthread_mutex_unlock(&client->lock);
    return bytes;
}

static void large_reads_send_the_pages_of_the_pack(bool tcp)
{
    struct world world;
    int peer;
    init(&world, 1);
    struct bd_client *client = add_client(&world, tcp, &peer);
    uint64_t before = spliced(client);
    ask(peer, 1, 0, MIB);
    expect(&world, peer, 1, 0, MIB);
    CHECK_EQ(spliced(client) - before, MIB);
    ask(peer, 2, 3 * BD_PAGE, BD_VIEW_LEAST + BD_PAGE); /* parts of two chunks, one of them short */
    expect(&world, peer, 2, 3 * BD_PAGE, BD_VIEW_LEAST + BD_PAGE);
    CHECK_EQ(spliced(client) - before, MIB + RIG_CHUNK - 3 * BD_PAGE + 4 * BD_PAGE);
    before = spliced(client);
    ask(peer, 3, 0, BD_VIEW_LEAST - 1);
    expect(&world, peer, 3, 0, BD_VIEW_LEAST - 1);
    ask(peer, 4, 512, RIG_CHUNK); /* no whole page of checksums at either end */
    expect(&world, peer, 4, 512, RIG_CHUNK);
    CHECK_EQ(spliced(client), before);
    leave(client, peer);
    destroy(&world);
}

/* Reads and writes of any size, whose replies are taken at any pace. */
static void any_mix_is_answered_in_order(uint64_t seed)
{
    enum { ROUNDS = 12, DEPTH = 24 };
    struct world world;
    int peer;
    init(&world, seed);
    struct bd_client *client = add_client(&world, seed % 2 == 0, &peer);
    uint64_t before = spliced(client);
    static uint8_t requests[DEPTH * (BD_NBD_REQUEST + BD_PAGE)];
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t offsets[DEPTH];
        size_t lengths[DEPTH];
        size_t used = 0;
        /* Writes first: what reads find does not depend on when they are served. */
        for (int i = 0; i < 4; i++) {
            uint64_t offset = random_below(&seed, VOLUME / 512 - 8) * 512;
            used += put_request(requests + used, BD_NBD_CMD_WRITE, (uint64_t)i, offset, BD_PAGE);
            random_bytes(&seed, requests + used, BD_PAGE);
            memcpy(world.bytes + offset, requests + used, BD_PAGE);
            used += BD_PAGE;
        }
        for (int i = 4; i < DEPTH; i++) {
            uint64_t unit = random_below(&seed, 4) == 0 ? 1 : BD_PAGE;
            lengths[i] =
                (size_t)((random_below(&seed, (random_below(&seed, 2) ? MIB : 8192) / unit) + 1) *
                         unit);
            offsets[i] = random_below(&seed, (VOLUME - lengths[i]) / unit + 1) * unit;
            used += put_request(requests + used, BD_NBD_CMD_READ, (uint64_t)i, offsets[i],
                                (uint32_t)lengths[i]);
        }
        for (size_t sent = 0; sent < used;) {
            size_t piece = 1 + (size_t)random_below(&seed, used - sent);
            CHECK_EQ(send(peer, requests + sent, piece, 0), (ssize_t)piece);
            sent += piece;
        }
        for (int i = 0; i < 4; i++) {
            uint8_t reply[BD_NBD_SIMPLE_REPLY];
            CHECK_EQ(recv(peer, reply, sizeof reply, MSG_WAITALL), (ssize_t)sizeof reply);
            CHECK_EQ(bd_get_be32(reply + 4), 0);
        }
        for (int i = 4; i < DEPTH; i++)
            expect(&world, peer, (uint64_t)i, offsets[i], lengths[i]);
    }
    CHECK(spliced(client) > before);
    leave(client, peer);
    destroy(&world);
}

/* What is unsent is bounded, whoever pins it; and all of it goes when the client does. */
static void a_client_that_does_not_read_keeps_a_bounded_part(void)
{
    enum { ASKED = 100 };
    struct world world;
    int peer;
    int other_peer;
    init(&world, 3);
    struct bd_client *client = add_client(&world, true, &peer);
    for (uint64_t cookie = 0; cookie < ASKED; cookie++)
        ask(peer, cookie, cookie % 2 * MIB, MIB);
    /* Another client of the same thread is served meanwhile. */
    struct bd_client *other = add_client(&world, true, &other_peer);
    for (uint64_t cookie = 0; cookie < 2 * ASKED; cookie++) {
        ask(other_peer, cookie, MIB, MIB);
        expect(&world, other_peer, cookie, MIB, MIB);
    }
    pthread_mutex_lock(&client->lock);
    CHECK(client->unsent > 0);
    CHECK(client->unsent <= BD_OUTPUT_HIGH + MIB + BD_NBD_SIMPLE_REPLY);
    pthread_mutex_unlock(&client->lock);
    for (uint64_t cookie = 0; cookie < ASKED / 2; cookie++)
        expect(&world, peer, cookie, cookie % 2 * MIB, MIB);
    leave(client, peer); /* in the middle */
    leave(other, other_peer);
    end_loop(&world);
    CHECK_EQ(lowest_free_descriptor(), world.free_fd); /* no pipe is left */
    destroy(&world);
}

/* The request goes to Python, which says what is wrong. */
static void wait_for_mail(struct bd_client *client)
{
    for (bool mailed = false; !mailed;) {
        pthread_mutex_lock(&client->lock);
        mailed = client->mail_length == BD_NBD_REQUEST;
        client->mail_length = 0;
        pthread_mutex_unlock(&client->lock);
    }
}

/* A page that is rotten is no reply: the request goes to Python, which says what is wrong. */
static void damage_is_never_sent(void)
{
    struct world world;
    int peer;
    init(&world, 4);
    struct bd_client *client = add_client(&world, true, &peer);
    for (uint64_t chunk = 0; chunk < 16; chunk += 5) { /* in any chunk of the read */
        off_t at = (off_t)(chunk * (RIG_CHUNK + GAP) + GAP + RIG_CHUNK - 1);
        uint8_t good = world.bytes[(chunk + 1) * RIG_CHUNK - 1];
        uint8_t bad = good ^ 1;
        uint64_t before = spliced(client);
        CHECK_EQ(pwrite(world.fd, &bad, 1, at), 1);
        ask(peer, chunk, 0, MIB);
        wait_for_mail(client);
        CHECK_EQ(spliced(client), before);
        CHECK_EQ(pwrite(world.fd, &good, 1, at), 1);
        ask(peer, chunk, 0, MIB);
        expect(&world, peer, chunk, 0, MIB); /* nothing was sent before it */
    }
    leave(client, peer);
    destroy(&world);
}

/* Somebody cuts a pack short: before a read, or between its steps. */
static void a_pack_that_is_cut_short_is_an_error_and_no_signal(void)
{
    struct world world;
    int peer;
    init(&world, 11);
    struct bd_client *client = add_client(&world, true, &peer);
    ask(peer, 1, 0, MIB);
    expect(&world, peer, 1, 0, MIB); /* it is mapped from now on */

    struct bd_view *view = bd_view_new();
    uint8_t checks[4 * PAGES];
    uint8_t *copy = malloc(RIG_CHUNK);
    const uint8_t *data;
    CHECK(copy != NULL);
    bd_crc32c_pages(world.bytes, RIG_CHUNK, checks);
    CHECK_EQ(bd_view_pin(view, world.pack, GAP, RIG_CHUNK, &data), 0);
    CHECK(bd_view_holds(data, RIG_CHUNK, checks));
    CHECK(!bd_nbd_leaves_out(BD_NBD_STRUCTURED, 0, view));
    CHECK(bd_view_copy(view, copy));
    CHECK_EQ(memcmp(copy, world.bytes, RIG_CHUNK), 0);

    CHECK_EQ(ftruncate(world.fd, 2 * BD_PAGE), 0);
    CHECK(!bd_view_holds(data, RIG_CHUNK, checks));
    CHECK(bd_nbd_leaves_out(BD_NBD_STRUCTURED, 0, view)); /* which copying then finds out */
    CHECK(!bd_view_copy(view, copy));
    bd_view_release(view);
    free(copy);

    ask(peer, 2, 0, MIB);
    wait_for_mail(client);
    for (uint64_t index = 0; index < CHUNKS; index++)
        put_chunk(&world, index);
    ask(peer, 3, 0, MIB);
    expect(&world, peer, 3, 0, MIB);
    leave(client, peer);
    destroy(&world);
}

static bool has_stopped(struct bd_client *client)
{
    pthread_mutex_lock(&client->lock);
    bool stopped = client->stopped;
    pthread_mutex_unlock(&client->lock);
    return stopped;
}

/* Only the last worker that has clients gives back what all of them use. */
static void a_worker_without_clients_takes_nothing_from_others(void)
{
    struct world world;
    int peers[2];
    init_with(&world, 12, 2);
    struct bd_client *stays = add_client(&world, true, &peers[0]);
    struct bd_client *leaves = add_client(&world, true, &peers[1]);
    CHECK(stays->worker != leaves->worker);
    ask(peers[1], 1, 0, MIB);
    expect(&world, peers[1], 1, 0, MIB);
    ask(peers[0], 1, 0, MIB);
    expect(&world, peers[0], 1, 0, MIB);
    CHECK(world.pack->mapping != NULL);
    close(peers[1]);
    while (!has_stopped(leaves))
        continue;
    bd_client_release(leaves);
    CHECK(world.pack->mapping != NULL);
    close(peers[0]);
    while (!has_stopped(stays))
        continue;
    bd_client_release(stays);
    CHECK(world.pack->mapping == NULL);
    end_loop(&world);
    CHECK_EQ(lowest_free_descriptor(), world.free_fd);
    destroy(&world);
}

static void without_pipes_it_is_copied(void)
{
    struct world world;
    struct rlimit limit;
    int peer;
    init(&world, 5);
    struct bd_client *client = add_client(&world, true, &peer);
    bd_view_idle();
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
    struct rlimit few = {FEW_DESCRIPTORS, limit.rlim_max};
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    uint64_t before = spliced(client);
    ask(peer, 1, 0, MIB);
    expect(&world, peer, 1, 0, MIB);
    CHECK_EQ(spliced(client), before);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    ask(peer, 2, 0, MIB);
    expect(&world, peer, 2, 0, MIB);
    CHECK_EQ(spliced(client) - before, MIB);
    leave(client, peer);
    destroy(&world);
}

/* What is not in memory is for a thread that may wait. */
static void a_page_that_is_not_there_is_not_waited_for(void)
{
    struct world world;
    init(&world, 6);
    struct bd_view *view = bd_view_new();
    const uint8_t *data;
    CHECK_EQ(bd_site_arm("file.would-wait", 1, 0, 0), 0);
    CHECK_EQ(bd_view_pin(view, world.pack, GAP, RIG_CHUNK, &data), -EAGAIN);
    bd_sites_disarm();
    CHECK(!bd_view_has_pins(view));
    CHECK_EQ(bd_view_pin(view, world.pack, GAP, RIG_CHUNK, &data), 0);
    CHECK_EQ(memcmp(data, world.bytes, RIG_CHUNK), 0);
    bd_view_release(view);

    struct bd_read_fault fault;
    uint8_t *copy = malloc(MIB);
    CHECK_EQ(bd_site_arm("file.would-wait", 3, 0, 0), 0); /* after some chunks are pinned */
    CHECK_EQ(bd_volume_view(world.rig.volume, 0, MIB, copy, &view, &fault), -EAGAIN);
    CHECK(view == NULL);
    bd_sites_disarm();
    free(copy);
    destroy(&world);
}

static void a_pack_that_has_grown_is_mapped_anew(void)
{
    struct world world;
    init(&world, 7);
    uint64_t end = CHUNKS * (RIG_CHUNK + GAP);
    const uint8_t *data;
    struct bd_view *view = bd_view_new();
    CHECK_EQ(bd_view_pin(view, world.pack, GAP, RIG_CHUNK, &data), 0);
    const uint8_t *more;
    CHECK_EQ(bd_view_pin(view, world.pack, end, RIG_CHUNK, &more), -ENOTSUP); /* no such bytes */
    CHECK_EQ(pwrite(world.fd, world.bytes, RIG_CHUNK, (off_t)end), RIG_CHUNK);
    CHECK_EQ(bd_view_pin(view, world.pack, end, RIG_CHUNK, &more), 0);
    CHECK_EQ(memcmp(more, world.bytes, RIG_CHUNK), 0);
    CHECK_EQ(memcmp(data, world.bytes, RIG_CHUNK), 0); /* the first one is still there */
    bd_view_idle();
    CHECK_EQ(memcmp(data, more, RIG_CHUNK), 0);
    bd_view_release(view);
    destroy(&world);
}

static struct bd_pack *pack_of(int fd)
{
    struct bd_file file;
    bd_file_open_fd(&file, dup(fd));
    struct bd_pack *pack = bd_pack_new(file, 8);
    CHECK(pack != NULL);
    return pack;
}

/* Whatever the packs are like: short ones before long ones, or very many. */
static void what_is_mapped_is_bounded(void)
{
    enum { SHORT = 16, LONG = 3, MANY = BD_VIEW_MAPPINGS + SHORT };
    struct world world;
    struct bd_pack *packs[MANY];
    init(&world, 10);
    struct bd_view *view = bd_view_new();
    const uint8_t *data;
    for (int i = 0; i < MANY; i++) {
        packs[i] = pack_of(world.fd);
        CHECK_EQ(bd_site_arm("file.would-wait", 1, 0, 0), 0);
        CHECK_EQ(bd_view_pin(view, packs[i], 0, BD_PAGE, &data), -EAGAIN);
        CHECK(packs[i]->mapping != NULL);
    }
    bd_sites_disarm();
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(packs[i]->mapping != NULL, i >= MANY - BD_VIEW_MAPPINGS);
    int fd = new_file();
    CHECK_EQ(ftruncate(fd, BD_VIEW_MAPPED / 2), 0); /* all of it a hole */
    struct bd_pack *longs[LONG];
    for (int i = 0; i < LONG; i++) {
        longs[i] = pack_of(fd);
        CHECK_EQ(bd_view_pin(view, longs[i], 0, BD_PAGE, &data), -EAGAIN);
    }
    for (int i = 0; i < MANY; i++)
        CHECK(packs[i]->mapping == NULL);
    for (int i = 0; i < LONG; i++)
        CHECK_EQ(longs[i]->mapping != NULL, i > 0);
    close(fd);
    for (int i = 0; i < LONG; i++)
        bd_pack_release(longs[i]);
    for (int i = 0; i < MANY; i++)
        bd_pack_release(packs[i]);
    bd_view_release(view);
    destroy(&world);
}

/* More than a pipe has room for, and more than a view. */
static void what_does_not_fit_is_refused(void)
{
    struct world world;
    init(&world, 8);
    struct bd_view *view = bd_view_new();
    const uint8_t *data;
    unsigned pinned = 0;
    while (pinned <= BD_VIEW_PIECES && bd_view_pin(view, world.pack, GAP, RIG_CHUNK, &data) == 0)
        pinned++;
    CHECK(pinned > MIB / RIG_CHUNK && pinned <= BD_VIEW_PIECES);
    CHECK_EQ(view->piece_count, pinned);
    bd_view_release(view);
    struct memory_file memory;
    memory_file_init(&memory, RIG_CHUNK, 0);
    struct bd_pack *simulated = bd_pack_new(memory_file_open(&memory), 8);
    view = bd_view_new();
    CHECK_EQ(bd_view_pin(view, simulated, 0, RIG_CHUNK, &data), -ENOTSUP);
    bd_view_release(view);
    bd_pack_release(simulated);
    memory_file_destroy(&memory);
    destroy(&world);
}

/* A socket that takes no pages gets their bytes. */
static void what_takes_no_pages_gets_bytes(void)
{
    struct world world;
    int peer;
    init(&world, 9);
    struct bd_client *client = add_client(&world, false, &peer);
    uint8_t *copy = malloc(MIB);
    struct bd_view *view;
    struct bd_read_fault fault;
    CHECK_EQ(bd_volume_view(world.rig.volume, 0, MIB, copy, &view, &fault), 0);
    CHECK(view != NULL);
    int refusing = open("/dev/null", O_WRONLY | O_APPEND); /* splice(2): EINVAL */
    uint64_t before = spliced(client);
    CHECK_EQ(bd_view_splice(view, refusing, MIB, false), -EOPNOTSUPP);
    CHECK(view->copied);
    uint8_t header[BD_NBD_SIMPLE_REPLY] = {0};
    bd_put_be32(header, BD_NBD_SIMPLE_REPLY_MAGIC);
    bd_put_be64(header + 8, 1);
    struct iovec piece = {header, sizeof header};
    pthread_mutex_lock(&client->lock);
    bd_client_send_view(client, &piece, 1, NULL, view);
    pthread_mutex_unlock(&client->lock);
    bd_view_release(view);
    expect(&world, peer, 1, 0, MIB);
    CHECK_EQ(spliced(client), before);
    close(refusing);
    free(copy);
    leave(client, peer);
    destroy(&world);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN); /* as Python does */
    large_reads_send_the_pages_of_the_pack(true);
    large_reads_send_the_pages_of_the_pack(false);
    for (uint64_t seed = 0; seed < 4; seed++)
        any_mix_is_answered_in_order(seed);
    a_client_that_does_not_read_keeps_a_bounded_part();
    damage_is_never_sent();
    a_pack_that_is_cut_short_is_an_error_and_no_signal();
    a_worker_without_clients_takes_nothing_from_others();
    without_pipes_it_is_copied();
    a_page_that_is_not_there_is_not_waited_for();
    a_pack_that_has_grown_is_mapped_anew();
    what_is_mapped_is_bounded();
    what_does_not_fit_is_refused();
    what_takes_no_pages_gets_bytes();
    return 0;
}
