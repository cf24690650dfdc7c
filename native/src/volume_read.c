/* Reading a volume: first a plan is made under the lock, then the bytes are moved without it. */
#include "volume.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "crc32c.h"
#include "entry.h"
#include "locks.h"
#include "packed.h"
#include "sites.h"
#include "view.h"

enum { PLAN_INLINE = 8 };

enum source { SOURCE_ZERO, SOURCE_JOURNAL, SOURCE_CHUNK };

struct step {
    enum source source;
    uint64_t offset; /* in the volume */
    uint64_t length;
    struct bd_extent extent;      /* JOURNAL: the part to read */
    struct bd_segment *segment;   /* JOURNAL: pinned */
    bool once;                    /* JOURNAL: nobody reads it again soon */
    struct bd_chunk_place *chunk; /* CHUNK: referenced */
};

struct plan {
    struct step *steps;
    size_t count;
    size_t capacity;
    uint64_t *missing; /* NULL: a missing chunk ends the plan */
    int missing_count;
    int missing_capacity;
    struct step inline_steps[PLAN_INLINE];
};

static void plan_init(struct plan *plan)
{
    plan->steps = plan->inline_steps;
    plan->count = 0;
    plan->capacity = PLAN_INLINE;
    plan->missing = NULL;
    plan->missing_count = 0;
    plan->missing_capacity = 0;
}

static void plan_release(struct plan *plan)
{
    for (size_t i = 0; i < plan->count; i++) {
        if (plan->steps[i].segment != NULL)
            atomic_fetch_sub(&plan->steps[i].segment->pins, 1);
        if (plan->steps[i].chunk != NULL)
            bd_chunk_place_release(plan->steps[i].chunk);
    }
    if (plan->steps != plan->inline_steps)
        free(plan->steps);
}

static struct step *plan_push(struct plan *plan, enum source source, uint64_t offset,
                              uint64_t length)
{
    if (plan->count == plan->capacity) {
        size_t capacity = plan->capacity * 4;
        struct step *steps = malloc(capacity * sizeof *steps);
        if (steps == NULL)
            return NULL;
        memcpy(steps, plan->steps, plan->count * sizeof *steps);
        if (plan->steps != plan->inline_steps)
            free(plan->steps);
        plan->steps = steps;
        plan->capacity = capacity;
    }
    struct step *step = &plan->steps[plan->count++];
    *step = (struct step){.source = source, .offset = offset, .length = length};
    return step;
}

/* `flag`: BD_REFERRED, or 0 for the chunks below the hot maps. */
static int plan_chunks(struct bd_volume *volume, struct plan *plan, uint64_t flag, uint64_t offset,
                       uint64_t end)
{
    while (offset < end) {
        uint64_t index = flag | offset / volume->chunk_size;
        uint64_t stop = (offset / volume->chunk_size + 1) * volume->chunk_size;
        if (stop > end)
            stop = end;
        struct bd_chunk_place *chunk = bd_table_get(volume->table, volume->number, index);
        if (chunk == NULL) {
            if (plan->missing_count == plan->missing_capacity)
                return -EAGAIN;
            plan->missing[plan->missing_count++] = index;
            offset = stop;
            continue;
        }
        enum source source = chunk->kind == BD_CHUNK_HOLE ? SOURCE_ZERO : SOURCE_CHUNK;
        struct step *step = plan_push(plan, source, offset, stop - offset);
        if (step == NULL) {
            bd_chunk_place_release(chunk);
            return -ENOMEM;
        }
        step->chunk = chunk;
        offset = stop;
    }
    return 0;
}

static int plan_extent(struct bd_volume *volume, struct plan *plan, struct bd_extent extent,
                       bool only_this, uint64_t offset, uint64_t end)
{
    if (extent.start < offset)
        extent = bd_extent_skip(extent, offset - extent.start);
    if (extent.start + extent.length > end)
        extent.length = end - extent.start;
    if (bd_place_kind(extent.place) == BD_PLACE_REFER)
        return only_this ? 0
                         : plan_chunks(volume, plan, BD_REFERRED, extent.start,
                                       extent.start + extent.length);
    bool data = bd_place_kind(extent.place) == BD_PLACE_DATA;
    struct step *step =
        plan_push(plan, data ? SOURCE_JOURNAL : SOURCE_ZERO, extent.start, extent.length);
    if (step == NULL)
        return -ENOMEM;
    if (data) {
        step->extent = extent;
        step->segment = volume->journal->segments[bd_place_slot(extent.place)];
        assert(step->segment != NULL);
        atomic_fetch_add(&step->segment->pins, 1);
    }
    return 0;
}

