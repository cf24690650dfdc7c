/* Replay: exactly the records that are whole and follow each other, whatever lies behind them. */
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "rig.h"

enum { SEGMENT = 64 << 10, VOLUME = 1 << 24 };

static void test_everything_comes_back(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 8, VOLUME);
    uint64_t writes = 60;
    for (uint64_t i = 0; i < writes; i++) {
        rig_write(&rig, i * 4096, 4096, (uint8_t)(i + 1));
        if (i % 7 == 0)
            CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    }
    int status;
    CHECK_EQ(rig_do(&rig, BD_ACTION_UNMAP, 8192, 4096, NULL, &status), BD_ACTION_DONE);
    uint64_t lsn = rig.journal->next_lsn;
    uint32_t chain = rig.journal->chain;
    uint64_t sequence = rig.journal->next_sequence;
    for (int restarts = 0; restarts < 3; restarts++) {
        CHECK_EQ(rig_restart(&rig), lsn - 1);
        CHECK_EQ(rig.journal->next_lsn, lsn);
        CHECK_EQ(rig.journal->chain, chain);
        CHECK_EQ(rig.journal->next_sequence, sequence);
        CHECK_EQ(rig.volume->seq, writes + 1);
        for (uint64_t i = 0; i < writes; i++)
            rig_expect(&rig, i * 4096, 4096, i == 2 ? 0 : (uint8_t)(i + 1));
    }
    rig_write(&rig, 0, 4096, 200); /* and the log goes on */
    CHECK_EQ(rig_restart(&rig), lsn + 1);
    rig_expect(&rig, 0, 4096, 200);
    rig_destroy(&rig);
}

/* Cut the last record at each byte: it is gone, all before it is there, and appends go on. */
static void test_a_torn_tail(void)
{
    const uint64_t torn = BD_RECORD_HEADER + 1024;
    for (uint64_t kept = 0; kept <= torn; kept += kept < 70 || kept + 70 > torn ? 1 : 41) {
        struct rig rig;
        rig_init(&rig, SEGMENT, 2, VOLUME);
        rig_write(&rig, 0, 512, 1);
        rig_write(&rig, 512, 512, 2);
        uint64_t start = rig.journal->position;
        rig_write(&rig, 0, 1024, 3);
        CHECK_EQ(rig.journal->position, start + torn);
        memset(rig.files[0].bytes + start + kept, 0xa5, (size_t)(torn - kept));
        uint64_t whole = kept == torn;
        CHECK_EQ(rig_restart(&rig), 3 + whole);
        CHECK_EQ(rig.volume->seq, 2 + whole);
        rig_expect(&rig, 0, 512, whole ? 3 : 1);
        rig_expect(&rig, 512, 512, whole ? 3 : 2);
        rig_write(&rig, 1024, 512, 4);
        CHECK_EQ(rig_restart(&rig), 5 + whole); /* a mark of the new time, and the write */
        rig_expect(&rig, 1024, 512, 4);
        rig_expect(&rig, 512, 512, whole ? 3 : 2);
        rig_destroy(&rig);
    }
}

static void test_a_damaged_record_ends_the_log(void)
{
    for (uint64_t at = 0; at < BD_RECORD_HEADER + 512; at += 5) {
        struct rig rig;
        rig_init(&rig, SEGMENT, 2, VOLUME);
        rig_write(&rig, 0, 512, 1);
        uint64_t start = rig.journal->position;
        rig_write(&rig, 512, 512, 2);
        rig_write(&rig, 1024, 512, 3);
        rig.files[0].bytes[start + at] ^= 1;
        CHECK_EQ(rig_restart(&rig), 2);
        CHECK_EQ(rig.volume->active->extent_count, 1);
        rig_expect(&rig, 0, 512, 1);
        rig_destroy(&rig);
    }
}

/* Segments are recycled: behind the tail are whole records of an earlier lap. */
static void test_an_earlier_lap_does_not_come_back(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    for (int i = 0; i < 100; i++) {
        rig_write(&rig, (uint64_t)(i % 16) * 4096, 4096, (uint8_t)(i + 1));
        if (rig.journal->full_count == 1)
            rig_round(&rig);
    }
    uint64_t lsn = rig.journal->next_lsn;
    struct bd_replay replay = {.journal = rig.journal,
                               .volumes = &rig.volume,
                               .volume_count = 1,
                               .next_lsn = lsn,
                               .chain = rig.journal->chain,
                               .position = rig.journal->position};
    CHECK_EQ(bd_replay_segment(&replay, rig.journal->current->slot), 0);
    CHECK_EQ(replay.records, 0);
    CHECK_EQ(replay.next_lsn, lsn);
    rig_destroy(&rig);
}

