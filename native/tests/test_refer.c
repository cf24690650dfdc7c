/* REFER records: ranges that read as parts of a tree of chunks, under what is written to them. */
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, CHUNKS = 16, VOLUME = CHUNKS * RIG_CHUNK, SECTOR = 512 };

static uint8_t buffer[VOLUME];

static int refer(struct rig *rig, uint64_t first, uint64_t count, uint64_t source, uint8_t root)
{
    struct bd_record record = {
        .op = BD_RECORD_REFER, .offset = first * RIG_CHUNK, .length = count * RIG_CHUNK};
    struct bd_refer what = {.height = 2, .source = source * RIG_CHUNK};
    memset(what.root, root, sizeof what.root);
    uint8_t payload[BD_REFER_PAYLOAD];
    bd_refer_encode(&what, payload);
    CHECK(bd_volume_can_refer(rig->volume, &record, payload));
    pthread_mutex_lock(&rig->journal->lock);
    int error = bd_journal_add(rig->journal, rig->volume, record, payload, rig->now_ns, NULL);
    if (error == 0)
        error = bd_journal_commit(rig->journal);
    pthread_mutex_unlock(&rig->journal->lock);
    return error;
}

static void put(struct rig *rig, uint64_t index, uint8_t byte)
{
    static uint8_t bytes[RIG_CHUNK];
    memset(bytes, byte, sizeof bytes);
    CHECK_EQ(
        bd_table_put(rig->table, 1, index, BD_CHUNK_DECODED, NULL, 0, RIG_CHUNK, bytes, RIG_CHUNK),
        0);
}

static void freeze(struct rig *rig)
{
    pthread_mutex_lock(&rig->journal->lock);
    pthread_mutex_lock(&rig->volume->lock);
    CHECK_EQ(bd_volume_freeze(rig->volume), 0);
    pthread_mutex_unlock(&rig->volume->lock);
    pthread_mutex_unlock(&rig->journal->lock);
}

static int read_error(struct rig *rig, uint64_t first, uint64_t count)
{
    struct bd_read_fault fault;
    return bd_volume_read(rig->volume, first * RIG_CHUNK, count * RIG_CHUNK, buffer, true, &fault);
}

/* What both maps say of a chunk: the root's byte, or 0; *source is its index in the tree. */
static uint8_t seen(const struct rig *rig, uint64_t index, uint64_t *source)
{
    const struct bd_refer *found = bd_volume_refer(rig->volume, rig->volume->active, index);
    if (found == NULL)
        found = bd_volume_refer(rig->volume, rig->volume->frozen, index);
    if (found == NULL)
        return 0;
    *source = found->source / RIG_CHUNK + (index - found->start / RIG_CHUNK);
    return found->root[0];
}

static void test_a_range_reads_as_another(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_holes(&rig, CHUNKS);
    rig_write(&rig, 2 * RIG_CHUNK, RIG_CHUNK, 9);
    CHECK_EQ(refer(&rig, 2, 3, 100, 0xaa), 0);
    CHECK_EQ(rig.volume->seq, 2);
    CHECK_EQ(rig.volume->active->data_bytes, 0);
    CHECK_EQ(read_error(&rig, 2, 1), -EAGAIN); /* neither the hole below nor what was written */
    uint64_t missing[CHUNKS];
    CHECK_EQ(bd_volume_missing(rig.volume, RIG_CHUNK, 4 * RIG_CHUNK, missing, CHUNKS), 3);
    for (uint64_t i = 0; i < 3; i++) {
        CHECK_EQ(missing[i], BD_REFERRED | (2 + i));
        put(&rig, missing[i], (uint8_t)(i + 1));
    }
    rig_expect(&rig, RIG_CHUNK, RIG_CHUNK, 0);
    for (uint64_t i = 0; i < 3; i++)
        rig_expect(&rig, (2 + i) * RIG_CHUNK, RIG_CHUNK, (uint8_t)(i + 1));
    rig_expect(&rig, 5 * RIG_CHUNK, RIG_CHUNK, 0);
    uint64_t source = 0;
    CHECK_EQ(seen(&rig, 1, &source), 0);
    CHECK_EQ(seen(&rig, 4, &source), 0xaa);
    CHECK_EQ(source, 102);
    rig_destroy(&rig);
}

