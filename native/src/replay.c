/* Replay: reading the journal back after a start, and applying what it says. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "journal.h"
#include "locks.h"
#include "log_reader.h"
#include "sites.h"
#include "tap.h"
#include "volume.h"

static void note_row(struct bd_replay *replay, const struct bd_record *record)
{
    if (replay->rows == NULL || record->volume != replay->rows_volume)
        return;
    replay->rows[replay->row_count++ % replay->row_capacity] =
        (struct bd_log_row){.lsn = record->lsn,
                            .seq = record->seq,
                            .time_ns = replay->last_ns,
                            .offset = record->offset,
                            .length = record->length,
                            .epoch = record->volume_epoch,
                            .op = record->op};
}

/* A POINT, or a NOTE of the volume `number`. */
static int note_point(struct bd_replay *replay, const struct bd_record *record, uint32_t number,
                      const uint8_t *payload)
{
    size_t needed = replay->points_length + BD_REPLAY_POINT_HEAD + (size_t)record->length;
    if (needed > replay->points_capacity) {
        size_t capacity = needed * 2;
        uint8_t *grown = realloc(replay->points, capacity);
        if (grown == NULL)
            return -ENOMEM;
        replay->points = grown;
        replay->points_capacity = capacity;
    }
    uint8_t *at = replay->points + replay->points_length;
    bd_put64(at, record->lsn);
    bd_put32(at + 8, (uint32_t)record->length);
    bd_put32(at + 12, number);
    bd_put64(at + 16, record->seq);
    memcpy(at + BD_REPLAY_POINT_HEAD, payload, (size_t)record->length);
    replay->points_length = needed;
    return 0;
}

static int note_head(struct bd_replay *replay, const struct bd_record *record)
{
    if (replay->head_count == replay->head_capacity) {
        size_t capacity = replay->head_capacity == 0 ? 64 : replay->head_capacity * 2;
        struct bd_log_head *grown = realloc(replay->heads, capacity * sizeof *grown);
        if (grown == NULL)
            return -ENOMEM;
        replay->heads = grown;
        replay->head_capacity = capacity;
    }
    replay->heads[replay->head_count++] = (struct bd_log_head){.lsn = record->lsn,
                                                               .seq = record->seq,
                                                               .volume = record->volume,
                                                               .epoch = record->volume_epoch,
                                                               .node_epoch = record->node_epoch};
    return 0;
}

static struct bd_volume *volume_of(const struct bd_replay *replay, uint32_t number)
{
    return number < replay->volume_count ? replay->volumes[number] : NULL;
}

/* Of an epoch that the volume has nothing to do with any more: undone, or before a restore. */
static bool is_over(const struct bd_volume *volume, const struct bd_record *record)
{
    return record->volume_epoch < volume->epoch && !bd_site_fires(BD_SITE_ANY_EPOCH);
}

static bool beyond_end(const struct bd_replay *replay, const struct bd_record *record)
{
    if (replay->end_lsn != 0 && record->lsn > replay->end_lsn)
        return true;
    if (record->op == BD_RECORD_MARK)
        return replay->end_ns != 0 && record->offset > replay->end_ns;
    if (!bd_record_has_seq(record->op) || replay->end_volume == 0 ||
        record->volume != replay->end_volume || record->seq <= replay->end_seq)
        return false;
    const struct bd_volume *volume = volume_of(replay, record->volume);
    return volume == NULL || !is_over(volume, record);
}

static bool is_wanted(const struct bd_replay *replay, const struct bd_record *record)
{
    return replay->copy_volume != 0 && record->volume == replay->copy_volume &&
           bd_record_has_seq(record->op) && record->volume_epoch == replay->copy_epoch &&
           record->seq == replay->copy_seq + 1;
}

/* False: there is no room for it. */
static bool copy(struct bd_replay *replay, struct bd_record record, const uint8_t *payload)
{
    size_t footprint = (size_t)bd_record_footprint(&record);
    if (footprint > replay->copy_capacity - replay->copy_length)
        return false;
    uint8_t *at = replay->copy + replay->copy_length;
    memset(at, 0, footprint);
    if (payload != NULL)
        memcpy(at + BD_RECORD_HEADER, payload, (size_t)bd_record_payload(&record));
    bd_tap_strip(&record, at);
    replay->copy_length += footprint;
    replay->copy_seq = record.seq;
    return true;
}

