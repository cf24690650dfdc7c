/* Reads of packs that are not in memory: entries that nobody has read yet, and who waits for the
 * disk. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "check.h"
#include "codec.h"
#include "crc32c.h"
#include "entry.h"
#include "lone.h"
#include "nbd_requests.h"
#include "nbd_serve.h"
#include "rig.h"

enum {
    SEGMENT = 4 << 20,
    CHUNKS = 8,
    VOLUME = CHUNKS * RIG_CHUNK,
    PAGES = RIG_CHUNK / BD_PAGE,
    TABLE = 4 * PAGES,
    ENTRY = BD_ENTRY_HEADER + TABLE + RIG_CHUNK,
    NUMBER = 7, /* of the pack */
    KIND = 1,
};

/* A pack on a disk that says who reads it. */
struct disk {
    uint8_t *bytes;
    size_t size;
    int error;
    atomic_uint cold; /* so many of 256 reads that must not wait would have to */
    atomic_uint tries;
    atomic_uint here; /* reads that may wait, by the first worker's thread */
    atomic_uint elsewhere;
    struct bd_loop *loop;
};

struct world {
    struct rig rig;
    struct disk disk;
    struct bd_pack *pack;
    uint8_t *bytes; /* what the volume has */
};

static ssize_t disk_pread(struct bd_file *file, void *data, size_t length, uint64_t offset,
                          bool nowait)
{
    struct disk *disk = file->object;
    uint64_t draw = atomic_fetch_add(&disk->tries, 1);
    if (nowait && random_below(&draw, 256) < disk->cold)
        return -EAGAIN;
    bool here = disk->loop != NULL && pthread_equal(pthread_self(), disk->loop->workers[0].thread);
    if (!nowait)
        atomic_fetch_add(here ? &disk->here : &disk->elsewhere, 1);
    if (disk->error != 0)
        return disk->error;
    if (offset >= disk->size)
        return 0;
    size_t there = disk->size - offset < length ? disk->size - (size_t)offset : length;
    memcpy(data, disk->bytes + offset, there);
    return (ssize_t)there;
}

static void disk_close(struct bd_file *file)
{
    (void)file;
}

static const struct bd_file_ops disk_ops = {.pread = disk_pread, .close = disk_close};

static const uint8_t *id_of(uint64_t index)
{
    static uint8_t id[BD_CHUNK_ID];
    memset(id, (int)index + 1, sizeof id);
    return id;
}

static void put_place(struct world *world, uint64_t index)
{
    CHECK_EQ(bd_table_put_entry(world->rig.table, 1, index, world->pack, index * ENTRY, RIG_CHUNK,
                                BD_CODEC_NONE, RIG_CHUNK, id_of(index), KIND),
             0);
}

static void put_entry(struct world *world, uint64_t index)
{
    uint8_t *entry = world->disk.bytes + index * ENTRY;
    uint8_t *table = entry + BD_ENTRY_HEADER;
    const uint8_t *data = world->bytes + index * RIG_CHUNK;
    memcpy(table + TABLE, data, RIG_CHUNK);
    bd_crc32c_pages(data, RIG_CHUNK, table);
    memset(entry, 0, BD_ENTRY_HEADER);
    memcpy(entry, "BENT", 4);
    entry[4] = KIND;
    bd_put32(entry + 8, NUMBER);
    bd_put32(entry + 12, (uint32_t)(index * ENTRY));
    bd_put32(entry + 16, RIG_CHUNK);
    bd_put32(entry + 20, RIG_CHUNK);
    memcpy(entry + 24, id_of(index), BD_CHUNK_ID);
    bd_put32(entry + 56, bd_crc32c(0, table, TABLE));
    bd_put32(entry + 60, bd_crc32c(0, entry, 60));
}

static void init(struct world *world, uint64_t seed)
{
    memset(world, 0, sizeof *world);
    rig_init(&world->rig, SEGMENT, 2, VOLUME);
    world->bytes = malloc(VOLUME);
    world->disk.size = CHUNKS * ENTRY;
    world->disk.bytes = malloc(world->disk.size);
    CHECK(world->bytes != NULL && world->disk.bytes != NULL);
    random_bytes(&seed, world->bytes, VOLUME);
    struct bd_file file = {.ops = &disk_ops, .object = &world->disk, .fd = -1};
    world->pack = bd_pack_new(file, NUMBER);
    CHECK(world->pack != NULL);
    for (uint64_t index = 0; index < CHUNKS; index++) {
        put_entry(world, index);
        put_place(world, index);
    }
}

