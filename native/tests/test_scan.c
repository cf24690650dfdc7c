/* Looking through a segment: what it says of heads, points, trees and runs of records. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "locks.h"
#include "rig.h"
#include "scan.h"

enum { SEGMENT = 64 << 10, VOLUME = 1 << 24 };

static int scan(struct rig *rig, struct bd_scan *scan, struct bd_file *file)
{
    *file = memory_file_open(&rig->files[0]);
    *scan = (struct bd_scan){
        .reader = {
            .file = file, .segment_bytes = SEGMENT, .next_lsn = 1, .position = BD_SEGMENT_HEADER}};
    CHECK_EQ(bd_log_open(&scan->reader), 0);
    return bd_scan_segment(scan);
}

static void append(struct rig *rig, struct bd_record record, const void *payload)
{
    bd_lock(&rig->journal->lock);
    CHECK_EQ(bd_journal_add(rig->journal, NULL, record, payload, rig->now_ns, NULL), 0);
    CHECK_EQ(bd_journal_commit(rig->journal), 0);
    pthread_mutex_unlock(&rig->journal->lock);
}

static struct bd_record taken(const struct bd_scan *scan, size_t *at, const uint8_t **payload)
{
    struct bd_record record;
    CHECK(*at + sizeof record <= scan->notes_length);
    memcpy(&record, scan->notes + *at, sizeof record);
    *payload = scan->notes + *at + sizeof record;
    *at += sizeof record + (size_t)bd_record_payload(&record);
    return record;
}

static void test_what_a_segment_says(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    rig_write(&rig, 8192, 512, 2);
    append(&rig, (struct bd_record){.op = BD_RECORD_HEAD, .length = 5, .volume = 7, .seq = 9},
           "head!");
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0); /* the log goes on at the next sector */
    append(&rig, (struct bd_record){.op = BD_RECORD_POINT, .length = 6}, "point!");
    rig_write(&rig, 4096, 512, 3);

    struct bd_scan found;
    struct bd_file file;
    CHECK_EQ(scan(&rig, &found, &file), 0);
    CHECK_EQ(found.reader.next_lsn, rig.journal->next_lsn);
    CHECK_EQ(found.reader.chain, rig.journal->chain);
    CHECK_EQ(found.run_count, 1); /* what is between is not of the volume */
    CHECK_EQ(found.runs[0].volume, rig.volume->number);
    CHECK_EQ(found.runs[0].first, 1);
    CHECK_EQ(found.runs[0].last, 3);
    CHECK_EQ(found.runs[0].end, 8192 + 512);
    size_t at = 0;
    const uint8_t *payload;
    struct bd_record head = taken(&found, &at, &payload);
    CHECK_EQ(head.op, BD_RECORD_HEAD);
    CHECK_EQ(head.volume, 7);
    CHECK_EQ(head.seq, 9);
    CHECK(memcmp(payload, "head!", 5) == 0);
    CHECK_EQ(taken(&found, &at, &payload).op, BD_RECORD_POINT);
    CHECK(memcmp(payload, "point!", 6) == 0);
    CHECK_EQ(at, found.notes_length);
    bd_scan_close(&found);
    rig_destroy(&rig);
}

static void test_a_reference_that_makes_no_sense_is_of_a_later_version(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    uint8_t payload[BD_REFER_PAYLOAD] = {0}; /* version 0 */
    append(&rig, (struct bd_record){.op = BD_RECORD_REFER, .length = 4096, .seq = 1}, payload);
    struct bd_scan found;
    struct bd_file file;
    CHECK_EQ(scan(&rig, &found, &file), -EPROTO);
    CHECK_EQ(found.run_count, 0);
    bd_scan_close(&found);
    rig_destroy(&rig);
}

static void test_a_file_that_cannot_be_read(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    rig.files[0].fail_pread = -EIO;
    struct bd_scan found;
    struct bd_file file;
    CHECK_EQ(scan(&rig, &found, &file), -EIO);
    bd_scan_close(&found);
    rig_destroy(&rig);
}

int main(void)
{
    test_what_a_segment_says();
    test_a_reference_that_makes_no_sense_is_of_a_later_version();
    test_a_file_that_cannot_be_read();
    return 0;
}
