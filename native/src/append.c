/* Appending to the journal: records are gathered in a group, which one write puts behind the log's
 * end, whole or not at all (journal.h). */
#include "journal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "crc32c.h"
#include "disk_error.h"
#include "locks.h"
#include "sites.h"
#include "tap.h"
#include "volume.h"

/* A MARK says when: one at most each millisecond, so that a point in time can be found again. */
static const uint64_t mark_interval_ns = 1000 * 1000;

static const uint8_t padding[BD_RECORD_ALIGN];

static void begin_group(struct bd_journal *journal)
{
    struct bd_group *group = &journal->group;
    group->volume = NULL;
    group->count = 0;
    group->position = journal->position;
    group->start = journal->position;
    group->lsn = journal->next_lsn;
    group->chain = journal->chain;
    group->piece_count = journal->current ? journal->current->piece_count : 0;
    group->payload_bytes = 0;
}

/* After a write that failed with -errno, which is returned. */
static int write_failed(struct bd_journal *journal, int error)
{
    if (bd_error_seals(-error) && journal->sealed == 0)
        journal->sealed = -error; /* what the disk holds is no longer known */
    return error;
}

/* Fill the last page of a large group, into `page`, with records that say nothing new: one where
 * each sector begins, as the log goes on at the next sector when none is right behind the last. So
 * the next group begins at a page, and no part of a page that is not in memory is written, which
 * would be read for that. They tell the group's own time: what follows may have no other. How many
 * bytes. */
static size_t pad(struct bd_journal *journal, uint8_t page[BD_PAGE])
{
    struct bd_group *group = &journal->group;
    uint64_t end = (group->position + BD_PAGE - 1) & ~(uint64_t)(BD_PAGE - 1);
    uint64_t start = group->position;
    const struct bd_record *first = &group->entries[0].record;
    uint64_t marked_ns = first->op == BD_RECORD_MARK ? first->offset : journal->marked_ns;
    memset(page, 0, BD_PAGE);
    for (uint64_t at = (start + BD_SECTOR - 1) & ~(uint64_t)(BD_SECTOR - 1); at < end;
         at += BD_SECTOR) {
        struct bd_record mark = {.op = BD_RECORD_MARK,
                                 .node_epoch = journal->node_epoch,
                                 .lsn = group->lsn++,
                                 .chain = group->chain,
                                 .offset = marked_ns,
                                 .seq = journal->synced_lsn};
        bd_record_sign(&mark, journal->store_uuid);
        bd_record_encode(&mark, page + (at - start));
        group->chain = mark.header_crc;
    }
    group->position = end;
    return (size_t)(end - start);
}

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* Whether the group ends with a page, and need not stay in memory: long writes, that is, not many
 * short ones, of which the destager reads a few bytes each. Not where other nodes are sent what was
 * appended: it is read for that, whole groups at once. */
static bool is_large(const struct bd_group *group)
{
    bool tapped = group->volume != NULL && group->volume->tap != NULL;
    return group->payload_bytes >= BD_LARGE_BYTES && !tapped &&
           group->payload_bytes / (uint64_t)group->count >= BD_LONG_BYTES;
}

static int write_large(struct bd_journal *journal, struct iovec *iov, int count)
{
    struct bd_group *group = &journal->group;
    struct bd_file *file = &journal->current->file;
    enum bd_way way = bd_ways_next(&journal->ways);
    uint64_t began_ns = monotonic_ns();
    int error = -ENOTSUP;
    if (way == BD_WAY_LEAVES)
        error = bd_file_write_once(file, iov, count, group->start);
    if (error == -ENOTSUP) {
        way = BD_WAY_STAYS;
        error = file->ops->pwritev(file, iov, count, group->start);
    }
    if (error == 0)
        bd_ways_took(&journal->ways, way, group->payload_bytes, monotonic_ns() - began_ns);
    if (error == 0 && way == BD_WAY_LEAVES && group->start < journal->behind + BD_LARGE_BYTES)
        journal->behind = group->position; /* there is next to nothing to be written behind */
    return error;
}

static int fail_group(struct bd_journal *journal, int error)
{
    struct bd_group *group = &journal->group;
    for (int i = 0; i < group->count; i++)
        if (group->entries[i].status != NULL)
            *group->entries[i].status = error;
    group->count = 0;
    return error;
}