static void destroy(struct world *world)
{
    rig_destroy(&world->rig);
    bd_pack_release(world->pack);
    free(world->disk.bytes);
    free(world->bytes);
}

static int read_some(struct world *world, uint64_t offset, size_t length, bool nowait)
{
    uint8_t *data = malloc(length);
    struct bd_read_fault fault;
    CHECK(data != NULL);
    int error = bd_volume_read(world->rig.volume, offset, length, data, nowait, &fault);
    if (error == 0)
        CHECK_EQ(memcmp(data, world->bytes + offset, length), 0);
    free(data);
    return error;
}

static int kind_of(struct world *world, uint64_t index)
{
    struct bd_chunk_place *place = bd_table_get(world->rig.table, 1, index);
    int kind = place == NULL ? -1 : place->kind;
    if (place != NULL)
        bd_chunk_place_release(place);
    return kind;
}

static void the_first_read_of_a_chunk_reads_its_entry(void)
{
    struct world world;
    init(&world, 1);
    size_t bytes = world.rig.table->bytes;
    CHECK_EQ(read_some(&world, 0, BD_PAGE, false), 0);
    CHECK_EQ(kind_of(&world, 0), BD_CHUNK_RAW);
    CHECK_EQ(kind_of(&world, 1), BD_CHUNK_ENTRY);
    CHECK_EQ(world.disk.elsewhere, 2);
    CHECK_EQ(read_some(&world, BD_PAGE, BD_PAGE, false), 0);
    CHECK_EQ(world.disk.elsewhere, 3);
    CHECK_EQ(read_some(&world, 100, VOLUME - 200, false), 0); /* all of them */
    CHECK_EQ(world.rig.table->entry_count, CHUNKS);
    CHECK_EQ(world.rig.table->bytes, bytes + CHUNKS * (TABLE - BD_CHUNK_ID - 1));
    destroy(&world);
}

static void who_must_not_wait_leaves_the_entry_as_it_is(void)
{
    struct world world;
    init(&world, 2);
    world.disk.cold = 256;
    CHECK_EQ(read_some(&world, 0, BD_PAGE, true), -EAGAIN);
    CHECK_EQ(kind_of(&world, 0), BD_CHUNK_ENTRY);
    CHECK_EQ(world.disk.elsewhere, 0);
    world.disk.cold = 0;
    CHECK_EQ(read_some(&world, 0, BD_PAGE, true), 0);
    CHECK_EQ(kind_of(&world, 0), BD_CHUNK_RAW);
    destroy(&world);
}

/* The place goes, and whoever can say what is wrong looks it up. */
static void an_entry_that_is_not_what_the_index_says_is_no_place(void)
{
    struct world world;
    init(&world, 3);
    for (size_t at = 0; at < BD_ENTRY_HEADER + TABLE; at++) {
        uint64_t missing[CHUNKS];
        put_place(&world, 1);
        world.disk.bytes[ENTRY + at] ^= 0x10;
        CHECK_EQ(read_some(&world, RIG_CHUNK, BD_PAGE, at % 2 == 0), -EAGAIN);
        CHECK_EQ(bd_volume_missing(world.rig.volume, 0, VOLUME, missing, CHUNKS), 1);
        CHECK_EQ(missing[0], 1);
        CHECK_EQ(read_some(&world, 2 * RIG_CHUNK, BD_PAGE, true), 0);
        world.disk.bytes[ENTRY + at] ^= 0x10;
    }
    put_place(&world, 1);
    CHECK_EQ(read_some(&world, RIG_CHUNK, BD_PAGE, true), 0);
    destroy(&world);
}

