/* A write of the journal that fails: its tail stays where it was, and what the failure left behind
 * it never comes between the records before and the records after. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "rig.h"

enum { SEGMENT = 64 << 10, VOLUME = 1 << 24 };

static void fail_next(struct rig *rig, uint32_t slot, int error, size_t written)
{
    rig->files[slot].fail_pwritev = error;
    rig->files[slot].fail_written = written;
}

static void failing_write(struct rig *rig, uint64_t offset, uint64_t length, uint8_t byte, int want)
{
    static uint8_t data[SEGMENT];
    memset(data, byte, length);
    int status;
    CHECK_EQ(rig_do(rig, BD_ACTION_WRITE, offset, length, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, want);
}

static void test_the_tail_stays_in_place(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 1);
    uint64_t position = rig.journal->position;
    uint64_t lsn = rig.journal->next_lsn;
    uint32_t chain = rig.journal->chain;
    for (size_t written = 0; written < 4096 + 64; written += 64) {
        fail_next(&rig, 0, -ENOSPC, written);
        failing_write(&rig, 0, 4096, 2, -ENOSPC);
        CHECK_EQ(rig.journal->position, position);
        CHECK_EQ(rig.journal->next_lsn, lsn);
        CHECK_EQ(rig.journal->chain, chain);
        CHECK_EQ(rig.volume->seq, 1);
        rig_expect(&rig, 0, 4096, 1);
    }
    rig_write(&rig, 4096, 512, 3);
    rig_restart(&rig);
    rig_expect(&rig, 0, 4096, 1);
    rig_expect(&rig, 4096, 512, 3);
    rig_destroy(&rig);
}

static void test_a_failing_disk_seals(int error)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 1);
    fail_next(&rig, 0, -error, 0);
    failing_write(&rig, 0, 4096, 2, -error);
    CHECK_EQ(rig.journal->sealed, error);
    failing_write(&rig, 0, 4096, 2, -EIO);
    rig_expect(&rig, 0, 4096, 1);
    rig_destroy(&rig);
}

static void test_a_failing_disk_seals_before_a_segment_is_begun(int error)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    fail_next(&rig, 0, -error, 0);
    failing_write(&rig, 0, 4096, 2, -error);
    CHECK_EQ(rig.journal->sealed, error);
    rig_destroy(&rig);
}

static void test_what_is_refused_seals_nothing(int error)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 1);
    fail_next(&rig, 0, -error, 0);
    failing_write(&rig, 0, 4096, 2, -error);
    rig_expect(&rig, 0, 4096, 1);
    rig_write(&rig, 0, 4096, 3);
    rig_restart(&rig);
    rig_expect(&rig, 0, 4096, 3);
    rig_destroy(&rig);
}

/* The bytes of a failed write may be a whole valid record. What is written after a sync goes to
 * the next sector; a replay must not take the failed one for the next of the log. */
static void test_a_sync_after_a_failed_write_keeps_the_log_whole(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    fail_next(&rig, 0, -ENOSPC, 512 + 64);
    failing_write(&rig, 0, 512, 2, -ENOSPC);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    rig_write(&rig, 512, 512, 3);
    rig_write(&rig, 1024, 512, 4);
    rig_restart(&rig);
    rig_expect(&rig, 512, 512, 3);
    rig_expect(&rig, 1024, 512, 4);
    rig_destroy(&rig);
}

static void test_a_new_segment_after_a_failed_write_keeps_the_log_whole(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    for (int i = 0; i < 8; i++)
        rig_write(&rig, (uint64_t)i * 4096, 4096, 1);
    fail_next(&rig, 0, -ENOSPC, 512 + 64);
    failing_write(&rig, 0, 512, 2, -ENOSPC);
    static uint8_t data[28 << 10];
    memset(data, 3, sizeof data);
    int status;
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 1 << 20, sizeof data, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, 0);
    CHECK_EQ(rig.journal->current->slot, 1);
    rig_restart(&rig);
    rig_expect(&rig, 1 << 20, sizeof data, 3);
    rig_destroy(&rig);
}

/* Tried again with the very same bytes, the first of two failed records is as it was, and the
 * second still fits behind it. */
static void test_a_repeated_write_does_not_revive_what_failed_behind_it(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    uint8_t first[512];
    uint8_t second[512];
    memset(first, 2, sizeof first);
    memset(second, 9, sizeof second);
    struct bd_action both[2] = {
        {.kind = BD_ACTION_WRITE, .offset = 0, .length = 512, .data = first},
        {.kind = BD_ACTION_WRITE, .offset = 512, .length = 512, .data = second},
    };
    fail_next(&rig, 0, -ENOSPC, 2 * (512 + 64));
    bd_batch_execute(rig.volume, both, 2, rig.now_ns);
    CHECK_EQ(both[0].status, -ENOSPC);
    CHECK_EQ(both[1].status, -ENOSPC);
    rig_write(&rig, 0, 512, 2);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    rig_write(&rig, 1024, 512, 4);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    rig_restart(&rig);
    rig_expect(&rig, 0, 512, 2);
    rig_expect(&rig, 1024, 512, 4);
    rig_destroy(&rig);
}

static void test_a_header_that_cannot_be_written_begins_no_segment(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    fail_next(&rig, 0, -ENOSPC, 100);
    failing_write(&rig, 0, 512, 2, -ENOSPC);
    CHECK(rig.journal->current == NULL);
    CHECK_EQ(rig.journal->ready_count, 2);
    rig_write(&rig, 0, 512, 3);
    CHECK_EQ(rig.journal->current->slot, 0);
    rig_restart(&rig);
    rig_expect(&rig, 0, 512, 3);
    rig_destroy(&rig);
}

int main(void)
{
    test_the_tail_stays_in_place();
    static const int failing[] = {EIO, EROFS, ENXIO, ENODEV, EUCLEAN, ESTALE, EINVAL};
    for (size_t i = 0; i < sizeof failing / sizeof *failing; i++) {
        test_a_failing_disk_seals(failing[i]);
        test_a_failing_disk_seals_before_a_segment_is_begun(failing[i]);
    }
    static const int refused[] = {ENOSPC, EDQUOT, EFBIG, EACCES, EPERM, ENOMEM, EAGAIN};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        test_what_is_refused_seals_nothing(refused[i]);
    test_a_sync_after_a_failed_write_keeps_the_log_whole();
    test_a_new_segment_after_a_failed_write_keeps_the_log_whole();
    test_a_repeated_write_does_not_revive_what_failed_behind_it();
    test_a_header_that_cannot_be_written_begins_no_segment();
    return 0;
}