int bd_journal_commit(struct bd_journal *journal)
{
    struct bd_group *group = &journal->group;
    if (group->count == 0)
        return 0;
    if (journal->sealed != 0)
        return fail_group(journal, -EIO);
    struct iovec iov[BD_GROUP_RECORDS * 3 + 1];
    int iov_count = 0;
    for (int i = 0; i < group->count; i++) {
        struct bd_group_entry *entry = &group->entries[i];
        iov[iov_count++] = (struct iovec){group->headers[i], BD_RECORD_HEADER};
        if (entry->payload == NULL)
            continue;
        size_t length = (size_t)bd_record_payload(&entry->record);
        iov[iov_count++] = (struct iovec){(void *)(uintptr_t)entry->payload, length};
        size_t rest = (size_t)bd_record_footprint(&entry->record) - BD_RECORD_HEADER - length;
        if (rest > 0)
            iov[iov_count++] = (struct iovec){(void *)(uintptr_t)padding, rest};
    }
    struct bd_segment *segment = journal->current;
    bool large = is_large(group);
    uint8_t last_page[BD_PAGE];
    if (large)
        iov[iov_count++] = (struct iovec){last_page, pad(journal, last_page)};
    bd_fail_point(BD_SITE_JOURNAL_APPEND_BEFORE);
    int error = 0;
    if (!bd_site_fires(BD_SITE_NOT_WRITTEN))
        error = large ? write_large(journal, iov, iov_count)
                      : segment->file.ops->pwritev(&segment->file, iov, iov_count, group->start);
    bd_fail_point(BD_SITE_JOURNAL_APPEND_AFTER);
    if (error < 0) {
        if (journal->stale_end < group->position)
            journal->stale_end = group->position;
        return fail_group(journal, write_failed(journal, error));
    }

    segment->dirty = true;
    segment->piece_count = group->piece_count;
    segment->last_lsn = group->lsn - 1;
    journal->position = group->position;
    journal->next_lsn = group->lsn;
    journal->chain = group->chain;
    if (journal->space_left != INT64_MAX)
        journal->space_left -= (int64_t)group->payload_bytes;
    struct bd_volume *volume = group->volume;
    if (volume != NULL) {
        atomic_store_explicit(&journal->whole_pages, large, memory_order_relaxed);
        bd_lock(&volume->lock);
    }
    for (int i = 0; i < group->count; i++) {
        struct bd_group_entry *entry = &group->entries[i];
        if (entry->record.op == BD_RECORD_MARK) {
            journal->marked_lsn = entry->record.seq;
            journal->marked_ns = entry->record.offset;
        } else if (volume != NULL && bd_record_has_seq(entry->record.op)) {
            bd_volume_apply(volume, &entry->record, segment->slot, entry->first_piece,
                            entry->payload_offset, entry->payload);
        }
    }
    if (volume != NULL)
        pthread_mutex_unlock(&volume->lock);
    if (volume != NULL && volume->tap != NULL)
        bd_tap_note(volume->tap, segment, group->start, group->position);
    group->count = 0;
    return 0;
}

/* Where the current segment ends, a replay must not find a record of a failed write and take it for
 * the one that is in the next segment. */
static int end_segment(struct bd_journal *journal)
{
    struct bd_segment *segment = journal->current;
    if (segment == NULL || journal->position >= journal->stale_end)
        return 0;
    uint8_t nothing[BD_RECORD_HEADER] = {0};
    struct iovec iov = {nothing, sizeof nothing};
    int error = segment->file.ops->pwritev(&segment->file, &iov, 1, journal->position);
    if (error < 0)
        return write_failed(journal, error);
    segment->dirty = true;
    journal->stale_end = 0;
    return 0;
}