/* What `map` covers of [offset, end), and in its gaps what lies below. */
static int plan_layer(struct bd_volume *volume, struct plan *plan, struct bd_extent_map *map,
                      bool only_this, uint64_t offset, uint64_t end)
{
    if (map == NULL)
        return only_this ? 0 : plan_chunks(volume, plan, 0, offset, end);
    struct bd_extent_map *below = map == volume->active ? volume->frozen : NULL;
    struct bd_map_cursor at = bd_map_find(map, offset);
    int error = 0;
    while (offset < end && error == 0) {
        const struct bd_extent *extent = bd_map_get(map, at);
        uint64_t gap_end = extent == NULL || extent->start > end ? end : extent->start;
        if (offset < gap_end) {
            if (!only_this)
                error = plan_layer(volume, plan, below, false, offset, gap_end);
            offset = gap_end;
            continue;
        }
        error = plan_extent(volume, plan, *extent, only_this, offset, end);
        offset = extent->start + extent->length;
        at = bd_map_next(map, at);
    }
    return error;
}

/* Whether bytes that were read are those that were written. */
static bool holds(const uint8_t *bytes, size_t length, uint32_t crc)
{
    return bd_crc32c(0, bytes, length) == crc || bd_site_fires(BD_SITE_UNCHECKED_READ);
}

static int fault_at(struct bd_read_fault *fault, uint64_t offset, uint32_t slot, uint64_t place,
                    bool in_pack)
{
    *fault = (struct bd_read_fault){offset, slot, place, in_pack};
    return -EIO;
}

/* The piece `number` of a segment. False when the segment has been begun anew under who asks, which
 * only a bug can do: a fault then, not a pointer to nowhere. */
static bool piece_at(struct bd_segment *segment, uint32_t number, struct bd_piece *piece)
{
    if (number / BD_PIECE_BLOCK >= BD_PIECE_BLOCKS ||
        segment->pieces[number / BD_PIECE_BLOCK] == NULL)
        return false;
    *piece = *bd_segment_piece(segment, number);
    return true;
}

/* Read an extent from the journal, whole pieces straight into place, each against its checksum. */
static int read_journal(const struct step *step, uint8_t *data, bool nowait,
                        struct bd_read_fault *fault)
{
    struct bd_segment *segment = step->segment;
    uint64_t at = step->offset;
    uint64_t end = step->offset + step->length;
    uint32_t number = bd_place_piece(step->extent.place);
    int64_t shift = (int64_t)bd_place_offset(step->extent.place) - (int64_t)step->offset;
    uint8_t scratch[BD_PAGE];
    while (at < end) {
        uint64_t page = at & ~(uint64_t)(BD_PAGE - 1);
        struct bd_piece first;
        if (!piece_at(segment, number, &first) || first.head > at - page ||
            first.length > BD_PAGE - first.head)
            return fault_at(fault, at, segment->slot, (uint64_t)((int64_t)at + shift), false);
        uint64_t piece_start = page + first.head;
        uint64_t piece_end = piece_start + first.length;
        uint64_t place = (uint64_t)((int64_t)piece_start + shift);
        int error;
        if (piece_start == at && piece_end <= end) {
            /* as many whole pieces as there are, in one read */
            uint64_t run_end = piece_end;
            uint32_t count = 1;
            while (run_end < end) {
                struct bd_piece more;
                if (!piece_at(segment, number + count, &more) || more.head != 0 ||
                    run_end % BD_PAGE != 0 || run_end + more.length > end)
                    break;
                run_end += more.length;
                count++;
            }
            uint8_t *target = data + (at - step->offset);
            size_t length = (size_t)(run_end - at);
            error = step->once ? bd_file_read_once(&segment->file, target, length, place)
                               : bd_file_read_exact(&segment->file, target, length, place, nowait);
            if (error == -EAGAIN)
                return error;
            for (uint32_t i = 0; i < count && error == 0; i++) {
                struct bd_piece piece = *bd_segment_piece(segment, number + i);
                if (!holds(target, piece.length, piece.crc)) {
                    uint64_t before = (uint64_t)(target - (data + (at - step->offset)));
                    return fault_at(fault, at + before, segment->slot, place + before, false);
                }
                target += piece.length;
            }
            number += count;
            if (error == 0)
                at = run_end;
        } else {
            uint64_t stop = piece_end < end ? piece_end : end;
            error = bd_file_read_exact(&segment->file, scratch, first.length, place, nowait);
            if (error == -EAGAIN)
                return error;
            if (error == 0 && !holds(scratch, first.length, first.crc))
                error = -EIO;
            if (error == 0 && stop <= at)
                error = -EIO; /* the piece table does not fit the extent */
            if (error == 0)
                memcpy(data + (at - step->offset), scratch + (at - piece_start),
                       (size_t)(stop - at));
            number++;
            if (error == 0)
                at = stop;
        }
        if (error < 0)
            return fault_at(fault, at, segment->slot, place, false);
    }
    return 0;
}

