/* Appends, segments and what becomes of them. Syncs and failures have files of their own. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "rig.h"

enum { SEGMENT = 64 << 10, VOLUME = 1 << 24 };

static int write_block(struct rig *rig, uint64_t offset, uint64_t length, int *status)
{
    static uint8_t data[4 << 20];
    CHECK(length <= sizeof data);
    return rig_do(rig, BD_ACTION_WRITE, offset, length, data, status);
}

static void test_segments_follow_each_other(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 3, VOLUME);
    CHECK_EQ(bd_journal_cut(rig.journal).sequence, 0);
    int status;
    int state = BD_ACTION_DONE;
    uint64_t written = 0;
    while (state == BD_ACTION_DONE) {
        state = write_block(&rig, 4096 * (written % 64), 4096, &status);
        CHECK_EQ(status, 0);
        written += state == BD_ACTION_DONE;
    }
    CHECK_EQ(state, BD_ACTION_WAIT_SPACE);
    CHECK_EQ(written, 3 * ((SEGMENT - BD_SEGMENT_HEADER) / (4096 + 64)));
    CHECK_EQ(rig.journal->full_count, 2);
    CHECK_EQ(rig.journal->ready_count, 0);
    CHECK_EQ(rig.volume->seq, written);
    for (uint32_t slot = 0; slot < 3; slot++) {
        struct bd_segment_header header;
        CHECK_EQ(bd_segment_header_decode(rig.files[slot].bytes, &header), 0);
        CHECK_EQ(header.slot, slot);
        CHECK_EQ(header.sequence, slot + 1);
        CHECK_EQ(header.segment_bytes, SEGMENT);
        CHECK(slot == 0 || header.first_lsn > 1);
    }
    rig_destroy(&rig);
}

static void test_release_recycle_remove(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 3, VOLUME);
    while (rig.journal->full_count < 2)
        CHECK_EQ(write_block(&rig, 0, 4096, NULL), BD_ACTION_DONE);
    uint64_t first_end = rig.journal->segments[0]->last_lsn;
    uint32_t slots[4];
    CHECK_EQ(bd_journal_release(rig.journal, first_end, slots, 4), 0); /* its last is not before */
    CHECK_EQ(bd_journal_release(rig.journal, first_end + 1, slots, 4), 0); /* the cut is its end */
    CHECK_EQ(bd_journal_release(rig.journal, first_end + 2, slots, 0), 0);
    CHECK_EQ(bd_journal_recycle(rig.journal, 0), -ENOENT); /* not free yet */
    atomic_fetch_add(&rig.journal->segments[0]->pins, 1);
    CHECK_EQ(bd_journal_release(rig.journal, first_end + 2, slots, 4), 0); /* somebody reads */
    atomic_fetch_sub(&rig.journal->segments[0]->pins, 1);
    CHECK_EQ(bd_journal_release(rig.journal, first_end + 2, slots, 4), 1);
    CHECK_EQ(slots[0], 0);
    CHECK_EQ(bd_journal_release(rig.journal, UINT64_MAX, slots, 4), 1); /* never the current one */
    CHECK_EQ(slots[0], 1);
    CHECK_EQ(rig.journal->full_count, 0);
    CHECK_EQ(bd_journal_recycle(rig.journal, 0), 0);
    CHECK_EQ(bd_journal_recycle(rig.journal, 0), -ENOENT);
    CHECK_EQ(rig.journal->ready_count, 1);
    CHECK_EQ(bd_journal_remove(rig.journal, 1), 0);
    CHECK(rig.files[1].closed);
    CHECK_EQ(bd_journal_remove(rig.journal, 1), -ENOENT);
    CHECK_EQ(bd_journal_remove(rig.journal, rig.journal->current->slot), -ENOENT);
    CHECK_EQ(bd_journal_remove(rig.journal, BD_MAX_SLOTS), -ENOENT);
    CHECK_EQ(bd_journal_add_ready(rig.journal, 1, memory_file_open(&rig.files[1])), 0);
    CHECK_EQ(bd_journal_add_ready(rig.journal, 1, memory_file_open(&rig.files[1])), -EEXIST);
    CHECK_EQ(bd_journal_add_ready(rig.journal, BD_MAX_SLOTS, rig.journal->current->file), -EINVAL);
    rig_destroy(&rig);
}

/* A checkpoint names the segment where the log was cut. The next record may not fit there and begin
 * another one: a replay still begins in the first. */
