/* Replays that end before the log does, and what they pass over, note and collect. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "rig.h"

enum { SEGMENT = 64 << 10, VOLUME = 1 << 24, WRITES = 10 };

/* A second volume over the same journal, and a replay of the first segment into it. */
struct past {
    struct rig rig;
    struct bd_volume *volume;
    struct bd_volume *volumes[2]; /* the rig's volume is number 1 */
    struct bd_replay replay;
};

static void past_init(struct past *past, uint32_t epoch, uint64_t seq)
{
    rig_init(&past->rig, SEGMENT, 2, VOLUME);
    for (int i = 0; i < WRITES; i++)
        rig_write(&past->rig, (uint64_t)i * 512, 512, (uint8_t)(i + 1));
    struct bd_volume *live = past->rig.volume;
    CHECK_EQ(live->number, 1);
    past->volume = bd_volume_new(past->rig.journal, past->rig.table, 7, epoch, live->chunk_size,
                                 VOLUME, seq, 0);
    past->volumes[0] = NULL;
    past->volumes[1] = past->volume;
    past->replay = (struct bd_replay){.journal = past->rig.journal,
                                      .volumes = past->volumes,
                                      .volume_count = 2,
                                      .next_lsn = 1,
                                      .position = BD_SEGMENT_HEADER};
}

static void past_destroy(struct past *past)
{
    free(past->replay.points);
    free(past->replay.heads);
    bd_volume_free(past->volume);
    rig_destroy(&past->rig);
}

static void test_an_end_in_the_log_and_going_on_from_there(void)
{
    struct past past;
    past_init(&past, 0, 0);
    uint64_t last = past.rig.journal->next_lsn - 1;
    for (uint64_t lsn = 1; lsn <= last; lsn++) {
        past.replay.end_lsn = lsn;
        past.replay.ended = false;
        CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
        CHECK_EQ(past.replay.next_lsn, lsn + 1);
        CHECK_EQ(past.replay.ended, lsn < last);
    }
    CHECK_EQ(past.volume->seq, WRITES);
    CHECK_EQ(past.volume->active->data_bytes, WRITES * 512);
    past_destroy(&past);
}

static void test_an_end_by_seq(void)
{
    struct past past;
    past_init(&past, 0, 0);
    past.replay.end_volume = 1;
    past.replay.end_seq = 6;
    CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
    CHECK(past.replay.ended);
    CHECK_EQ(past.volume->seq, 6);
    past.replay.end_volume = 2; /* of another volume: no end for this one */
    CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
    CHECK_EQ(past.volume->seq, WRITES);
    past_destroy(&past);
}

static void test_what_the_volume_has_is_passed_over(void)
{
    struct past past;
    past_init(&past, 0, 4);
    CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
    CHECK_EQ(past.replay.skipped, 4);
    CHECK_EQ(past.volume->seq, WRITES);
    CHECK_EQ(past.volume->active->data_bytes, (WRITES - 4) * 512);
    past_destroy(&past);
}

static void test_records_of_an_earlier_epoch_are_passed_over(void)
{
    struct past past;
    past_init(&past, 1 << 20, 0);
    CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
    CHECK_EQ(past.replay.skipped, WRITES);
    CHECK_EQ(past.volume->seq, 0);
    CHECK_EQ(past.volume->active->extent_count, 0);
    past_destroy(&past);
}

static void test_the_newest_rows_are_kept(void)
{
    struct past past;
    past_init(&past, 0, 0);
    struct bd_log_row rows[4];
    past.replay.rows = rows;
    past.replay.rows_volume = 1;
    past.replay.row_capacity = 4;
    CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
    CHECK_EQ(past.replay.row_count, WRITES);
    for (uint64_t i = WRITES - 4; i < WRITES; i++) {
        CHECK_EQ(rows[i % 4].seq, i + 1);
        CHECK_EQ(rows[i % 4].offset, i * 512);
        CHECK_EQ(rows[i % 4].length, 512);
        CHECK_EQ(rows[i % 4].op, BD_RECORD_WRITE);
    }
    past_destroy(&past);
}

