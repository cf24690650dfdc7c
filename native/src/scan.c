#include "scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int note_range(struct bd_scan *scan, const struct bd_record *record)
{
    bool has_range = bd_record_has_range(record->op);
    uint64_t end = has_range ? record->offset + record->length : 0;
    struct bd_log_run *run = scan->run_count == 0 ? NULL : &scan->runs[scan->run_count - 1];
    if (run != NULL && run->volume == record->volume && run->epoch == record->volume_epoch &&
        run->last + 1 == record->seq) {
        run->last = record->seq;
        if (end > run->end)
            run->end = end;
        return 0;
    }
    if (scan->run_count == scan->run_capacity) {
        size_t capacity = scan->run_capacity == 0 ? 64 : scan->run_capacity * 2;
        struct bd_log_run *grown = realloc(scan->runs, capacity * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        scan->runs = grown;
        scan->run_capacity = capacity;
    }
    scan->runs[scan->run_count++] = (struct bd_log_run){.volume = record->volume,
                                                        .epoch = record->volume_epoch,
                                                        .first = record->seq,
                                                        .last = record->seq,
                                                        .end = end};
    return 0;
}

static int note(struct bd_scan *scan, const struct bd_record *record, const uint8_t *payload)
{
    size_t length = (size_t)bd_record_payload(record);
    size_t needed = scan->notes_length + sizeof *record + length;
    if (needed > scan->notes_capacity) {
        size_t capacity = needed * 2;
        uint8_t *grown = realloc(scan->notes, capacity);
        if (grown == NULL)
            return -ENOMEM;
        scan->notes = grown;
        scan->notes_capacity = capacity;
    }
    memcpy(scan->notes + scan->notes_length, record, sizeof *record);
    memcpy(scan->notes + scan->notes_length + sizeof *record, payload, length);
    scan->notes_length = needed;
    return 0;
}

static int look_at(struct bd_scan *scan, const struct bd_record *record, const uint8_t *payload)
{
    int error = 0;
    if (record->op == BD_RECORD_REFER) {
        struct bd_refer refer;
        error = bd_refer_decode(payload, &refer);
    }
    if (record->op == BD_RECORD_NOTE) {
        struct bd_note found;
        error = bd_note_decode(payload, record->length, &found);
    }
    if (error == 0 && bd_record_has_seq(record->op))
        error = note_range(scan, record);
    if (error == 0 && (record->op == BD_RECORD_HEAD || record->op == BD_RECORD_POINT ||
                       record->op == BD_RECORD_REFER))
        error = note(scan, record, payload);
    return error;
}

int bd_scan_segment(struct bd_scan *scan)
{
    for (;;) {
        struct bd_record record;
        const uint8_t *payload = NULL;
        int result = bd_log_next(&scan->reader, &record, &payload);
        if (result != 1)
            return result;
        int error = look_at(scan, &record, payload);
        if (error < 0)
            return error;
        bd_log_take(&scan->reader, &record);
    }
}

void bd_scan_close(struct bd_scan *scan)
{
    bd_log_close(&scan->reader);
    free(scan->runs);
    free(scan->notes);
    scan->runs = NULL;
    scan->notes = NULL;
}
