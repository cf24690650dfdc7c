/* Reads the records of a segment, one after the other. The bytes are hostile until checked; what
 * ends the log is the first record that is not the one expected next. */
#ifndef BLOCKD_LOG_READER_H
#define BLOCKD_LOG_READER_H

#include <stdint.h>

#include "file_io.h"
#include "record.h"

struct bd_log_reader {
    struct bd_file *file;
    uint64_t segment_bytes;
    /* Of the record that must come next, and where it is at the earliest. */
    uint64_t next_lsn;
    uint32_t chain;
    uint32_t node_epoch; /* or a later one */
    uint64_t position;

    uint64_t found; /* where bd_log_next has found it */
    uint8_t *buffer;
    uint64_t start; /* of the buffer, in the segment */
    uint64_t filled;
};

/* The first fields are set, the rest is zeros. 0 or -ENOMEM; either way it may be closed. */
int bd_log_open(struct bd_log_reader *reader);
void bd_log_close(struct bd_log_reader *reader);

/* Look at the next record: 1; 0 when there is none, so the log of this segment ends here; -errno,
 * of which -EPROTO says that it is there, but of a later version. `payload` is NULL or stays until
 * the next call. */
int bd_log_next(struct bd_log_reader *reader, struct bd_record *record, const uint8_t **payload);

/* Go on behind the record that bd_log_next has found. */
void bd_log_take(struct bd_log_reader *reader, const struct bd_record *record);

/* `length` bytes at `position`, until the next call; NULL: *error 0 past the end of the segment,
 * else -errno. */
const uint8_t *bd_log_bytes(struct bd_log_reader *reader, uint64_t position, uint64_t length,
                            int *error);

#endif
