#include "volume.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "gate.h"
#include "locks.h"
#include "tap.h"

static struct bd_extent_map *new_map(void)
{
    struct bd_extent_map *map = malloc(sizeof *map);
    if (map != NULL)
        bd_map_init(map);
    return map;
}

static void free_map(struct bd_extent_map *map)
{
    if (map != NULL) {
        bd_map_destroy(map);
        free(map);
    }
}

struct bd_volume *bd_volume_new(struct bd_journal *journal, struct bd_place_table *table,
                                uint32_t number, uint32_t epoch, uint32_t chunk_size, uint64_t size,
                                uint64_t seq, uint64_t generation)
{
    struct bd_volume *volume = calloc(1, sizeof *volume);
    if (volume == NULL)
        return NULL;
    volume->active = new_map();
    if (volume->active == NULL) {
        free(volume);
        return NULL;
    }
    pthread_mutex_init(&volume->lock, NULL);
    volume->journal = journal;
    volume->table = table;
    volume->number = number;
    volume->epoch = epoch;
    volume->chunk_size = chunk_size;
    volume->size = size;
    volume->seq = seq;
    volume->generation = generation;
    return volume;
}

void bd_volume_free(struct bd_volume *volume)
{
    bd_tap_close(volume);
    bd_gate_free(volume->gate);
    free_map(volume->active);
    free_map(volume->frozen);
    pthread_mutex_destroy(&volume->lock);
    free(volume);
}

void bd_volume_retire(struct bd_volume *volume, bool retired)
{
    bd_lock(&volume->journal->lock); /* appends look at it under this lock */
    bd_lock(&volume->lock);
    volume->retired = retired;
    pthread_mutex_unlock(&volume->lock);
    pthread_mutex_unlock(&volume->journal->lock);
}

bool bd_volume_can_refer(const struct bd_volume *volume, const struct bd_record *record,
                         const uint8_t *payload)
{
    struct bd_refer refer;
    return bd_refer_decode(payload, &refer) == 0 && record->offset % volume->chunk_size == 0 &&
           record->length % volume->chunk_size == 0 && refer.source % volume->chunk_size == 0 &&
           refer.source + record->length >= record->length;
}

static const uint64_t NO_PLACE = UINT64_MAX;

static uint64_t refer_place(struct bd_volume *volume, const struct bd_record *record,
                            const uint8_t *payload)
{
    struct bd_refer refer = {.start = record->offset, .seq = record->seq};
    bd_refer_decode(payload, &refer);
    uint64_t first = record->offset / volume->chunk_size;
    uint64_t end = first + record->length / volume->chunk_size;
    bd_table_drop_range(volume->table, volume->number, BD_REFERRED | first, BD_REFERRED | end);
    uint64_t place = bd_map_add_refer(volume->active, &refer);
    return place != 0 ? place : NO_PLACE;
}

static uint64_t new_place(struct bd_volume *volume, const struct bd_record *record, uint32_t slot,
                          uint32_t first_piece, uint32_t payload_offset, const uint8_t *payload)
{
    switch (record->op) {
    case BD_RECORD_WRITE:
        return bd_place_make(BD_PLACE_DATA, slot, first_piece, payload_offset);
    case BD_RECORD_REFER:
        return refer_place(volume, record, payload);
    default:
        return bd_place_make(BD_PLACE_ZERO, 0, 0, 0);
    }
}

static void out_of_memory(void)
{
    fprintf(stderr, "blockd: out of memory for the hot map; the journal has the write and a "
                    "restart replays it\n");
    abort();
}

