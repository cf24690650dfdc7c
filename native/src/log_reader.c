#include "log_reader.h"

#include <errno.h>
#include <stdlib.h>

#include "crc32c.h"
#include "journal.h"
#include "sites.h"

enum { BUFFER_BYTES = 4 << 20 }; /* read at once; more than one record of any size */

int bd_log_open(struct bd_log_reader *reader)
{
    reader->buffer = malloc(BUFFER_BYTES);
    return reader->buffer == NULL ? -ENOMEM : 0;
}

void bd_log_close(struct bd_log_reader *reader)
{
    free(reader->buffer);
    reader->buffer = NULL;
}

const uint8_t *bd_log_bytes(struct bd_log_reader *reader, uint64_t position, uint64_t length,
                            int *error)
{
    *error = 0;
    if (position > reader->segment_bytes || length > reader->segment_bytes - position)
        return NULL;
    if (position < reader->start || position + length > reader->start + reader->filled) {
        uint64_t want = reader->segment_bytes - position;
        if (want > BUFFER_BYTES)
            want = BUFFER_BYTES;
        ssize_t got =
            reader->file->ops->pread(reader->file, reader->buffer, (size_t)want, position, false);
        if (got < 0) {
            *error = (int)got;
            return NULL;
        }
        reader->start = position;
        reader->filled = (uint64_t)got;
        if ((uint64_t)got < length)
            return NULL;
    }
    return reader->buffer + (position - reader->start);
}

static int record_at(struct bd_log_reader *reader, uint64_t position, struct bd_record *record,
                     const uint8_t **payload)
{
    int error;
    const uint8_t *bytes = bd_log_bytes(reader, position, BD_RECORD_HEADER, &error);
    if (bytes == NULL)
        return error;
    int known = bd_record_decode(bytes, record);
    if (known == -EBADMSG || record->lsn != reader->next_lsn ||
        record->node_epoch < reader->node_epoch)
        return 0;
    if (record->chain != reader->chain && !bd_site_fires(BD_SITE_ANY_CHAIN))
        return 0;
    if (known < 0)
        return known; /* the next record, by a later version: dropping the rest is no answer */
    *payload = NULL;
    if (bd_record_has_payload(record->op)) {
        uint64_t length = bd_record_payload(record);
        bytes = bd_log_bytes(reader, position, BD_RECORD_HEADER + length, &error);
        if (bytes == NULL)
            return error;
        *payload = bytes + BD_RECORD_HEADER;
        if (bd_crc32c(0, *payload, (size_t)length) != record->payload_crc &&
            !bd_site_fires(BD_SITE_ANY_PAYLOAD))
            return 0;
    }
    reader->found = position;
    return 1;
}

int bd_log_next(struct bd_log_reader *reader, struct bd_record *record, const uint8_t **payload)
{
    uint64_t position = reader->position;
    int result = record_at(reader, position, record, payload);
    if (result == 0 && position % BD_SECTOR != 0) {
        /* after a sync the log goes on at the next sector */
        position = (position + BD_SECTOR - 1) & ~(uint64_t)(BD_SECTOR - 1);
        result = record_at(reader, position, record, payload);
    }
    return result;
}

void bd_log_take(struct bd_log_reader *reader, const struct bd_record *record)
{
    reader->position = reader->found + bd_record_footprint(record);
    reader->next_lsn = record->lsn + 1;
    reader->chain = record->header_crc;
    reader->node_epoch = record->node_epoch;
}
