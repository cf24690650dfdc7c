#include "extent_map.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "crc32c.h"

void bd_map_init(struct bd_extent_map *map)
{
    memset(map, 0, sizeof *map);
}

void bd_map_destroy(struct bd_extent_map *map)
{
    for (size_t i = 0; i < map->leaf_count; i++)
        free(map->leaves[i]);
    free(map->leaves);
    free(map->firsts);
    free(map->refers);
    free(map->spare[0]);
    free(map->spare[1]);
    bd_map_init(map);
}

int bd_map_reserve(struct bd_extent_map *map)
{
    /* One set adds at most two extents (the new one, and the tail of one that it splits), each of
     * which can split a leaf. */
    if (map->leaf_capacity < map->leaf_count + 2) {
        size_t capacity = map->leaf_capacity ? map->leaf_capacity * 2 : 16;
        struct bd_leaf **leaves = realloc(map->leaves, capacity * sizeof *leaves);
        if (leaves == NULL)
            return -ENOMEM;
        map->leaves = leaves;
        uint64_t *firsts = realloc(map->firsts, capacity * sizeof *firsts);
        if (firsts == NULL)
            return -ENOMEM;
        map->firsts = firsts;
        map->leaf_capacity = capacity;
    }
    for (int i = 0; i < 2; i++) {
        if (map->spare[i] == NULL)
            map->spare[i] = malloc(sizeof *map->spare[i]);
        if (map->spare[i] == NULL)
            return -ENOMEM;
    }
    return 0;
}

struct bd_extent bd_extent_skip(struct bd_extent extent, uint64_t delta)
{
    assert(delta < extent.length);
    if (bd_place_kind(extent.place) == BD_PLACE_DATA) {
        uint64_t pages =
            ((extent.start + delta) >> BD_PAGE_SHIFT) - (extent.start >> BD_PAGE_SHIFT);
        extent.place = bd_place_make(BD_PLACE_DATA, bd_place_slot(extent.place),
                                     bd_place_piece(extent.place) + (uint32_t)pages,
                                     bd_place_offset(extent.place) + (uint32_t)delta);
    }
    extent.start += delta;
    extent.length -= delta;
    return extent;
}

static struct bd_leaf *take_spare(struct bd_extent_map *map)
{
    for (int i = 0; i < 2; i++) {
        struct bd_leaf *leaf = map->spare[i];
        if (leaf != NULL) {
            map->spare[i] = NULL;
            leaf->count = 0;
            return leaf;
        }
    }
    assert(!"bd_map_set without bd_map_reserve");
    abort();
}

static void count_extent(struct bd_extent_map *map, const struct bd_extent *extent, int sign)
{
    map->extent_count += (size_t)sign;
    if (bd_place_kind(extent->place) == BD_PLACE_DATA)
        map->data_bytes += (uint64_t)(int64_t)sign * extent->length;
}

static void insert_leaf(struct bd_extent_map *map, size_t at, struct bd_leaf *leaf)
{
    assert(map->leaf_count < map->leaf_capacity);
    size_t moved = map->leaf_count - at;
    memmove(map->leaves + at + 1, map->leaves + at, moved * sizeof *map->leaves);
    memmove(map->firsts + at + 1, map->firsts + at, moved * sizeof *map->firsts);
    map->leaves[at] = leaf;
    map->firsts[at] = 0;
    map->leaf_count++;
}

static void remove_leaves(struct bd_extent_map *map, size_t from, size_t to)
{
    for (size_t i = from; i < to; i++)
        free(map->leaves[i]);
    size_t moved = map->leaf_count - to;
    memmove(map->leaves + from, map->leaves + to, moved * sizeof *map->leaves);
    memmove(map->firsts + from, map->firsts + to, moved * sizeof *map->firsts);
    map->leaf_count -= to - from;
}

/* Insert before the cursor; returns where the new extent is. */
static struct bd_map_cursor insert_extent(struct bd_extent_map *map, struct bd_map_cursor at,
                                          struct bd_extent extent)
{
    if (at.leaf == map->leaf_count) { /* append to the last leaf */
        if (at.leaf == 0) {
            insert_leaf(map, 0, take_spare(map));
        } else {
            at.leaf--;
            at.index = map->leaves[at.leaf]->count;
        }
    }
    struct bd_leaf *leaf = map->leaves[at.leaf];
    if (leaf->count == BD_LEAF_EXTENTS) {
        struct bd_leaf *right = take_spare(map);
        /* Appending at the very end keeps leaves full for sequential writes. */
        bool tail = at.leaf + 1 == map->leaf_count && at.index == leaf->count;
        uint32_t keep = tail ? BD_LEAF_EXTENTS : BD_LEAF_EXTENTS / 2;
        right->count = leaf->count - keep;
        memcpy(right->extents, leaf->extents + keep, right->count * sizeof *right->extents);
        leaf->count = keep;
        insert_leaf(map, at.leaf + 1, right);
        if (right->count > 0)
            map->firsts[at.leaf + 1] = right->extents[0].start;
        if (at.index > keep || tail) {
            at.leaf++;
            at.index -= keep;
            leaf = right;
        }
    }
    memmove(leaf->extents + at.index + 1, leaf->extents + at.index,
            (leaf->count - at.index) * sizeof *leaf->extents);
    leaf->extents[at.index] = extent;
    leaf->count++;
    if (at.index == 0)
        map->firsts[at.leaf] = extent.start;
    count_extent(map, &extent, 1);
    return at;
}

/* Replace the extent at the cursor by one that starts inside it. */
static void replace_extent(struct bd_extent_map *map, struct bd_map_cursor at,
                           struct bd_extent extent)
{
    struct bd_extent *old = &map->leaves[at.leaf]->extents[at.index];
    count_extent(map, old, -1);
    *old = extent;
    count_extent(map, old, 1);
    if (at.index == 0)
        map->firsts[at.leaf] = extent.start;
}