static int apply(struct bd_replay *replay, struct bd_segment *segment, uint64_t position,
                 const struct bd_record *record, const uint8_t *payload)
{
    if (record->op == BD_RECORD_MARK) {
        replay->last_ns = record->offset;
        return 0;
    }
    if (record->op == BD_RECORD_HEAD) /* what it says is in meta as well, or meta is an old one */
        return replay->want_points ? note_head(replay, record) : 0;
    if (record->op == BD_RECORD_POINT)
        return replay->want_points ? note_point(replay, record, 0, payload) : 0;
    struct bd_volume *volume = volume_of(replay, record->volume);
    if (record->op == BD_RECORD_NOTE) {
        struct bd_note note;
        int error = bd_note_decode(payload, record->length, &note);
        if (error == 0 && replay->want_points && volume != NULL && !is_over(volume, record))
            error = note_point(replay, record, record->volume, payload);
        if (error < 0)
            return error;
        if (note.kind == BD_NOTE_RESTORE && !replay->want_points && volume != NULL &&
            record->seq > volume->seq && !is_over(volume, record)) {
            volume->epoch = UINT32_MAX; /* over a version of before, a replay ends here */
        }
    } else {
        note_row(replay, record);
    }
    /* A head may be ahead of the checkpoint: a restore moves one volume's head alone. */
    bool old = volume != NULL && (is_over(volume, record) || (record->seq <= volume->seq &&
                                                              !bd_site_fires(BD_SITE_ANY_EPOCH)));
    if (volume == NULL || old) {
        replay->skipped++;
        return 0;
    }
    uint32_t first_piece = segment->piece_count;
    if (record->op == BD_RECORD_WRITE) {
        int error = bd_segment_set_pieces(segment, first_piece, record->offset, payload,
                                          record->length, NULL);
        if (error < 0)
            return error;
        segment->piece_count += bd_pieces_of(record->offset, record->length);
    }
    if (record->op == BD_RECORD_REFER && !bd_volume_can_refer(volume, record, payload))
        return -EPROTO;
    bd_lock(&volume->lock);
    bd_volume_apply(volume, record, segment->slot, first_piece,
                    (uint32_t)position + BD_RECORD_HEADER, payload);
    pthread_mutex_unlock(&volume->lock);
    return 0;
}

int bd_replay_segment(struct bd_replay *replay, uint32_t slot)
{
    struct bd_journal *journal = replay->journal;
    struct bd_segment *segment = slot < BD_MAX_SLOTS ? journal->segments[slot] : NULL;
    if (segment == NULL)
        return -ENOENT;
    struct bd_log_reader reader = {.file = &segment->file,
                                   .segment_bytes = journal->segment_bytes,
                                   .next_lsn = replay->next_lsn,
                                   .chain = replay->chain,
                                   .node_epoch = replay->node_epoch,
                                   .position = replay->position};
    int result = bd_log_open(&reader);
    while (result == 0) {
        struct bd_record record;
        const uint8_t *payload = NULL;
        result = bd_log_next(&reader, &record, &payload);
        if (result != 1)
            break;
        result = 0;
        bool wanted = is_wanted(replay, &record);
        if (beyond_end(replay, &record) || (wanted && !copy(replay, record, payload))) {
            replay->ended = true;
            break;
        }
        result = apply(replay, segment, reader.found, &record, payload);
        if (result < 0)
            break;
        bd_log_take(&reader, &record);
        segment->last_lsn = record.lsn;
        replay->position = reader.position;
        replay->next_lsn = reader.next_lsn;
        replay->chain = reader.chain;
        replay->node_epoch = reader.node_epoch;
        replay->records++;
        if (wanted && replay->copy_seq >= replay->copy_end) {
            replay->ended = true;
            break;
        }
    }
    bd_log_close(&reader);
    return result;
}

int bd_replay_proves(struct bd_journal *journal, uint32_t slot, uint64_t position, uint64_t lsn)
{
    struct bd_segment *segment = slot < BD_MAX_SLOTS ? journal->segments[slot] : NULL;
    if (segment == NULL)
        return -ENOENT;
    struct bd_log_reader reader = {.file = &segment->file, .segment_bytes = journal->segment_bytes};
    int result = bd_log_open(&reader);
    position = (position + BD_RECORD_ALIGN - 1) & ~(uint64_t)(BD_RECORD_ALIGN - 1);
    for (; result == 0; position += BD_RECORD_ALIGN) {
        int error;
        const uint8_t *bytes = bd_log_bytes(&reader, position, BD_RECORD_HEADER, &error);
        if (bytes == NULL) {
            result = error;
            break;
        }
        struct bd_record record;
        if (bd_record_decode(bytes, &record) == 0 && record.op == BD_RECORD_MARK &&
            bd_record_is_signed(&record, journal->store_uuid) && record.lsn > lsn &&
            record.seq >= lsn)
            result = 1;
    }
    bd_log_close(&reader);
    return result;
}