/* Close the current segment and begin the next ready one. */
static int rotate(struct bd_journal *journal, bool has_payload)
{
    if (journal->ready_count <= (has_payload ? journal->reserve : 0))
        return -EAGAIN;
    if (has_payload && !journal->midway && bd_site_fires(BD_SITE_NO_SEGMENT))
        return -EAGAIN;
    if (journal->next_sequence > BD_LAST_SEQUENCE) {
        if (journal->sealed == 0)
            journal->sealed = EIO; /* what was written next could not be opened again */
        return -EIO;
    }
    int error = end_segment(journal);
    if (error < 0)
        return error;
    struct bd_segment *next = journal->segments[journal->ready[journal->ready_head]];
    struct bd_segment_header header = {.slot = next->slot,
                                       .node_epoch = journal->node_epoch,
                                       .sequence = journal->next_sequence,
                                       .first_lsn = journal->next_lsn,
                                       .synced_lsn = journal->synced_lsn,
                                       .chain = journal->chain,
                                       .segment_bytes = journal->segment_bytes};
    memcpy(header.store_uuid, journal->store_uuid, 16);
    uint8_t bytes[BD_SECTOR] = {0};
    bd_segment_header_encode(&header, bytes);
    struct iovec iov = {bytes, sizeof bytes};
    bd_fail_point(BD_SITE_JOURNAL_ROTATE_BEFORE);
    error = next->file.ops->pwritev(&next->file, &iov, 1, 0);
    bd_fail_point(BD_SITE_JOURNAL_ROTATE_AFTER);
    if (error < 0)
        return write_failed(journal, error);
    journal->ready_head = (journal->ready_head + 1) % BD_MAX_SLOTS;
    journal->ready_count--;
    if (journal->current != NULL) {
        journal->current->state = BD_SEGMENT_FULL;
        journal->current->last_lsn = journal->next_lsn - 1; /* also where nothing was replayed */
        journal->full_count++;
    }
    next->state = BD_SEGMENT_CURRENT;
    next->sequence = journal->next_sequence++;
    next->last_lsn = journal->next_lsn - 1;
    next->piece_count = 0;
    next->dirty = true;
    journal->current = next;
    journal->position = BD_SEGMENT_HEADER;
    journal->behind = 0;
    journal->stale_end = 0;
    journal->move_on = false;
    return 0;
}

uint32_t bd_pieces_of(uint64_t offset, uint64_t length)
{
    return (uint32_t)(((offset + length - 1) >> BD_PAGE_SHIFT) - (offset >> BD_PAGE_SHIFT) + 1);
}

int bd_segment_set_pieces(struct bd_segment *segment, uint32_t number, uint64_t offset,
                          const uint8_t *payload, uint64_t length, uint32_t *payload_crc)
{
    uint32_t whole = 0;
    while (length > 0) {
        uint32_t head = (uint32_t)offset & (BD_PAGE - 1);
        uint32_t step = BD_PAGE - head;
        if (step > length)
            step = (uint32_t)length;
        if (number >= BD_PIECE_BLOCK * BD_PIECE_BLOCKS)
            return -EPROTO;
        struct bd_piece **block = &segment->pieces[number / BD_PIECE_BLOCK];
        if (*block == NULL) {
            *block = malloc(BD_PIECE_BLOCK * sizeof **block);
            if (*block == NULL)
                return -ENOMEM;
        }
        uint32_t crc = bd_crc32c(0, payload, step);
        (*block)[number % BD_PIECE_BLOCK] =
            (struct bd_piece){.crc = crc, .head = (uint16_t)head, .length = (uint16_t)step};
        whole = step == BD_PAGE ? bd_crc32c_join_page(whole, crc) : bd_crc32c(whole, payload, step);
        number++;
        offset += step;
        payload += step;
        length -= step;
    }
    if (payload_crc != NULL)
        *payload_crc = whole;
    return 0;
}

static void push_entry(struct bd_journal *journal, struct bd_record record, const void *payload,
                       uint32_t first_piece, int *status)
{
    struct bd_group *group = &journal->group;
    struct bd_group_entry *entry = &group->entries[group->count];
    record.node_epoch = journal->node_epoch;
    record.lsn = group->lsn++;
    record.chain = group->chain;
    if (record.op == BD_RECORD_MARK)
        bd_record_sign(&record, journal->store_uuid);
    bd_record_encode(&record, group->headers[group->count]);
    group->chain = record.header_crc;
    entry->record = record;
    entry->payload = payload;
    entry->payload_offset = (uint32_t)group->position + BD_RECORD_HEADER;
    entry->first_piece = first_piece;
    entry->status = status;
    group->position += bd_record_footprint(&record);
    group->count++;
}

static bool fits(const struct bd_journal *journal, uint64_t bytes, uint32_t pieces)
{
    const struct bd_group *group = &journal->group;
    return journal->current != NULL && group->position + bytes <= journal->segment_bytes &&
           group->piece_count + pieces <= BD_PIECE_BLOCK * BD_PIECE_BLOCKS;
}

static bool wants_mark(const struct bd_journal *journal, uint64_t now_ns)
{
    return journal->group.count == 0 && (journal->marked_lsn != journal->synced_lsn ||
                                         now_ns - journal->marked_ns >= mark_interval_ns);
}

uint64_t bd_journal_part(const struct bd_journal *journal, uint64_t offset, uint64_t length)
{
    uint64_t most = journal->max_payload;
    return length > most ? most - (offset & (BD_PAGE - 1)) : length;
}