static void test_the_segment_of_the_cut_is_kept(void)
{
    for (int restarted = 0; restarted < 2; restarted++) {
        struct rig rig;
        rig_init(&rig, SEGMENT, 3, VOLUME);
        for (int i = 0; i < 14; i++)
            CHECK_EQ(write_block(&rig, 0, 4096, NULL), BD_ACTION_DONE);
        if (restarted) {
            rig_restart(&rig);
            rig.journal->current->last_lsn = 0; /* as where the checkpoint is the tail */
        }
        struct bd_cut cut = bd_journal_cut(rig.journal);
        CHECK_EQ(write_block(&rig, 0, 4096, NULL), BD_ACTION_DONE);
        CHECK_EQ(rig.journal->current->sequence, cut.sequence + 1);
        uint32_t slots[4];
        CHECK_EQ(bd_journal_release(rig.journal, cut.lsn, slots, 4), 0);
        CHECK_EQ(write_block(&rig, 0, 4096, NULL), BD_ACTION_DONE);
        cut = bd_journal_cut(rig.journal);
        CHECK_EQ(bd_journal_release(rig.journal, cut.lsn, slots, 4), 1);
        rig_destroy(&rig);
    }
}

static void test_laps(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 3, VOLUME);
    rig_holes(&rig, VOLUME / RIG_CHUNK);
    for (int i = 0; i < 500; i++) {
        rig_write(&rig, (uint64_t)(i % 100) * 4096, 4096, (uint8_t)i);
        rig_expect(&rig, (uint64_t)(i % 100) * 4096, 4096, (uint8_t)i);
        if (rig.journal->full_count == 2) {
            rig_round(&rig);
            rig_holes(&rig, VOLUME / RIG_CHUNK);
        }
    }
    CHECK(rig.journal->next_sequence > 20);
    rig_destroy(&rig);
}

static void test_the_reserve_is_for_trims(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 3, VOLUME);
    rig.journal->reserve = 1;
    while (write_block(&rig, 0, 4096, NULL) == BD_ACTION_DONE)
        ;
    CHECK_EQ(rig.journal->ready_count, 1);
    int status;
    for (int i = 0; i < 200; i++)
        CHECK_EQ(rig_do(&rig, i % 2 ? BD_ACTION_UNMAP : BD_ACTION_ZERO, 0, 1 << 20, NULL, &status),
                 BD_ACTION_DONE);
    CHECK_EQ(rig.journal->ready_count, 0);
    rig_expect(&rig, 0, 1 << 20, 0);
    rig_destroy(&rig);
}

static void test_no_space_left_on_the_disk(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 3, VOLUME);
    rig.journal->space_left = 4096 + 512;
    int status;
    CHECK_EQ(write_block(&rig, 0, 4096, &status), BD_ACTION_DONE);
    CHECK_EQ(status, 0);
    CHECK_EQ(rig.journal->space_left, 512);
    CHECK_EQ(write_block(&rig, 0, 4096, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ENOSPC);
    CHECK_EQ(rig.journal->space_left, 512);
    CHECK_EQ(write_block(&rig, 0, 512, &status), BD_ACTION_DONE);
    CHECK_EQ(status, 0);
    CHECK_EQ(rig_do(&rig, BD_ACTION_UNMAP, 0, 4096, NULL, &status), BD_ACTION_DONE);
    CHECK_EQ(status, 0);
    rig_destroy(&rig);
}

static void test_long_writes_are_cut_where_pages_are(void)
{
    for (uint64_t offset = 0; offset < 8192; offset += 1536) {
        struct rig rig;
        rig_init(&rig, SEGMENT, 16, VOLUME);
        uint64_t length = 3 * rig.journal->max_payload + 700;
        rig_write(&rig, offset, length, 0xee);
        const struct bd_extent_map *map = rig.volume->active;
        CHECK_EQ(map->extent_count, 4);
        struct bd_map_cursor at = {0, 0};
        const struct bd_extent *extent;
        while ((extent = bd_map_get(map, at)) != NULL) {
            CHECK(extent->length <= rig.journal->max_payload);
            CHECK(extent->start == offset || extent->start % 4096 == 0);
            at = bd_map_next(map, at);
        }
        rig_expect(&rig, offset, length, 0xee);
        rig_restart(&rig);
        rig_expect(&rig, offset, length, 0xee);
        rig_destroy(&rig);
    }
}

