#include "journal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"
#include "locks.h"
#include "sites.h"

static const uint64_t write_behind_bytes = 512 * 1024;

static uint64_t sector_up(uint64_t position)
{
    return (position + BD_SECTOR - 1) & ~(uint64_t)(BD_SECTOR - 1);
}

struct bd_journal *bd_journal_new(const uint8_t store_uuid[16], uint64_t segment_bytes,
                                  uint32_t node_epoch)
{
    struct bd_journal *journal = calloc(1, sizeof *journal);
    if (journal == NULL)
        return NULL;
    pthread_mutex_init(&journal->sync_lock, NULL);
    atomic_init(&journal->sync_waiters, 0);
    pthread_mutex_init(&journal->lock, NULL);
    memcpy(journal->store_uuid, store_uuid, 16);
    journal->segment_bytes = segment_bytes;
    /* Two records fit a segment at least, so that little of its end is wasted. */
    journal->max_payload = (segment_bytes - BD_SEGMENT_HEADER) / 2 & ~(uint64_t)(BD_PAGE - 1);
    if (journal->max_payload > BD_RECORD_MAX_PAYLOAD)
        journal->max_payload = BD_RECORD_MAX_PAYLOAD;
    journal->node_epoch = node_epoch;
    journal->next_lsn = 1;
    journal->next_sequence = 1;
    journal->space_left = INT64_MAX;
    bd_ways_init(&journal->ways);
    return journal;
}

static void free_pieces(struct bd_segment *segment)
{
    for (int i = 0; i < BD_PIECE_BLOCKS; i++) {
        free(segment->pieces[i]);
        segment->pieces[i] = NULL;
    }
    segment->piece_count = 0;
}

void bd_journal_free(struct bd_journal *journal)
{
    for (uint32_t slot = 0; slot < journal->slot_limit; slot++) {
        struct bd_segment *segment = journal->segments[slot];
        if (segment != NULL) {
            segment->file.ops->close(&segment->file);
            free_pieces(segment);
            free(segment);
        }
    }
    pthread_mutex_destroy(&journal->lock);
    pthread_mutex_destroy(&journal->sync_lock);
    free(journal);
}

static void push_ready(struct bd_journal *journal, struct bd_segment *segment)
{
    segment->state = BD_SEGMENT_READY;
    journal->ready[(journal->ready_head + journal->ready_count) % BD_MAX_SLOTS] = segment->slot;
    journal->ready_count++;
}

/* Slot of the ready segment that is `number` places behind the next one. */
static uint32_t ready_at(const struct bd_journal *journal, uint32_t number)
{
    return journal->ready[(journal->ready_head + number) % BD_MAX_SLOTS];
}

static struct bd_segment *new_segment(uint32_t slot, struct bd_file file)
{
    struct bd_segment *segment = calloc(1, sizeof *segment);
    if (segment != NULL) {
        segment->slot = slot;
        segment->file = file;
        atomic_init(&segment->pins, 0);
    }
    return segment;
}

static int register_segment(struct bd_journal *journal, struct bd_segment *segment)
{
    if (journal->segments[segment->slot] != NULL)
        return -EEXIST;
    journal->segments[segment->slot] = segment;
    if (segment->slot >= journal->slot_limit)
        journal->slot_limit = segment->slot + 1;
    return 0;
}

int bd_journal_add_ready(struct bd_journal *journal, uint32_t slot, struct bd_file file)
{
    if (slot >= BD_MAX_SLOTS)
        return -EINVAL;
    struct bd_segment *segment = new_segment(slot, file);
    if (segment == NULL)
        return -ENOMEM;
    bd_lock(&journal->lock);
    int result = register_segment(journal, segment);
    if (result == 0)
        push_ready(journal, segment);
    pthread_mutex_unlock(&journal->lock);
    if (result < 0)
        free(segment);
    return result;
}

int bd_journal_adopt(struct bd_journal *journal, uint32_t slot, struct bd_file file,
                     uint64_t sequence)
{
    if (slot >= BD_MAX_SLOTS)
        return -EINVAL;
    struct bd_segment *segment = new_segment(slot, file);
    if (segment == NULL)
        return -ENOMEM;
    segment->state = BD_SEGMENT_FULL;
    segment->sequence = sequence;
    segment->dirty = true; /* after a kill -9 its last pages may be in memory only */
    bd_lock(&journal->lock);
    int result = register_segment(journal, segment);
    if (result == 0) {
        journal->full_count++;
        if (sequence >= journal->next_sequence)
            journal->next_sequence = sequence + 1;
    }
    pthread_mutex_unlock(&journal->lock);
    if (result < 0)
        free(segment);
    return result;
}