static void an_entry_of_another_chunk_is_no_place(void)
{
    struct world world;
    init(&world, 4);
    memcpy(world.disk.bytes, world.disk.bytes + ENTRY, ENTRY); /* whole, and elsewhere */
    CHECK_EQ(read_some(&world, 0, BD_PAGE, false), -EAGAIN);
    CHECK_EQ(kind_of(&world, 0), -1);
    world.disk.error = -EIO;
    CHECK_EQ(read_some(&world, RIG_CHUNK, BD_PAGE, false), -EAGAIN);
    CHECK_EQ(kind_of(&world, 1), -1);
    world.disk.error = 0;
    world.disk.size = 2 * ENTRY + BD_ENTRY_HEADER; /* cut short */
    CHECK_EQ(read_some(&world, 2 * RIG_CHUNK, BD_PAGE, false), -EAGAIN);
    CHECK_EQ(kind_of(&world, 2), -1);
    destroy(&world);
}

/* A round or gc takes a place out of the table while a read has it: it is not put back. */
static void a_place_that_has_gone_is_not_put_back(void)
{
    struct world world;
    init(&world, 5);
    struct bd_chunk_place *entry = bd_table_get(world.rig.table, 1, 3);
    struct bd_chunk_place *opened = NULL;
    bd_table_drop_pack(world.rig.table, NUMBER);
    CHECK_EQ(bd_entry_open(world.rig.table, entry, false, &opened), 0);
    CHECK_EQ(opened->kind, BD_CHUNK_RAW);
    CHECK_EQ(kind_of(&world, 3), -1);
    bd_chunk_place_release(opened);
    put_place(&world, 3); /* of a newer head */
    CHECK_EQ(bd_entry_open(world.rig.table, entry, false, &opened), 0);
    CHECK_EQ(kind_of(&world, 3), BD_CHUNK_ENTRY);
    bd_chunk_place_release(opened);
    world.disk.bytes[3 * ENTRY] ^= 1;
    CHECK_EQ(bd_entry_open(world.rig.table, entry, false, &opened), -EAGAIN);
    CHECK_EQ(kind_of(&world, 3), BD_CHUNK_ENTRY); /* that one may be good */
    bd_chunk_place_release(entry);
    destroy(&world);
}