struct one {
    struct rig rig;
    struct bd_replay replay;
    struct bd_volume *volumes[2];
};

/* A segment with `writes` records of 512 bytes, ready to be replayed from its head. */
static void one_init(struct one *one, int writes)
{
    rig_init(&one->rig, SEGMENT, 2, VOLUME);
    for (int i = 0; i < writes; i++)
        rig_write(&one->rig, (uint64_t)i * 512, 512, (uint8_t)(i + 1));
    one->volumes[0] = NULL;
    one->volumes[1] = one->rig.volume;
    one->replay = (struct bd_replay){.journal = one->rig.journal,
                                     .volumes = one->volumes,
                                     .volume_count = 2,
                                     .next_lsn = 1,
                                     .position = BD_SEGMENT_HEADER};
}

static void test_where_a_replay_does_not_begin(void)
{
    struct one one;
    one_init(&one, 3);
    struct bd_replay wrong = one.replay;
    wrong.next_lsn = 2;
    CHECK_EQ(bd_replay_segment(&wrong, 0), 0);
    CHECK_EQ(wrong.records, 0);
    wrong = one.replay;
    wrong.chain = 1;
    CHECK_EQ(bd_replay_segment(&wrong, 0), 0);
    CHECK_EQ(wrong.records, 0);
    wrong = one.replay;
    wrong.node_epoch = 2; /* the records are of epoch 1 */
    CHECK_EQ(bd_replay_segment(&wrong, 0), 0);
    CHECK_EQ(wrong.records, 0);
    CHECK_EQ(bd_replay_segment(&one.replay, 5), -ENOENT);
    CHECK_EQ(bd_replay_segment(&one.replay, BD_MAX_SLOTS), -ENOENT);
    rig_destroy(&one.rig);
}

static void test_hostile_positions(void)
{
    const uint64_t positions[] = {SEGMENT,    SEGMENT - 63,         SEGMENT + 64,
                                  UINT64_MAX, UINT64_MAX - 63,      UINT64_MAX - 511u,
                                  1,          BD_SEGMENT_HEADER + 1};
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        struct one one;
        one_init(&one, 1);
        one.replay.position = positions[i];
        CHECK_EQ(bd_replay_segment(&one.replay, 0), 0);
        CHECK_EQ(one.replay.records, 0);
        CHECK_EQ(bd_replay_proves(one.rig.journal, 0, positions[i], 100), 0);
        rig_destroy(&one.rig);
    }
}

static void test_records_of_unknown_volumes_are_counted(void)
{
    struct one one;
    one_init(&one, 3);
    one.replay.volume_count = 1;
    CHECK_EQ(bd_replay_segment(&one.replay, 0), 0);
    CHECK_EQ(one.replay.records, 4); /* with the mark */
    CHECK_EQ(one.replay.skipped, 3);
    CHECK_EQ(one.replay.last_ns, one.rig.now_ns);
    rig_destroy(&one.rig);
}

static void test_read_errors_are_told(void)
{
    struct one one;
    one_init(&one, 3);
    one.rig.files[0].fail_pread = -EIO;
    CHECK_EQ(bd_replay_segment(&one.replay, 0), -EIO);
    CHECK_EQ(bd_replay_proves(one.rig.journal, 0, BD_SEGMENT_HEADER, 1), -EIO);
    rig_destroy(&one.rig);
}

static void test_a_short_file_ends_the_log(void)
{
    for (size_t size = 0; size < BD_SEGMENT_HEADER + 64 + 2 * 576; size += 97) {
        struct one one;
        one_init(&one, 2);
        one.rig.files[0].size = size;
        CHECK_EQ(bd_replay_segment(&one.replay, 0), 0);
        CHECK(one.replay.records < 3);
        CHECK_EQ(bd_replay_proves(one.rig.journal, 0, BD_SEGMENT_HEADER, 5), 0);
        rig_destroy(&one.rig);
    }
}