/* Remove every extent from the cursor on that ends at or before `end`. */
static void remove_until(struct bd_extent_map *map, struct bd_map_cursor at, uint64_t end)
{
    size_t first_empty = 0;
    size_t empty_end = 0;
    for (size_t i = at.leaf; i < map->leaf_count; i++) {
        struct bd_leaf *leaf = map->leaves[i];
        uint32_t from = i == at.leaf ? (uint32_t)at.index : 0;
        uint32_t to = from;
        while (to < leaf->count && leaf->extents[to].start + leaf->extents[to].length <= end) {
            count_extent(map, &leaf->extents[to], -1);
            to++;
        }
        bool more = to == leaf->count;
        memmove(leaf->extents + from, leaf->extents + to,
                (leaf->count - to) * sizeof *leaf->extents);
        leaf->count -= to - from;
        if (leaf->count == 0) {
            if (empty_end == 0)
                first_empty = i;
            empty_end = i + 1;
        } else if (from == 0) {
            map->firsts[i] = leaf->extents[0].start;
        }
        if (!more)
            break;
    }
    if (empty_end > 0)
        remove_leaves(map, first_empty, empty_end);
}

void bd_map_set(struct bd_extent_map *map, uint64_t start, uint64_t length, uint64_t place)
{
    uint64_t end = start + length;
    assert(length > 0 && end > start);
    struct bd_extent added = {start, length, place};
    struct bd_map_cursor at = bd_map_find(map, start);
    const struct bd_extent *found = bd_map_get(map, at);
    if (found != NULL && found->start == start && found->length == length) {
        replace_extent(map, at, added); /* the same block again: the common overwrite */
        return;
    }
    if (found != NULL && found->start < start) {
        struct bd_extent whole = *found;
        struct bd_extent left = whole;
        left.length = start - whole.start;
        replace_extent(map, at, left);
        if (whole.start + whole.length > end) {
            struct bd_map_cursor after = {at.leaf, at.index + 1};
            insert_extent(map, after, bd_extent_skip(whole, end - whole.start));
        }
    }
    at = bd_map_find(map, start);
    if (bd_map_get(map, at) != NULL) {
        remove_until(map, at, end);
        at = bd_map_find(map, start);
        found = bd_map_get(map, at);
        if (found != NULL && found->start < end)
            replace_extent(map, at, bd_extent_skip(*found, end - found->start));
    }
    insert_extent(map, at, added);
}

struct bd_map_cursor bd_map_find(const struct bd_extent_map *map, uint64_t offset)
{
    struct bd_map_cursor at = {0, 0};
    size_t low = 0;
    size_t high = map->leaf_count;
    while (low < high) { /* first leaf that starts after offset */
        size_t middle = low + (high - low) / 2;
        if (map->firsts[middle] <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return at;
    const struct bd_leaf *leaf = map->leaves[low - 1];
    size_t left = 0;
    size_t right = leaf->count;
    while (left < right) { /* first extent that starts after offset */
        size_t middle = left + (right - left) / 2;
        if (leaf->extents[middle].start <= offset)
            left = middle + 1;
        else
            right = middle;
    }
    at.leaf = low - 1;
    at.index = left;
    if (left > 0 && offset - leaf->extents[left - 1].start < leaf->extents[left - 1].length)
        at.index = left - 1;
    if (at.index == leaf->count) {
        at.leaf++;
        at.index = 0;
    }
    return at;
}

const struct bd_extent *bd_map_get(const struct bd_extent_map *map, struct bd_map_cursor at)
{
    return at.leaf < map->leaf_count ? &map->leaves[at.leaf]->extents[at.index] : NULL;
}

struct bd_map_cursor bd_map_next(const struct bd_extent_map *map, struct bd_map_cursor at)
{
    if (++at.index == map->leaves[at.leaf]->count) {
        at.leaf++;
        at.index = 0;
    }
    return at;
}

uint64_t bd_map_add_refer(struct bd_extent_map *map, const struct bd_refer *refer)
{
    if (map->refer_count == map->refer_capacity) {
        size_t capacity = map->refer_capacity ? map->refer_capacity * 2 : 16;
        struct bd_refer *refers = realloc(map->refers, capacity * sizeof *refers);
        if (refers == NULL)
            return 0;
        map->refers = refers;
        map->refer_capacity = capacity;
    }
    map->refers[map->refer_count] = *refer;
    return bd_place_make(BD_PLACE_REFER, 0, 0, 0) | map->refer_count++;
}

const struct bd_refer *bd_map_refer(const struct bd_extent_map *map, uint64_t place)
{
    if (bd_place_kind(place) != BD_PLACE_REFER)
        return NULL;
    uint64_t number = place & ((UINT64_C(1) << 62) - 1);
    assert(number < map->refer_count);
    return &map->refers[number];
}

bool bd_map_covers(const struct bd_extent_map *map, uint64_t start, uint64_t length)
{
    uint64_t end = start + length;
    struct bd_map_cursor at = bd_map_find(map, start);
    while (start < end) {
        const struct bd_extent *extent = bd_map_get(map, at);
        if (extent == NULL || extent->start > start ||
            bd_place_kind(extent->place) == BD_PLACE_REFER)
            return false;
        start = extent->start + extent->length;
        at = bd_map_next(map, at);
    }
    return true;
}

size_t bd_map_memory(const struct bd_extent_map *map)
{
    return map->leaf_count * sizeof(struct bd_leaf) +
           map->leaf_capacity * (sizeof *map->leaves + sizeof *map->firsts) +
           map->refer_capacity * sizeof *map->refers;
}