static void apply_note(struct bd_volume *volume, const struct bd_record *record,
                       const uint8_t *payload)
{
    struct bd_note note;
    int error = bd_note_decode(payload, record->length, &note);
    if (error < 0) { /* whoever appends or replays one has looked */
        fprintf(stderr,
                "blockd: volume number %u: record %" PRIu64 " of it says what became of it, but "
                "makes no sense; it was let in without a look at it\n",
                volume->number, record->seq);
        abort();
    }
    if (note.kind == BD_NOTE_RESTORE) {
        assert(volume->frozen == NULL); /* whoever appends one has looked; a replay freezes none */
        bd_map_destroy(volume->active);
        bd_map_init(volume->active);
        __atomic_store_n(&volume->size, note.size, __ATOMIC_RELAXED);
    } else if (note.size != note.size_before) {
        uint64_t start = note.size < note.size_before ? note.size : note.size_before;
        uint64_t end = note.size < note.size_before ? note.size_before : note.size;
        if (bd_map_reserve(volume->active) < 0)
            out_of_memory();
        bd_map_set(volume->active, start, end - start, bd_place_make(BD_PLACE_ZERO, 0, 0, 0));
        __atomic_store_n(&volume->size, note.size, __ATOMIC_RELAXED);
    }
    volume->seq = record->seq;
}

void bd_volume_apply(struct bd_volume *volume, const struct bd_record *record, uint32_t slot,
                     uint32_t first_piece, uint32_t payload_offset, const uint8_t *payload)
{
    if (record->op == BD_RECORD_NOTE) {
        apply_note(volume, record, payload);
        return;
    }
    uint64_t place = new_place(volume, record, slot, first_piece, payload_offset, payload);
    if (place == NO_PLACE || bd_map_reserve(volume->active) < 0)
        out_of_memory();
    bd_map_set(volume->active, record->offset, record->length, place);
    volume->seq = record->seq;
}

const struct bd_refer *bd_volume_refer(const struct bd_volume *volume,
                                       const struct bd_extent_map *map, uint64_t index)
{
    if (map == NULL)
        return NULL;
    uint64_t end = (index + 1) * volume->chunk_size;
    struct bd_map_cursor at = bd_map_find(map, index * volume->chunk_size);
    const struct bd_extent *extent;
    while ((extent = bd_map_get(map, at)) != NULL && extent->start < end) {
        const struct bd_refer *refer = bd_map_refer(map, extent->place);
        if (refer != NULL)
            return refer;
        at = bd_map_next(map, at);
    }
    return NULL;
}

int bd_volume_freeze(struct bd_volume *volume)
{
    if (volume->frozen != NULL)
        return -EBUSY;
    struct bd_extent_map *fresh = new_map();
    if (fresh == NULL)
        return -ENOMEM;
    volume->frozen = volume->active;
    volume->active = fresh;
    return 0;
}

void bd_volume_thaw(struct bd_volume *volume)
{
    assert(volume->frozen != NULL && volume->active->extent_count == 0);
    free_map(volume->active);
    volume->active = volume->frozen;
    volume->frozen = NULL;
}

/* Drop the places of the chunks that the frozen map touches. */
static void drop_places(struct bd_volume *volume)
{
    struct bd_extent_map *map = volume->frozen;
    uint64_t dropped_to = 0; /* chunks below are dropped already */
    struct bd_map_cursor at = {0, 0};
    for (;;) {
        const struct bd_extent *extent = bd_map_get(map, at);
        if (extent == NULL)
            break;
        uint64_t first = extent->start / volume->chunk_size;
        uint64_t end = (extent->start + extent->length - 1) / volume->chunk_size + 1;
        if (bd_place_kind(extent->place) == BD_PLACE_REFER)
            bd_table_drop_range(volume->table, volume->number, BD_REFERRED | first,
                                BD_REFERRED | end);
        if (first < dropped_to)
            first = dropped_to;
        if (first < end) {
            bd_table_drop_range(volume->table, volume->number, first, end);
            dropped_to = end;
        }
        at = bd_map_next(map, at);
    }
}

void bd_volume_commit(struct bd_volume *volume, uint64_t generation)
{
    bd_lock(&volume->lock);
    volume->generation = generation;
    struct bd_extent_map *old = volume->frozen;
    if (old != NULL)
        drop_places(volume);
    volume->frozen = NULL;
    pthread_mutex_unlock(&volume->lock);
    free_map(old);
}