static void test_a_payload_above_the_segment(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    static uint8_t payload[SEGMENT];
    struct bd_record head = {.op = BD_RECORD_HEAD, .volume = 1, .length = sizeof payload};
    pthread_mutex_lock(&rig.journal->lock);
    CHECK_EQ(bd_journal_add(rig.journal, NULL, head, payload, 1, NULL), -EFBIG);
    CHECK_EQ(bd_journal_add(rig.journal, NULL, head, payload, 1, NULL), -EFBIG);
    CHECK_EQ(rig.journal->ready_count, 2); /* none was used up by trying */
    pthread_mutex_unlock(&rig.journal->lock);
    rig_write(&rig, 0, 4096, 1);
    rig_destroy(&rig);
}

static void test_marks_tell_the_time_and_what_is_durable(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    CHECK_EQ(rig.journal->next_lsn, 3); /* mark, write */
    rig_write(&rig, 0, 512, 1);
    CHECK_EQ(rig.journal->next_lsn, 4); /* the same moment: no other mark */
    rig.now_ns += 1000 * 1000;
    rig_write(&rig, 0, 512, 1);
    CHECK_EQ(rig.journal->next_lsn, 6);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    rig_write(&rig, 0, 512, 1);
    CHECK_EQ(rig.journal->next_lsn, 8);
    CHECK_EQ(rig.journal->marked_lsn, 5);
    rig.now_ns -= 500 * 1000; /* a clock that went back */
    rig_write(&rig, 0, 512, 1);
    CHECK_EQ(rig.journal->next_lsn, 10);
    rig_destroy(&rig);
}

static void test_sealed_from_outside(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    bd_journal_seal(rig.journal, EIO);
    bd_journal_seal(rig.journal, ENOSPC);
    CHECK_EQ(rig.journal->sealed, EIO); /* the first reason is the reason */
    int status;
    CHECK_EQ(write_block(&rig, 0, 512, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -EIO);
    rig_expect(&rig, 0, 512, 1);
    rig_destroy(&rig);
}

static void test_resume_wants_a_segment_of_its_own(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 1, VOLUME);
    CHECK_EQ(bd_journal_resume(rig.journal, 0, 4096, 1, 0), -ENOENT); /* ready, not adopted */
    CHECK_EQ(bd_journal_resume(rig.journal, 9, 4096, 1, 0), -ENOENT);
    CHECK_EQ(bd_journal_resume(rig.journal, BD_MAX_SLOTS, 4096, 1, 0), -ENOENT);
    CHECK_EQ(bd_journal_adopt(rig.journal, 1, memory_file_open(&rig.files[1]), 7), 0);
    CHECK_EQ(bd_journal_adopt(rig.journal, 2, memory_file_open(&rig.files[2]), 8), 0);
    CHECK_EQ(bd_journal_adopt(rig.journal, BD_MAX_SLOTS, rig.journal->segments[0]->file, 8),
             -EINVAL);
    CHECK_EQ(rig.journal->next_sequence, 9);
    CHECK_EQ(bd_journal_resume(rig.journal, 2, 4096 + 64, 5, 77), 0);
    CHECK_EQ(bd_journal_resume(rig.journal, 1, 4096, 5, 77), -ENOENT); /* there is one already */
    struct bd_cut cut = bd_journal_cut(rig.journal);
    CHECK_EQ(cut.position, 4096 + 512);
    CHECK_EQ(cut.lsn, 5);
    CHECK_EQ(cut.chain, 77);
    CHECK_EQ(cut.sequence, 8);
    rig_destroy(&rig);
}

static void test_no_segment_follows_the_last_one_that_there_can_be(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 3, VOLUME);
    rig.journal->next_sequence = BD_LAST_SEQUENCE;
    rig_write(&rig, 0, 4096, 1);
    CHECK(rig.journal->current->sequence == BD_LAST_SEQUENCE);
    static uint8_t data[64 << 10];
    int status = 0;
    for (int i = 0; i < SEGMENT / (int)sizeof data && status == 0; i++)
        rig_do(&rig, BD_ACTION_WRITE, 0, sizeof data, data, &status);
    CHECK_EQ(status, -EIO);
    CHECK_EQ(rig.journal->sealed, EIO);
    rig_destroy(&rig);
}

int main(void)
{
    test_segments_follow_each_other();
    test_release_recycle_remove();
    test_the_segment_of_the_cut_is_kept();
    test_laps();
    test_the_reserve_is_for_trims();
    test_no_space_left_on_the_disk();
    test_long_writes_are_cut_where_pages_are();
    test_a_payload_above_the_segment();
    test_marks_tell_the_time_and_what_is_durable();
    test_sealed_from_outside();
    test_resume_wants_a_segment_of_its_own();
    test_no_segment_follows_the_last_one_that_there_can_be();
    return 0;
}