static int read_raw_chunk(const struct step *step, uint32_t chunk_size, uint8_t *data, bool nowait,
                          struct bd_read_fault *fault)
{
    struct bd_chunk_place *chunk = step->chunk;
    struct bd_file *file = &chunk->pack->file;
    uint64_t at = step->offset % chunk_size;
    uint64_t chunk_start = step->offset - at;
    uint64_t end = at + step->length;
    uint8_t scratch[BD_PAGE];
    if (end > chunk->length)
        return fault_at(fault, step->offset, chunk->pack->number, chunk->data_offset, true);
    while (at < end) {
        uint64_t page = at / BD_PAGE;
        uint64_t page_start = page * BD_PAGE;
        uint64_t page_end = page_start + BD_PAGE;
        if (page_end > chunk->length)
            page_end = chunk->length;
        int error;
        uint64_t stop;
        if (page_start == at && page_end <= end) {
            stop = end == chunk->length ? end : end & ~(uint64_t)(BD_PAGE - 1);
            uint8_t *target = data + (at + chunk_start - step->offset);
            error = bd_file_read_exact(file, target, (size_t)(stop - at), chunk->data_offset + at,
                                       nowait);
            for (uint64_t check = at; check < stop && error == 0; check += BD_PAGE, page++) {
                size_t length = (size_t)(stop - check < BD_PAGE ? stop - check : BD_PAGE);
                if (!holds(target + (check - at), length, bd_get32(chunk->payload + 4 * page)))
                    return fault_at(fault, chunk_start + check, chunk->pack->number,
                                    chunk->data_offset + check, true);
            }
        } else {
            stop = page_end < end ? page_end : end;
            size_t length = (size_t)(page_end - page_start);
            error =
                bd_file_read_exact(file, scratch, length, chunk->data_offset + page_start, nowait);
            if (error == 0 && !holds(scratch, length, bd_get32(chunk->payload + 4 * page)))
                error = -EIO;
            if (error == 0)
                memcpy(data + (at + chunk_start - step->offset), scratch + (at - page_start),
                       (size_t)(stop - at));
        }
        if (error == -EAGAIN)
            return error;
        if (error < 0)
            return fault_at(fault, chunk_start + at, chunk->pack->number, chunk->data_offset + at,
                            true);
        at = stop;
    }
    return 0;
}

static int read_packed_chunk(struct bd_place_table *table, const struct step *step,
                             uint32_t chunk_size, uint8_t *data, bool nowait,
                             struct bd_read_fault *fault)
{
    struct bd_chunk_place *chunk = step->chunk;
    uint64_t at = step->offset % chunk_size;
    uint64_t place = chunk->data_offset;
    int error = -EIO;
    if (at + step->length <= chunk->length)
        error = bd_packed_read(table, chunk, at, step->length, data, nowait, &place);
    if (error == -EIO)
        return fault_at(fault, step->offset, chunk->pack->number, place, true);
    return error;
}

static int read_step(struct bd_volume *volume, const struct step *step, uint8_t *data, bool nowait,
                     struct bd_read_fault *fault)
{
    uint32_t chunk_size = volume->chunk_size;
    switch (step->source) {
    case SOURCE_ZERO:
        memset(data, 0, (size_t)step->length);
        return 0;
    case SOURCE_JOURNAL:
        return read_journal(step, data, nowait, fault);
    default:
        break;
    }
    if (step->chunk->kind == BD_CHUNK_RAW)
        return read_raw_chunk(step, chunk_size, data, nowait, fault);
    if (step->chunk->kind == BD_CHUNK_PACKED)
        return read_packed_chunk(volume->table, step, chunk_size, data, nowait, fault);
    uint64_t at = step->offset % chunk_size;
    if (at + step->length > step->chunk->length)
        return fault_at(fault, step->offset, 0, 0, true);
    memcpy(data, step->chunk->payload + at, (size_t)step->length);
    return 0;
}