static void lengths_that_no_chunk_has_are_refused(void)
{
    struct world world;
    init(&world, 6);
    struct bd_place_table *table = world.rig.table;
    struct {
        uint8_t codec;
        uint32_t stored;
    } const wrong[] = {{BD_CODEC_NONE, RIG_CHUNK - 1},     {BD_CODEC_NONE, 0},
                       {BD_CODEC_LZ4, RIG_CHUNK},          {BD_CODEC_LZ4, 0},
                       {BD_CODEC_NONE, RIG_CHUNK + 1},     {BD_CODEC_COUNT, RIG_CHUNK / 2},
                       {BD_CODEC_LZ4, RIG_CHUNK + BD_PAGE}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_EQ(bd_table_put_entry(table, 1, 0, world.pack, 0, RIG_CHUNK, wrong[i].codec,
                                    wrong[i].stored, id_of(0), KIND),
                 -EINVAL);
    CHECK_EQ(bd_table_put_entry(table, 1, 0, NULL, 0, RIG_CHUNK, BD_CODEC_NONE, RIG_CHUNK, id_of(0),
                                KIND),
             -EINVAL);
    destroy(&world);
}

/* Clients. */

struct served {
    struct world world;
    struct bd_client *client;
    int peer;
};

static void begin(struct served *served, uint64_t seed, unsigned readers)
{
    init(&served->world, seed);
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    struct bd_loop *loop = bd_loop_new(1, readers, 1);
    CHECK(loop != NULL);
    loop->long_wait_ns = UINT64_MAX; /* however busy the machine is */
    served->world.disk.loop = loop;
    served->client = bd_nbd_client_new(served->world.rig.volume, pair[0], &terms, NULL, 0);
    served->peer = pair[1];
    CHECK(served->client != NULL);
    CHECK_EQ(bd_loop_add(loop, served->client), 0);
}

static void end(struct served *served)
{
    struct bd_loop *loop = served->world.disk.loop;
    struct bd_client *told;
    close(served->peer);
    bd_loop_end(loop);
    while ((told = bd_loop_news(loop)) != NULL)
        bd_client_release(told);
    bd_client_release(served->client);
    bd_loop_free(loop);
    destroy(&served->world);
}

static void ask(struct served *served, uint64_t cookie, uint64_t offset, uint32_t length)
{
    uint8_t request[BD_NBD_REQUEST];
    put_request(request, BD_NBD_CMD_READ, cookie, offset, length);
    CHECK_EQ(send(served->peer, request, sizeof request, 0), (ssize_t)sizeof request);
}

/* The next reply, of any request: its cookie. */
static uint64_t take(struct served *served, const uint64_t *offsets, const uint32_t *lengths)
{
    static uint8_t data[VOLUME];
    uint8_t reply[BD_NBD_SIMPLE_REPLY];
    CHECK_EQ(recv(served->peer, reply, sizeof reply, MSG_WAITALL), (ssize_t)sizeof reply);
    CHECK_EQ(bd_get_be32(reply), BD_NBD_SIMPLE_REPLY_MAGIC);
    CHECK_EQ(bd_get_be32(reply + 4), 0);
    uint64_t cookie = bd_get_be64(reply + 8);
    CHECK_EQ(recv(served->peer, data, lengths[cookie], MSG_WAITALL), lengths[cookie]);
    CHECK_EQ(memcmp(data, served->world.bytes + offsets[cookie], lengths[cookie]), 0);
    return cookie;
}

/* As many at once as fit in the queues, some of which have to wait: all are answered, once. */
static void reads_that_wait_are_answered_by_whoever_read_them(uint64_t seed)
{
    enum { ROUNDS = 8, DEPTH = 200 };
    struct served served;
    begin(&served, seed, 1 + (unsigned)seed % 3);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t offsets[DEPTH];
        uint32_t lengths[DEPTH];
        bool answered[DEPTH] = {false};
        served.world.disk.cold = (unsigned)random_below(&seed, 257);
        if (round % 2 == 0)
            for (uint64_t index = 0; index < CHUNKS; index++)
                put_place(&served.world, index); /* entries anew */
        for (uint32_t i = 0; i < DEPTH; i++) {
            uint64_t most = random_below(&seed, 20) == 0 ? 2 * RIG_CHUNK : 2 * BD_PAGE;
            lengths[i] = 1 + (uint32_t)random_below(&seed, most);
            offsets[i] = random_below(&seed, VOLUME - lengths[i] + 1);
            ask(&served, i, offsets[i], lengths[i]);
        }
        for (int i = 0; i < DEPTH; i++) {
            uint64_t cookie = take(&served, offsets, lengths);
            CHECK(cookie < DEPTH && !answered[cookie]);
            answered[cookie] = true;
        }
    }
    end(&served);
}

static void read_one(struct served *served)
{
    uint64_t offset = 3 * BD_PAGE;
    uint32_t length = BD_PAGE;
    ask(served, 0, offset, length);
    CHECK_EQ(take(served, &offset, &length), 0);
}

static void a_lone_client_is_read_for_by_its_own_thread(void)
{
    struct served served;
    begin(&served, 20, 2);
    struct disk *disk = &served.world.disk;
    disk->cold = 256;
    for (int i = 0; i < BD_LONE_ROW; i++)
        read_one(&served);
    unsigned elsewhere = disk->elsewhere;
    unsigned here = disk->here;
    for (int i = 0; i < 50; i++)
        read_one(&served);
    CHECK_EQ(disk->elsewhere, elsewhere);
    CHECK_EQ(disk->here, here + 50);

    /* Two at once: what is under way is more than one. */
    uint64_t offsets[2] = {0, RIG_CHUNK};
    uint32_t lengths[2] = {BD_PAGE, BD_PAGE};
    uint8_t requests[2 * BD_NBD_REQUEST];
    for (uint64_t i = 0; i < 2; i++)
        put_request(requests + i * BD_NBD_REQUEST, BD_NBD_CMD_READ, i, offsets[i], lengths[i]);
    CHECK_EQ(send(served.peer, requests, sizeof requests, 0), (ssize_t)sizeof requests);
    take(&served, offsets, lengths);
    take(&served, offsets, lengths);
    here = disk->here;
    read_one(&served);
    CHECK_EQ(disk->here, here);
    end(&served);
}