bool bd_journal_has_room(const struct bd_journal *journal, uint64_t offset, uint64_t length,
                         uint64_t now_ns)
{
    if (journal->ready_count > journal->reserve)
        return true;
    if (journal->current == NULL)
        return false;
    const struct bd_group *group = &journal->group;
    bool gathered = group->count > 0;
    uint64_t position = gathered ? group->position : journal->position;
    uint64_t pieces = gathered ? group->piece_count : journal->current->piece_count;
    if (wants_mark(journal, now_ns))
        position += BD_RECORD_HEADER;
    while (length > 0) {
        struct bd_record record = {.op = BD_RECORD_WRITE,
                                   .length = bd_journal_part(journal, offset, length)};
        position += bd_record_footprint(&record);
        pieces += bd_pieces_of(offset, record.length);
        offset += record.length;
        length -= record.length;
    }
    return position <= journal->segment_bytes && pieces <= BD_PIECE_BLOCK * BD_PIECE_BLOCKS;
}

bool bd_journal_has_space(const struct bd_journal *journal, uint64_t payload_bytes)
{
    uint64_t gathered = journal->group.count > 0 ? journal->group.payload_bytes : 0;
    return journal->space_left == INT64_MAX ||
           (int64_t)(gathered + payload_bytes) <= journal->space_left;
}

int bd_journal_add(struct bd_journal *journal, struct bd_volume *volume, struct bd_record record,
                   const void *payload, uint64_t now_ns, int *status)
{
    struct bd_group *group = &journal->group;
    int error;
    if (journal->sealed != 0)
        return -EIO;
    bool has_payload = bd_record_has_payload(record.op);
    if (bd_record_footprint(&record) + BD_RECORD_HEADER >
        journal->segment_bytes - BD_SEGMENT_HEADER)
        return -EFBIG; /* a segment is smaller than this record and a mark */
    if (group->count > 0 &&
        (group->count + 2 > BD_GROUP_RECORDS || (volume != NULL && group->volume != volume))) {
        error = bd_journal_commit(journal);
        if (error < 0)
            return error;
    }
    if (group->count == 0)
        begin_group(journal);
    uint64_t data = record.op == BD_RECORD_WRITE ? record.length : 0;
    if (data > 0 && !bd_journal_has_space(journal, data))
        return -ENOSPC;

    bool mark = wants_mark(journal, now_ns);
    uint32_t pieces = record.op == BD_RECORD_WRITE ? bd_pieces_of(record.offset, record.length) : 0;
    uint64_t needed = bd_record_footprint(&record) + (mark ? BD_RECORD_HEADER : 0);
    bool early = !journal->midway && group->count == 0 && journal->position > BD_SEGMENT_HEADER &&
                 journal->ready_count > journal->reserve &&
                 (journal->move_on || bd_site_fires(BD_SITE_ROTATE_EARLY));
    if (!fits(journal, needed, pieces) || early) {
        error = bd_journal_commit(journal);
        if (error < 0)
            return error;
        /* A name is short, and must be had while trims are: it may use what is kept for them. */
        bool short_one = record.op == BD_RECORD_POINT || record.op == BD_RECORD_NOTE;
        error = rotate(journal, has_payload && !short_one);
        if (error < 0)
            return error;
        begin_group(journal);
        assert(fits(journal, needed, pieces));
    }
    if (mark) {
        struct bd_record marker = {
            .op = BD_RECORD_MARK, .offset = now_ns, .seq = journal->synced_lsn};
        push_entry(journal, marker, NULL, 0, NULL);
    }
    if (pieces > 0) {
        error = bd_segment_set_pieces(journal->current, group->piece_count, record.offset, payload,
                                      record.length, &record.payload_crc);
        if (error < 0)
            return error;
    }
    if (volume != NULL) {
        if (group->volume == NULL) {
            group->volume = volume;
            group->seq = volume->seq;
        }
        record.seq = ++group->seq;
        record.volume = volume->number;
        record.volume_epoch = volume->epoch;
    }
    if (has_payload && pieces == 0)
        record.payload_crc = bd_crc32c(0, payload, (size_t)bd_record_payload(&record));
    push_entry(journal, record, has_payload ? payload : NULL, group->piece_count, status);
    group->piece_count += pieces;
    group->payload_bytes += data;
    return 0;
}

uint64_t bd_journal_seq(const struct bd_journal *journal, const struct bd_volume *volume)
{
    const struct bd_group *group = &journal->group;
    return group->count > 0 && group->volume == volume ? group->seq : volume->seq;
}