/* Bytes of whole chunks that have to be decoded. */
static uint64_t whole_packed(const struct plan *plan)
{
    uint64_t total = 0;
    for (size_t i = 0; i < plan->count; i++) {
        const struct bd_chunk_place *chunk = plan->steps[i].chunk;
        if (chunk != NULL && chunk->kind == BD_CHUNK_PACKED &&
            plan->steps[i].length == chunk->length)
            total += chunk->length;
    }
    return total;
}

/* Read the entries of chunks that nobody has read yet. 0, or as bd_entry_open. */
static int open_entries(struct bd_place_table *table, struct plan *plan, bool nowait)
{
    int error = 0;
    for (size_t i = 0; i < plan->count && error == 0; i++) {
        struct bd_chunk_place *entry = plan->steps[i].chunk;
        if (entry == NULL || entry->kind != BD_CHUNK_ENTRY)
            continue;
        error = bd_entry_open(table, entry, nowait, &plan->steps[i].chunk);
        if (error == 0)
            bd_chunk_place_release(entry);
    }
    return error;
}

/* Bytes of a pack that are next to each other. */
struct run {
    struct bd_file *file;
    uint64_t start;
    uint64_t end;
};

/* Let the kernel begin to read so much more, or, when it does not go on with `run`, that run. */
static void read_ahead(struct run *run, struct bd_file *file, uint64_t start, uint64_t end)
{
    if (run->file == file && start >= run->start && start <= run->end + BD_PAGE) {
        run->end = end > run->end ? end : run->end;
        return;
    }
    if (run->file != NULL)
        bd_file_read_ahead(run->file, run->start, run->end - run->start);
    *run = (struct run){file, start, end};
}

/* The disk has to be waited for: let the kernel begin with all that the plan needs of packs, so
 * that who waits for the first bytes does not wait for the others one after the other. */
static void begin_reading(const struct plan *plan, uint32_t chunk_size)
{
    struct run run = {0};
    for (size_t i = 0; i < plan->count; i++) {
        const struct step *step = &plan->steps[i];
        const struct bd_chunk_place *chunk = step->chunk;
        if (chunk == NULL || chunk->pack == NULL)
            continue;
        struct bd_file *file = &chunk->pack->file;
        uint64_t data = chunk->data_offset;
        if (chunk->kind == BD_CHUNK_ENTRY) {
            data += BD_ENTRY_HEADER + bd_entry_table_bytes(chunk->stored_length);
            read_ahead(&run, file, chunk->data_offset, data);
        }
        uint64_t at = step->offset % chunk_size;
        bool packed = chunk->stored_length < chunk->length;
        read_ahead(&run, file, packed ? data : data + at,
                   packed ? data + chunk->stored_length : data + at + step->length);
    }
    read_ahead(&run, NULL, 0, 0);
}

static int run_plan(struct bd_volume *volume, struct plan *plan, uint64_t offset, uint8_t *data,
                    bool nowait, struct bd_read_fault *fault)
{
    int opened = open_entries(volume->table, plan, nowait);
    if (opened < 0)
        return opened;
    if (nowait && whole_packed(plan) > BD_PACKED_NOWAIT_MAX)
        return -EAGAIN;
    for (size_t i = 0; i < plan->count; i++) {
        const struct step *step = &plan->steps[i];
        uint8_t *target = data + (step->offset - offset);
        int error = read_step(volume, step, target, nowait, fault);
        if (error == -EIO && bd_site_fires(BD_SITE_ZEROS_FOR_DAMAGE)) {
            memset(target, 0, (size_t)step->length);
            continue;
        }
        if (error < 0)
            return error;
    }
    return 0;
}

/* What clients read. It is to be released in any case. */
static int plan_head(struct bd_volume *volume, struct plan *plan, uint64_t offset, uint64_t length)
{
    plan_init(plan);
    bd_lock(&volume->lock);
    int error = volume->retired ? -ESHUTDOWN : 0;
    if (error == 0)
        error = plan_layer(volume, plan, volume->active, false, offset, offset + length);
    pthread_mutex_unlock(&volume->lock);
    return error;
}

int bd_volume_read(struct bd_volume *volume, uint64_t offset, uint64_t length, uint8_t *data,
                   bool nowait, struct bd_read_fault *fault)
{
    struct plan plan;
    int error = plan_head(volume, &plan, offset, length);
    bool is_found = error == 0;
    if (is_found)
        error = run_plan(volume, &plan, offset, data, nowait, fault);
    if (is_found && nowait && error == -EAGAIN)
        begin_reading(&plan, volume->chunk_size);
    plan_release(&plan);
    return error;
}

/* Pin a step's pages of a pack, then verify them; -ENOTSUP: not such a step, or not to be had. Only
 * what is pinned is verified, so pages of checksums are not cut. */