static void test_a_source_before_the_range(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    CHECK_EQ(refer(&rig, 7, 2, 3, 0xaa), 0);
    uint64_t source = 0;
    CHECK_EQ(seen(&rig, 8, &source), 0xaa);
    CHECK_EQ(source, 4);
    rig_destroy(&rig);
}

static void test_what_is_written_over_it(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_holes(&rig, CHUNKS);
    CHECK_EQ(refer(&rig, 0, 4, 0, 0xaa), 0);
    for (uint64_t i = 0; i < 4; i++)
        put(&rig, BD_REFERRED | i, 7);
    rig_write(&rig, RIG_CHUNK + 4096, SECTOR, 9);
    CHECK_EQ(rig_do(&rig, BD_ACTION_UNMAP, 2 * RIG_CHUNK + SECTOR, RIG_CHUNK, NULL, NULL),
             BD_ACTION_DONE);
    rig_expect(&rig, RIG_CHUNK, 4096, 7);
    rig_expect(&rig, RIG_CHUNK + 4096, SECTOR, 9);
    rig_expect(&rig, RIG_CHUNK + 4096 + SECTOR, RIG_CHUNK - 4096, 7);
    rig_expect(&rig, 2 * RIG_CHUNK + SECTOR, RIG_CHUNK, 0);
    rig_expect(&rig, 3 * RIG_CHUNK + SECTOR, RIG_CHUNK - SECTOR, 7);
    CHECK(!bd_map_covers(rig.volume->active, RIG_CHUNK, RIG_CHUNK));
    CHECK(bd_map_covers(rig.volume->active, RIG_CHUNK + 4096, SECTOR));

    freeze(&rig);
    struct bd_read_fault fault;
    memset(buffer, 5, sizeof buffer);
    CHECK_EQ(bd_volume_read_frozen(rig.volume, 0, 4 * RIG_CHUNK, buffer, &fault), 0);
    for (uint64_t at = 0; at < 4 * RIG_CHUNK; at++) {
        uint8_t want = 5; /* what is referred to is left alone */
        if (at >= RIG_CHUNK + 4096 && at < RIG_CHUNK + 4096 + SECTOR)
            want = 9;
        if (at >= 2 * RIG_CHUNK + SECTOR && at < 3 * RIG_CHUNK + SECTOR)
            want = 0;
        CHECK_EQ(buffer[at], want);
    }
    rig_destroy(&rig);
}

static void test_the_newest_one_is_seen(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_holes(&rig, CHUNKS);
    CHECK_EQ(refer(&rig, 0, 4, 50, 0xaa), 0);
    for (uint64_t i = 0; i < 4; i++)
        put(&rig, BD_REFERRED | i, 1);
    freeze(&rig);
    rig_expect(&rig, 0, 4 * RIG_CHUNK, 1);
    rig_write(&rig, 3 * RIG_CHUNK, SECTOR, 3);
    CHECK_EQ(refer(&rig, 1, 1, 80, 0xbb), 0);
    CHECK_EQ(read_error(&rig, 1, 1), -EAGAIN); /* the place of the older one does not count */
    uint64_t source = 0;
    CHECK_EQ(seen(&rig, 1, &source), 0xbb);
    CHECK_EQ(source, 80);
    CHECK_EQ(seen(&rig, 0, &source), 0xaa);
    CHECK_EQ(seen(&rig, 3, &source), 0xaa); /* in part, below what was written since */
    CHECK_EQ(source, 53);
    put(&rig, BD_REFERRED | 1, 2);
    rig_expect(&rig, RIG_CHUNK, RIG_CHUNK, 2);
    rig_expect(&rig, 3 * RIG_CHUNK + SECTOR, RIG_CHUNK - SECTOR, 1);

    bd_volume_commit(rig.volume, 1); /* the frozen one is in chunks */
    CHECK_EQ(read_error(&rig, 2, 1), -EAGAIN);
    CHECK_EQ(seen(&rig, 2, &source), 0);
    CHECK_EQ(seen(&rig, 1, &source), 0xbb);
    CHECK(bd_table_get(rig.table, 1, BD_REFERRED | 2) == NULL);
    rig_destroy(&rig);
}

