/* Extent map: ordered, non-overlapping runs of a volume's bytes, each with the place of its newest
 * version in the journal. This is the hot map: what it does not cover is in chunks.
 *
 * Shape: a directory of leaves, each a sorted array of extents, and beside it the array of the
 * leaves' first offsets. Two binary searches find an extent; 24 bytes hold one. Not thread-safe:
 * the volume's lock guards it.
 *
 * Place (64 bits): kind 2 | segment slot 16 | piece 20 | byte offset in the segment 26.
 * A *piece* is the part of a record that lies in one 4 KiB page of the volume; the segment keeps
 * one checksum for each, and `piece` is the number of the first one of the extent. An extent that
 * refers to a tree of chunks has a number in `refers` instead of these. */
#ifndef BLOCKD_EXTENT_MAP_H
#define BLOCKD_EXTENT_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "record.h"

enum bd_place_kind {
    BD_PLACE_DATA = 0,
    BD_PLACE_ZERO = 1,  /* unmapped or written with zeroes: no bytes anywhere */
    BD_PLACE_REFER = 2, /* reads as a part of a tree of chunks; the other bits: which of `refers` */
};

enum {
    BD_LEAF_EXTENTS = 128,
    BD_PLACE_OFFSET_BITS = 26,
    BD_PLACE_PIECE_BITS = 20,
    BD_PLACE_SLOT_BITS = 16,
};

struct bd_extent {
    uint64_t start;  /* bytes */
    uint64_t length; /* bytes, never 0 */
    uint64_t place;
};

struct bd_leaf {
    uint32_t count;
    struct bd_extent extents[BD_LEAF_EXTENTS];
};

struct bd_extent_map {
    struct bd_leaf **leaves;
    uint64_t *firsts;
    size_t leaf_count;
    size_t leaf_capacity;
    struct bd_leaf *spare[2]; /* so that bd_map_set cannot fail after bd_map_reserve */
    size_t extent_count;
    uint64_t data_bytes;     /* bytes covered by BD_PLACE_DATA extents */
    struct bd_refer *refers; /* what extents refer to; they go with the map */
    size_t refer_count;
    size_t refer_capacity;
};

struct bd_map_cursor {
    size_t leaf;
    size_t index;
};

static inline uint64_t bd_place_make(uint32_t kind, uint32_t slot, uint32_t piece, uint32_t offset)
{
    return (uint64_t)kind << 62 | (uint64_t)slot << 46 | (uint64_t)piece << 26 | offset;
}

static inline uint32_t bd_place_kind(uint64_t place)
{
    return (uint32_t)(place >> 62);
}

static inline uint32_t bd_place_slot(uint64_t place)
{
    return (uint32_t)(place >> 46) & 0xffff;
}

static inline uint32_t bd_place_piece(uint64_t place)
{
    return (uint32_t)(place >> 26) & 0xfffff;
}

static inline uint32_t bd_place_offset(uint64_t place)
{
    return (uint32_t)place & 0x3ffffff;
}

void bd_map_init(struct bd_extent_map *map);
void bd_map_destroy(struct bd_extent_map *map);

/* Make room for one bd_map_set. 0 or -ENOMEM. */
int bd_map_reserve(struct bd_extent_map *map);

/* Let [start, start + length) be at `place`, hiding what was there. Never fails after a
 * bd_map_reserve; the caller checked that start + length does not wrap. */
void bd_map_set(struct bd_extent_map *map, uint64_t start, uint64_t length, uint64_t place);

/* The first extent that ends after `offset`, or one that bd_map_get calls NULL. */
struct bd_map_cursor bd_map_find(const struct bd_extent_map *map, uint64_t offset);
const struct bd_extent *bd_map_get(const struct bd_extent_map *map, struct bd_map_cursor at);
struct bd_map_cursor bd_map_next(const struct bd_extent_map *map, struct bd_map_cursor at);

/* A place for bd_map_set that refers to *refer, which is copied; 0 when memory ran out. */
uint64_t bd_map_add_refer(struct bd_extent_map *map, const struct bd_refer *refer);

/* What an extent of the map refers to; NULL for one that does not. */
const struct bd_refer *bd_map_refer(const struct bd_extent_map *map, uint64_t place);

/* Whether [start, start + length) is covered by bytes or zeros without a gap. What refers to other
 * bytes counts as one. */
bool bd_map_covers(const struct bd_extent_map *map, uint64_t start, uint64_t length);

/* Bytes of memory held. */
size_t bd_map_memory(const struct bd_extent_map *map);

/* `extent` without its first `delta` bytes (delta < length). */
struct bd_extent bd_extent_skip(struct bd_extent extent, uint64_t delta);

#endif