static int view_step(const struct step *step, uint32_t chunk_size, struct bd_view *view)
{
    const struct bd_chunk_place *chunk = step->chunk;
    if (chunk == NULL || chunk->kind != BD_CHUNK_RAW || step->length < BD_VIEW_STEP)
        return -ENOTSUP;
    uint64_t at = step->offset % chunk_size;
    uint64_t end = at + step->length;
    if (end > chunk->length || at % BD_PAGE != 0 || (end % BD_PAGE != 0 && end != chunk->length))
        return -ENOTSUP;
    const uint8_t *bytes = NULL;
    int error =
        bd_view_pin(view, chunk->pack, chunk->data_offset + at, (size_t)step->length, &bytes);
    const uint8_t *checks = chunk->payload + 4 * (at / BD_PAGE);
    if (error == 0 && !bd_view_holds(bytes, (size_t)step->length, checks))
        error = -EIO;
    return error;
}

/* Bytes of raw chunks. */
static uint64_t raw_bytes(const struct plan *plan)
{
    uint64_t total = 0;
    for (size_t i = 0; i < plan->count; i++)
        if (plan->steps[i].chunk != NULL && plan->steps[i].chunk->kind == BD_CHUNK_RAW)
            total += plan->steps[i].length;
    return total;
}

/* All steps into `view`. After an error it is of no use. */
static int view_plan(struct bd_volume *volume, const struct plan *plan, uint64_t offset,
                     uint8_t *data, struct bd_view *view, struct bd_read_fault *fault)
{
    if (whole_packed(plan) > BD_PACKED_NOWAIT_MAX)
        return -EAGAIN;
    int error = 0;
    for (size_t i = 0; i < plan->count && error == 0; i++) {
        const struct step *step = &plan->steps[i];
        error = view_step(step, volume->chunk_size, view);
        if (error != -ENOTSUP)
            continue;
        uint8_t *target = data + (step->offset - offset);
        error = read_step(volume, step, target, true, fault);
        if (error == 0 && !bd_view_add(view, target, (size_t)step->length))
            error = -ENOTSUP;
    }
    return error;
}

int bd_volume_view(struct bd_volume *volume, uint64_t offset, uint64_t length, uint8_t *data,
                   struct bd_view **out, struct bd_read_fault *fault)
{
    *out = NULL;
    struct plan plan;
    int error = plan_head(volume, &plan, offset, length);
    bool is_found = error == 0;
    if (is_found)
        error = open_entries(volume->table, &plan, true);
    struct bd_view *view = NULL;
    if (error == 0 && raw_bytes(&plan) >= BD_VIEW_STEP)
        view = bd_view_new();
    if (view != NULL) {
        error = view_plan(volume, &plan, offset, data, view, fault);
        if (error < 0 || !bd_view_has_pins(view)) {
            bd_view_release(view);
            view = NULL;
        } else {
            *out = view;
        }
        if (error < 0 && error != -EAGAIN)
            error = run_plan(volume, &plan, offset, data, true, fault); /* which tells what it is */
    } else if (error == 0) {
        error = run_plan(volume, &plan, offset, data, true, fault);
    }
    if (is_found && error == -EAGAIN)
        begin_reading(&plan, volume->chunk_size);
    plan_release(&plan);
    return error;
}

int bd_volume_missing(struct bd_volume *volume, uint64_t offset, uint64_t length, uint64_t *indexes,
                      int capacity)
{
    struct plan plan;
    plan_init(&plan);
    plan.missing = indexes;
    plan.missing_capacity = capacity;
    bd_lock(&volume->lock);
    int error = plan_layer(volume, &plan, volume->active, false, offset, offset + length);
    pthread_mutex_unlock(&volume->lock);
    plan_release(&plan);
    return error < 0 && error != -EAGAIN ? error : plan.missing_count;
}

int bd_volume_read_frozen(struct bd_volume *volume, uint64_t offset, uint64_t length, uint8_t *data,
                          struct bd_read_fault *fault)
{
    struct plan plan;
    plan_init(&plan);
    bd_lock(&volume->lock);
    int error = 0;
    if (volume->frozen != NULL)
        error = plan_layer(volume, &plan, volume->frozen, true, offset, offset + length);
    pthread_mutex_unlock(&volume->lock);
    for (size_t i = 0; i < plan.count; i++)
        plan.steps[i].once = true; /* it will be in a pack */
    if (error == 0)
        error = run_plan(volume, &plan, offset, data, false, fault);
    plan_release(&plan);
    return error;
}
