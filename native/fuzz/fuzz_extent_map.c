/* The extent map against a flat array that says of each unit what it reads as: after any sequence
 * of sets,
 *
 * - extents are in order, do not overlap, and the counters are what they add up to;
 * - every unit has the place that the last set over it gave it, pieces and offsets moved along;
 * - find, next and covers agree with the array.
 *
 * Input: operations of 6 bytes: kind, first unit (2), count of units (1), place (2). */
#include "crc32c.h"
#include "extent_map.h"
#include "fuzz.h"

enum { UNIT = 512, UNITS = 1 << 12, MAX_OPERATIONS = 512 };

static uint64_t model[UNITS]; /* 0: not covered */

static uint64_t place_at(struct bd_extent extent, uint64_t offset)
{
    return offset == extent.start ? extent.place
                                  : bd_extent_skip(extent, offset - extent.start).place;
}

static void set(struct bd_extent_map *map, uint64_t first, uint64_t count, uint64_t place)
{
    struct bd_extent extent = {first * UNIT, count * UNIT, place};
    CHECK_EQ(bd_map_reserve(map), 0);
    bd_map_set(map, extent.start, extent.length, place);
    for (uint64_t unit = first; unit < first + count; unit++)
        model[unit] = place_at(extent, unit * UNIT);
}

static void check_shape(const struct bd_extent_map *map)
{
    size_t count = 0;
    uint64_t data_bytes = 0;
    uint64_t end = 0;
    for (size_t i = 0; i < map->leaf_count; i++) {
        const struct bd_leaf *leaf = map->leaves[i];
        CHECK(leaf->count > 0 && leaf->count <= BD_LEAF_EXTENTS);
        CHECK_EQ(map->firsts[i], leaf->extents[0].start);
        for (uint32_t k = 0; k < leaf->count; k++) {
            const struct bd_extent *extent = &leaf->extents[k];
            CHECK(extent->length > 0 && (count == 0 || extent->start >= end));
            end = extent->start + extent->length;
            count++;
            if (bd_place_kind(extent->place) == BD_PLACE_DATA)
                data_bytes += extent->length;
        }
    }
    CHECK_EQ(map->extent_count, count);
    CHECK_EQ(map->data_bytes, data_bytes);
}

static void check_contents(const struct bd_extent_map *map)
{
    uint64_t next = 0;
    struct bd_map_cursor at = {0, 0};
    const struct bd_extent *extent;
    for (; (extent = bd_map_get(map, at)) != NULL; at = bd_map_next(map, at)) {
        for (; next < extent->start / UNIT; next++)
            CHECK(model[next] == 0);
        for (; next < (extent->start + extent->length) / UNIT; next++)
            CHECK(model[next] == place_at(*extent, next * UNIT));
    }
    for (; next < UNITS; next++)
        CHECK(model[next] == 0);
}

static void check_question(const struct bd_extent_map *map, uint64_t first, uint64_t count)
{
    bool covered = true;
    for (uint64_t unit = first; unit < first + count; unit++)
        covered = covered && model[unit] != 0 && bd_place_kind(model[unit]) != BD_PLACE_REFER;
    CHECK_EQ(bd_map_covers(map, first * UNIT, count * UNIT), covered);
    const struct bd_extent *found = bd_map_get(map, bd_map_find(map, first * UNIT));
    uint64_t hit = first;
    while (hit < UNITS && model[hit] == 0)
        hit++;
    CHECK((found == NULL) == (hit == UNITS));
    if (found != NULL)
        CHECK(found->start <= hit * UNIT && found->start + found->length > hit * UNIT);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    memset(model, 0, sizeof model);
    struct input input = {data, size};
    for (int count = 0; input.left > 0 && count < MAX_OPERATIONS; count++) {
        uint32_t kind = (uint32_t)take(&input, 1) % 8;
        uint64_t first = take(&input, 2) % UNITS;
        uint64_t units = 1 + take(&input, 1);
        uint32_t number = (uint32_t)take(&input, 2);
        if (units > UNITS - first)
            units = UNITS - first;
        if (kind == 0) { /* many small extents at once, so that leaves split within few bytes */
            for (uint64_t unit = first; unit < UNITS && unit < first + 2 * units; unit += 2)
                set(&map, unit, 1, bd_place_make(BD_PLACE_DATA, number, (uint32_t)unit, 64));
        } else if (kind <= 4) {
            set(&map, first, units,
                bd_place_make(BD_PLACE_DATA, number, number * 7, 64 + number * 512));
        } else if (kind == 5) {
            set(&map, first, units, bd_place_make(BD_PLACE_ZERO, 0, 0, 0));
        } else if (kind == 6) {
            struct bd_refer refer = {.source = number};
            uint64_t place = bd_map_add_refer(&map, &refer);
            set(&map, first, units, place);
            CHECK_EQ(bd_map_refer(&map, place)->source, number);
        } else {
            check_question(&map, first, units);
        }
        check_shape(&map);
    }
    check_contents(&map);
    CHECK(bd_map_memory(&map) > 0 || map.extent_count == 0);
    bd_map_destroy(&map);
    return 0;
}