int bd_journal_recycle(struct bd_journal *journal, uint32_t slot)
{
    int result = -ENOENT;
    bd_lock(&journal->lock);
    struct bd_segment *segment = slot < BD_MAX_SLOTS ? journal->segments[slot] : NULL;
    if (segment != NULL && segment->state == BD_SEGMENT_FREE) {
        push_ready(journal, segment);
        result = 0;
    }
    pthread_mutex_unlock(&journal->lock);
    bd_fail_point(BD_SITE_JOURNAL_RECYCLE_AFTER);
    return result;
}

int bd_journal_withdraw(struct bd_journal *journal, uint32_t slot)
{
    int result = -ENOENT;
    bd_lock(&journal->lock);
    for (uint32_t at = 0; at < journal->ready_count && result == -ENOENT; at++) {
        if (ready_at(journal, at) != slot)
            continue;
        result = -EAGAIN;
        if (journal->ready_count - 1 <= journal->reserve)
            break;
        for (uint32_t next = at + 1; next < journal->ready_count; next++)
            journal->ready[(journal->ready_head + next - 1) % BD_MAX_SLOTS] =
                ready_at(journal, next);
        journal->ready_count--;
        journal->segments[slot]->state = BD_SEGMENT_FREE;
        result = 0;
    }
    pthread_mutex_unlock(&journal->lock);
    return result;
}

void bd_journal_move_on(struct bd_journal *journal)
{
    bd_lock(&journal->lock);
    journal->move_on = true;
    pthread_mutex_unlock(&journal->lock);
}

int bd_journal_remove(struct bd_journal *journal, uint32_t slot)
{
    int result = -ENOENT;
    bd_lock(&journal->lock);
    struct bd_segment *segment = slot < BD_MAX_SLOTS ? journal->segments[slot] : NULL;
    if (segment != NULL && segment->state == BD_SEGMENT_FREE && segment->pins == 0) {
        journal->segments[slot] = NULL;
        result = 0;
    }
    pthread_mutex_unlock(&journal->lock);
    if (result == 0) {
        segment->file.ops->close(&segment->file);
        free_pieces(segment);
        free(segment);
    }
    return result;
}

void bd_journal_seal(struct bd_journal *journal, int error)
{
    bd_lock(&journal->lock);
    if (journal->sealed == 0)
        journal->sealed = error;
    pthread_mutex_unlock(&journal->lock);
}

struct bd_cut bd_journal_cut(const struct bd_journal *journal)
{
    return (struct bd_cut){.lsn = journal->next_lsn,
                           .sequence = journal->current ? journal->current->sequence : 0,
                           .position = journal->position,
                           .chain = journal->chain};
}

/* The sync lock is held: what another sync has taken over is not dirty any more, but not durable
 * yet either. It is let go of here. */
static int sync_all(struct bd_journal *journal, uint64_t *synced_lsn)
{
    bd_lock(&journal->lock);
    int error = journal->sealed != 0 ? -EIO : 0;
    uint64_t target = journal->next_lsn - 1;
    uint32_t count = 0;
    struct bd_segment **dirty = NULL;
    /* What a flush promised must not share a sector with what is written later: a power cut in
     * the middle of that sector's write would take it along. (Where a failed write has been, the
     * next record goes right there: a replay would find the failed one first.) */
    if (journal->position >= journal->stale_end && !bd_site_fires(BD_SITE_SHARED_SECTOR))
        journal->position = sector_up(journal->position);
    if (error == 0 && journal->current != NULL) {
        dirty = malloc((journal->full_count + 1) * sizeof(struct bd_segment *));
        if (dirty == NULL)
            error = -ENOMEM;
    }
    if (dirty != NULL) {
        for (uint32_t slot = 0; slot < journal->slot_limit && count <= journal->full_count;
             slot++) {
            struct bd_segment *segment = journal->segments[slot];
            if (segment == NULL || !segment->dirty)
                continue;
            segment->dirty = false; /* whoever appends from here on sets it again */
            atomic_fetch_add(&segment->pins, 1);
            dirty[count++] = segment;
        }
    }
    pthread_mutex_unlock(&journal->lock);

    bd_fail_point(BD_SITE_JOURNAL_SYNC_BEFORE);
    for (uint32_t i = 0; i < count; i++) {
        if (error == 0 && !bd_site_fires(BD_SITE_NOT_SYNCED))
            error = dirty[i]->file.ops->sync(&dirty[i]->file);
        atomic_fetch_sub(&dirty[i]->pins, 1);
    }
    bd_fail_point(BD_SITE_JOURNAL_SYNC_AFTER);
    free(dirty);

    bd_lock(&journal->lock);
    if (error < 0 && error != -ENOMEM && journal->sealed == 0)
        journal->sealed = -error;
    if (error == 0 && target > journal->synced_lsn)
        journal->synced_lsn = target;
    if (synced_lsn != NULL)
        *synced_lsn = journal->synced_lsn;
    pthread_mutex_unlock(&journal->lock);
    pthread_mutex_unlock(&journal->sync_lock);
    return error;
}