static void test_a_record_of_a_later_version_is_refused(void)
{
    struct one one;
    one_init(&one, 2);
    uint8_t *second = one.rig.files[0].bytes + BD_SEGMENT_HEADER + 64 + 576;
    second[4] = BD_FORMAT_VERSION + 1;
    bd_put32(second + 60, bd_crc32c(0, second, 60));
    CHECK_EQ(bd_replay_segment(&one.replay, 0), -EPROTO);
    CHECK_EQ(one.replay.records, 2); /* the mark, the first write */
    bd_put64(second + 16, 99);       /* not the next one: bytes of no meaning */
    bd_put32(second + 60, bd_crc32c(0, second, 60));
    CHECK_EQ(bd_replay_segment(&one.replay, 0), 0);
    CHECK_EQ(one.replay.records, 2);
    rig_destroy(&one.rig);
}

static void put_mark(struct one *one, uint64_t position, uint64_t lsn, uint64_t synced, bool ours)
{
    struct bd_record mark = {.op = BD_RECORD_MARK, .lsn = lsn, .seq = synced, .node_epoch = 1};
    bd_record_sign(&mark,
                   ours ? one->rig.journal->store_uuid : (const uint8_t *)"another store id");
    bd_record_encode(&mark, one->rig.files[0].bytes + position);
}

static void test_what_proves_that_a_record_was_durable(void)
{
    struct one one;
    one_init(&one, 2);
    struct bd_journal *journal = one.rig.journal;
    const uint64_t tail = journal->position;
    CHECK_EQ(bd_replay_proves(journal, 0, tail, 4), 0);
    CHECK_EQ(bd_replay_proves(journal, 5, tail, 4), -ENOENT);
    for (uint64_t at = tail; at + 64 <= SEGMENT; at += 4096) {
        put_mark(&one, at, 6, 5, true);
        CHECK_EQ(bd_replay_proves(journal, 0, tail, 4), 1);
        CHECK_EQ(bd_replay_proves(journal, 0, tail, 5), 1);
        CHECK_EQ(bd_replay_proves(journal, 0, tail, 6), 0); /* it itself */
        CHECK_EQ(bd_replay_proves(journal, 0, at + 1, 4), 0);
        put_mark(&one, at, 6, 3, true); /* nothing was synced so far */
        CHECK_EQ(bd_replay_proves(journal, 0, tail, 4), 0);
        put_mark(&one, at, 4, 9, true); /* an earlier lap */
        CHECK_EQ(bd_replay_proves(journal, 0, tail, 4), 0);
        memset(one.rig.files[0].bytes + at, 0, 64);
    }
    rig_destroy(&one.rig);
}

/* A volume may hold another store's journal, or bytes made to look like one. Recycled segments have
 * them behind the tail; they must not keep this store from opening. */
static void test_marks_in_a_payload_prove_nothing(void)
{
    struct one one;
    one_init(&one, 2);
    put_mark(&one, one.rig.journal->position, 1000, 999, false);
    CHECK_EQ(bd_replay_proves(one.rig.journal, 0, one.rig.journal->position, 4), 0);
    rig_destroy(&one.rig);
}

static void test_a_resumed_segment_can_be_rotated_and_released(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 3, VOLUME);
    for (int i = 0; i < 20; i++)
        rig_write(&rig, (uint64_t)i * 4096, 4096, (uint8_t)(i + 1));
    rig_restart(&rig);
    for (int i = 20; i < 50; i++)
        rig_write(&rig, (uint64_t)i * 4096, 4096, (uint8_t)(i + 1));
    for (int i = 0; i < 50; i++)
        rig_expect(&rig, (uint64_t)i * 4096, 4096, (uint8_t)(i + 1));
    rig_round(&rig);
    CHECK_EQ(rig.journal->full_count, 0);
    rig_destroy(&rig);
}

int main(void)
{
    test_everything_comes_back();
    test_a_torn_tail();
    test_a_damaged_record_ends_the_log();
    test_an_earlier_lap_does_not_come_back();
    test_where_a_replay_does_not_begin();
    test_hostile_positions();
    test_records_of_unknown_volumes_are_counted();
    test_read_errors_are_told();
    test_a_short_file_ends_the_log();
    test_a_record_of_a_later_version_is_refused();
    test_what_proves_that_a_record_was_durable();
    test_marks_in_a_payload_prove_nothing();
    test_a_resumed_segment_can_be_rotated_and_released();
    return 0;
}