static void test_it_comes_back(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, SECTOR, 1);
    CHECK_EQ(refer(&rig, 4, 8, 20, 0xcc), 0);
    rig_write(&rig, 6 * RIG_CHUNK, RIG_CHUNK, 2);
    for (int i = 0; i < 40; i++) /* more than the first allocation holds */
        CHECK_EQ(refer(&rig, 12 + (uint64_t)i % 4, 1, (uint64_t)i, 0xdd), 0);
    rig_restart(&rig);
    uint64_t source = 0;
    CHECK_EQ(rig.volume->seq, 43);
    CHECK_EQ(seen(&rig, 3, &source), 0);
    CHECK_EQ(seen(&rig, 4, &source), 0xcc);
    CHECK_EQ(source, 20);
    CHECK_EQ(seen(&rig, 6, &source), 0);
    CHECK_EQ(seen(&rig, 11, &source), 0xcc);
    CHECK_EQ(source, 27);
    CHECK_EQ(seen(&rig, 15, &source), 0xdd);
    CHECK_EQ(source, 39);
    rig_expect(&rig, 6 * RIG_CHUNK, RIG_CHUNK, 2);
    rig_destroy(&rig);
}

/* The payload of the only record, changed; what a replay says of it. */
static int replayed_with(struct rig *rig, int at, uint8_t byte)
{
    uint8_t *header = rig->files[0].bytes + BD_SEGMENT_HEADER + BD_RECORD_HEADER; /* after a mark */
    uint8_t *payload = header + BD_RECORD_HEADER;
    CHECK_EQ(header[5], BD_RECORD_REFER);
    payload[at] = byte;
    bd_put32(header + 52, bd_crc32c(0, payload, BD_REFER_PAYLOAD));
    bd_put32(header + 60, bd_crc32c(0, header, 60));
    struct bd_volume *volumes[2] = {
        NULL, bd_volume_new(rig->journal, rig->table, 1, 1, RIG_CHUNK, VOLUME, 0, 0)};
    struct bd_replay replay = {.journal = rig->journal,
                               .volumes = volumes,
                               .volume_count = 2,
                               .next_lsn = 1,
                               .position = BD_SEGMENT_HEADER};
    int result = bd_replay_segment(&replay, rig->journal->current->slot);
    bd_volume_free(volumes[1]);
    return result;
}

static void test_what_is_not_known_is_refused(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 1, VOLUME);
    CHECK_EQ(refer(&rig, 0, 1, 1, 0xee), 0);
    CHECK_EQ(replayed_with(&rig, 0, 0xee), 0);
    CHECK_EQ(replayed_with(&rig, 40, BD_REFER_VERSION + 1), -EPROTO);
    CHECK_EQ(replayed_with(&rig, 40, BD_REFER_VERSION), 0);
    CHECK_EQ(replayed_with(&rig, 32, 1), -EPROTO); /* the source is no whole chunk */
    rig_destroy(&rig);
}

int main(void)
{
    test_a_range_reads_as_another();
    test_a_source_before_the_range();
    test_what_is_written_over_it();
    test_the_newest_one_is_seen();
    test_it_comes_back();
    test_what_is_not_known_is_refused();
    return 0;
}