/* Who is served by the same thread does not wait for the disk of another. */
static void a_client_among_others_is_read_for_elsewhere(void)
{
    struct served served;
    begin(&served, 21, 2);
    struct disk *disk = &served.world.disk;
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    struct bd_nbd_terms terms = {
        .replies = BD_NBD_SIMPLE, .size = VOLUME, .minimum_block = 1, .max_payload = VOLUME};
    struct bd_client *other = bd_nbd_client_new(served.world.rig.volume, pair[0], &terms, NULL, 0);
    CHECK(other != NULL);
    CHECK_EQ(bd_loop_add(disk->loop, other), 0);
    disk->cold = 256;
    for (int i = 0; i < 2 * BD_LONE_ROW; i++)
        read_one(&served);
    CHECK_EQ(disk->here, 0);
    close(pair[1]);
    bd_client_release(other);
    end(&served);
}

/* Of many that wait one is damaged: that one goes to Python, which says what is wrong. */
static void damage_among_reads_that_wait_is_told_of_alone(void)
{
    enum { DEPTH = 64 };
    struct served served;
    begin(&served, 22, 1);
    uint64_t offsets[DEPTH];
    uint32_t lengths[DEPTH];
    served.world.disk.cold = 256;
    served.world.disk.bytes[5 * ENTRY + BD_ENTRY_HEADER + TABLE + 40] ^= 1; /* its first page */
    for (uint32_t i = 0; i < DEPTH; i++) {
        offsets[i] = i == 30 ? 5 * RIG_CHUNK : i % 5 * RIG_CHUNK + BD_PAGE;
        lengths[i] = BD_PAGE;
        ask(&served, i, offsets[i], lengths[i]);
    }
    for (int i = 0; i < DEPTH - 1; i++)
        CHECK(take(&served, offsets, lengths) != 30);
    struct pollfd news = {.fd = bd_loop_fd(served.world.disk.loop), .events = POLLIN};
    CHECK_EQ(poll(&news, 1, 60000), 1);
    pthread_mutex_lock(&served.client->lock);
    CHECK_EQ(served.client->mail_length, BD_NBD_REQUEST);
    CHECK_EQ(bd_get_be64(served.client->mail + 8), 30);
    CHECK_EQ(served.client->jobs, 0);
    CHECK_EQ(served.client->job_bytes, 0);
    pthread_mutex_unlock(&served.client->lock);
    end(&served);
}

/* Who does not take replies is not read for without a bound. */
static void replies_that_are_not_taken_are_bounded(void)
{
    enum { DEPTH = 400 };
    struct served served;
    begin(&served, 23, 3);
    static uint64_t offsets[DEPTH];
    static uint32_t lengths[DEPTH];
    served.world.disk.cold = 256;
    for (uint32_t i = 0; i < DEPTH; i++) {
        offsets[i] = i % (CHUNKS - 1) * RIG_CHUNK + 1;
        lengths[i] = RIG_CHUNK;
        ask(&served, i, offsets[i], lengths[i]);
    }
    for (int i = 0; i < DEPTH; i++) {
        if (i % 64 == 0) {
            pthread_mutex_lock(&served.client->lock);
            CHECK(served.client->unsent <= BD_OUTPUT_HIGH + BD_MAX_JOBS * (RIG_CHUNK + 64));
            pthread_mutex_unlock(&served.client->lock);
        }
        CHECK(take(&served, offsets, lengths) < DEPTH);
    }
    end(&served);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN); /* as Python does */
    the_first_read_of_a_chunk_reads_its_entry();
    who_must_not_wait_leaves_the_entry_as_it_is();
    an_entry_that_is_not_what_the_index_says_is_no_place();
    an_entry_of_another_chunk_is_no_place();
    a_place_that_has_gone_is_not_put_back();
    lengths_that_no_chunk_has_are_refused();
    for (uint64_t seed = 10; seed < 16; seed++)
        reads_that_wait_are_answered_by_whoever_read_them(seed);
    a_lone_client_is_read_for_by_its_own_thread();
    a_client_among_others_is_read_for_elsewhere();
    damage_among_reads_that_wait_is_told_of_alone();
    replies_that_are_not_taken_are_bounded();
    return 0;
}