int bd_journal_sync(struct bd_journal *journal, uint64_t *synced_lsn)
{
    atomic_fetch_add(&journal->sync_waiters, 1);
    bd_lock(&journal->sync_lock);
    atomic_fetch_sub(&journal->sync_waiters, 1);
    return sync_all(journal, synced_lsn);
}

int bd_journal_try_sync(struct bd_journal *journal)
{
    if (atomic_load(&journal->sync_waiters) > 0 || pthread_mutex_trylock(&journal->sync_lock) != 0)
        return -EBUSY;
    return sync_all(journal, NULL);
}

bool bd_journal_write_behind(struct bd_journal *journal)
{
    bd_lock(&journal->lock);
    struct bd_segment *segment = journal->current;
    uint64_t from = journal->behind;
    uint64_t to = journal->position & ~(uint64_t)(BD_PAGE - 1); /* the last page is not full yet */
    bool much = segment != NULL && journal->sealed == 0 && to >= from + write_behind_bytes;
    if (much) {
        journal->behind = to;
        atomic_fetch_add(&segment->pins, 1);
    }
    pthread_mutex_unlock(&journal->lock);
    if (much) {
        bd_file_write_behind(&segment->file, from, to - from);
        atomic_fetch_sub(&segment->pins, 1);
    }
    return much;
}

uint32_t bd_journal_release(struct bd_journal *journal, uint64_t lsn, uint32_t *slots,
                            uint32_t capacity)
{
    uint32_t count = 0;
    bool unchecked = bd_site_fires(BD_SITE_RELEASE_EARLY);
    bd_lock(&journal->lock);
    for (uint32_t slot = 0; slot < journal->slot_limit && count < capacity; slot++) {
        struct bd_segment *segment = journal->segments[slot];
        if (segment == NULL || segment->state != BD_SEGMENT_FULL ||
            atomic_load(&segment->pins) != 0)
            continue;
        /* `lsn` may be the first of the next segment, and yet its checkpoint name this one's end.
         */
        if (segment->last_lsn + 1 >= lsn && !unchecked)
            continue;
        segment->state = BD_SEGMENT_FREE;
        segment->dirty = false;
        journal->full_count--;
        if (!unchecked) /* else a map may still refer to them */
            free_pieces(segment);
        slots[count++] = slot;
    }
    pthread_mutex_unlock(&journal->lock);
    if (count > 0)
        bd_fail_point(BD_SITE_JOURNAL_RELEASE_AFTER);
    return count;
}

uint64_t bd_journal_oldest(struct bd_journal *journal)
{
    uint64_t oldest = 0;
    bd_lock(&journal->lock);
    for (uint32_t slot = 0; slot < journal->slot_limit; slot++) {
        const struct bd_segment *segment = journal->segments[slot];
        bool used = segment != NULL &&
                    (segment->state == BD_SEGMENT_FULL || segment->state == BD_SEGMENT_CURRENT);
        if (used && (oldest == 0 || segment->sequence < oldest))
            oldest = segment->sequence;
    }
    pthread_mutex_unlock(&journal->lock);
    return oldest;
}

int bd_journal_resume(struct bd_journal *journal, uint32_t slot, uint64_t position,
                      uint64_t next_lsn, uint32_t chain)
{
    int result = -ENOENT;
    bd_lock(&journal->lock);
    struct bd_segment *segment = slot < BD_MAX_SLOTS ? journal->segments[slot] : NULL;
    if (segment != NULL && segment->state == BD_SEGMENT_FULL && journal->current == NULL) {
        segment->state = BD_SEGMENT_CURRENT;
        journal->full_count--;
        journal->current = segment;
        journal->position = sector_up(position);
        journal->next_lsn = next_lsn;
        journal->chain = chain;
        result = 0;
    }
    pthread_mutex_unlock(&journal->lock);
    return result;
}
