/* What the records of one segment say, for who has no store to apply them to: nothing is changed,
 * and volumes are only numbers. volume/rebuildlog.py puts the segments together. */
#ifndef BLOCKD_SCAN_H
#define BLOCKD_SCAN_H

#include <stddef.h>
#include <stdint.h>

#include "log_reader.h"

/* Records of a volume that change it, one right behind the other and of one epoch. */
struct bd_log_run {
    uint32_t volume;
    uint32_t epoch;
    uint64_t first; /* seq */
    uint64_t last;  /* seq */
    uint64_t end;   /* bytes: the highest offset behind one of them */
};

struct bd_scan {
    struct bd_log_reader reader; /* open; afterwards where the log goes on */
    struct bd_log_run *runs;
    size_t run_count;
    size_t run_capacity;
    /* HEAD, POINT and REFER records, in order: a struct bd_record, and its payload. Unaligned. */
    uint8_t *notes;
    size_t notes_length;
    size_t notes_capacity;
};

/* From reader.position on, up to the first record that does not fit. 0; -EPROTO: the next record is
 * of a later version, or refers to what this one does not know; another -errno. */
int bd_scan_segment(struct bd_scan *scan);

/* Free what was found, and close the reader. */
void bd_scan_close(struct bd_scan *scan);

#endif