static void test_points_are_collected(void)
{
    struct past past;
    past_init(&past, 0, 0);
    struct bd_journal *journal = past.rig.journal;
    uint8_t payload[3000];
    uint64_t lsns[3];
    for (int i = 0; i < 3; i++) {
        memset(payload, 'a' + i, sizeof payload);
        struct bd_record record = {.op = BD_RECORD_POINT, .length = (uint64_t)(i + 1) * 1000};
        CHECK_EQ(bd_journal_add(journal, NULL, record, payload, 1, NULL), 0);
        CHECK_EQ(bd_journal_commit(journal), 0);
        lsns[i] = journal->next_lsn - 1;
        rig_write(&past.rig, 0, 512, 99);
    }
    past.replay.want_points = true;
    CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
    CHECK_EQ(past.volume->seq, WRITES + 3); /* a point is not a record of any volume */
    size_t at = 0;
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(bd_get64(past.replay.points + at), lsns[i]);
        CHECK_EQ(bd_get32(past.replay.points + at + 8), (i + 1) * 1000);
        CHECK_EQ(past.replay.points[at + BD_REPLAY_POINT_HEAD], 'a' + i);
        at += BD_REPLAY_POINT_HEAD + (size_t)(i + 1) * 1000;
    }
    CHECK_EQ(past.replay.points_length, at);
    past_destroy(&past);
}

enum { HEADS = 100 }; /* more than room is made for at first */

static uint64_t append_heads(struct bd_journal *journal)
{
    for (uint32_t i = 0; i < HEADS; i++) {
        struct bd_record record = {
            .op = BD_RECORD_HEAD, .volume = i, .volume_epoch = i + 1, .seq = i + 2, .length = 1};
        CHECK_EQ(bd_journal_add(journal, NULL, record, (const uint8_t *)"h", 1, NULL), 0);
        CHECK_EQ(bd_journal_commit(journal), 0);
    }
    return journal->next_lsn - 1;
}

static void test_heads_are_collected_when_asked_for(void)
{
    for (int wanted = 0; wanted < 2; wanted++) {
        struct past past;
        past_init(&past, 0, 0);
        uint64_t last = append_heads(past.rig.journal);
        past.replay.want_points = wanted != 0;
        CHECK_EQ(bd_replay_segment(&past.replay, 0), 0);
        CHECK_EQ(past.replay.head_count, wanted ? HEADS : 0);
        for (uint32_t i = 0; i < past.replay.head_count; i++) {
            const struct bd_log_head *head = &past.replay.heads[i];
            CHECK_EQ(head->lsn, last - (HEADS - 1 - i));
            CHECK_EQ(head->volume, i);
            CHECK_EQ(head->epoch, i + 1);
            CHECK_EQ(head->seq, i + 2);
            CHECK_EQ(head->node_epoch, past.rig.journal->node_epoch);
        }
        past_destroy(&past);
    }
}

static void test_a_retired_volume_takes_no_writes_until_it_is_revived(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    uint64_t lsn = rig.journal->next_lsn;
    uint8_t bytes[512] = {2};
    int status;
    bd_volume_retire(rig.volume, true);
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, 512, bytes, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ESHUTDOWN);
    CHECK_EQ(rig_do(&rig, BD_ACTION_UNMAP, 0, 512, NULL, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ESHUTDOWN);
    CHECK_EQ(rig.journal->next_lsn, lsn);
    bd_volume_retire(rig.volume, false);
    rig_expect(&rig, 0, 512, 1);
    rig_write(&rig, 0, 512, 3);
    rig_expect(&rig, 0, 512, 3);
    rig_destroy(&rig);
}

int main(void)
{
    test_an_end_in_the_log_and_going_on_from_there();
    test_an_end_by_seq();
    test_what_the_volume_has_is_passed_over();
    test_records_of_an_earlier_epoch_are_passed_over();
    test_the_newest_rows_are_kept();
    test_points_are_collected();
    test_heads_are_collected_when_asked_for();
    test_a_retired_volume_takes_no_writes_until_it_is_revived();
    return 0;
}
