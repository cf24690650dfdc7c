/* The extent map against a flat array that says, for each sector, where its bytes are. */
#include <string.h>

#include "check.h"
#include "crc32c.h"
#include "extent_map.h"

enum { SECTOR = 512, SECTORS = 1 << 14 };

/* What a sector's place must be; 0: not covered. Places of the model are never 0. */
static uint64_t model[SECTORS];

static void set(struct bd_extent_map *map, uint64_t start, uint64_t length, uint64_t place)
{
    CHECK_EQ(bd_map_reserve(map), 0);
    bd_map_set(map, start, length, place);
}

static uint64_t place_at(struct bd_extent extent, uint64_t offset)
{
    return offset == extent.start ? extent.place
                                  : bd_extent_skip(extent, offset - extent.start).place;
}

/* Order, counters, directory: what has to hold at any time. */
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
            CHECK(extent->length > 0);
            CHECK(count == 0 || extent->start >= end);
            end = extent->start + extent->length;
            count++;
            if (bd_place_kind(extent->place) == BD_PLACE_DATA)
                data_bytes += extent->length;
        }
    }
    CHECK_EQ(map->extent_count, count);
    CHECK_EQ(map->data_bytes, data_bytes);
    CHECK(map->leaf_count <= map->leaf_capacity);
}

static void check_model(const struct bd_extent_map *map)
{
    check_shape(map);
    struct bd_map_cursor at = {0, 0};
    uint64_t next = 0; /* sector */
    const struct bd_extent *extent;
    while ((extent = bd_map_get(map, at)) != NULL) {
        for (; next < extent->start / SECTOR; next++)
            CHECK(model[next] == 0);
        for (; next < (extent->start + extent->length) / SECTOR; next++)
            CHECK(model[next] == place_at(*extent, next * SECTOR));
        at = bd_map_next(map, at);
    }
    for (; next < SECTORS; next++)
        CHECK(model[next] == 0);
}

static void check_queries(const struct bd_extent_map *map, uint64_t *random)
{
    for (int i = 0; i < 50; i++) {
        uint64_t first = random_below(random, SECTORS);
        uint64_t count = 1 + random_below(random, i % 2 ? 4 : SECTORS - first);
        if (count > SECTORS - first)
            count = SECTORS - first;
        bool covered = true;
        for (uint64_t k = first; k < first + count; k++)
            covered = covered && model[k] != 0;
        CHECK_EQ(bd_map_covers(map, first * SECTOR, count * SECTOR), covered);
        const struct bd_extent *extent = bd_map_get(map, bd_map_find(map, first * SECTOR));
        uint64_t hit = first;
        while (hit < SECTORS && model[hit] == 0)
            hit++;
        if (hit == SECTORS) {
            CHECK(extent == NULL);
        } else {
            CHECK(extent != NULL && extent->start <= hit * SECTOR);
            CHECK(extent->start + extent->length > hit * SECTOR);
        }
    }
}

/* One more write or zero of sectors [first, first + count), in the map and in the model. */
static void put(struct bd_extent_map *map, uint64_t first, uint64_t count, bool zero,
                uint64_t *random)
{
    struct bd_extent extent = {.start = first * SECTOR, .length = count * SECTOR};
    extent.place = zero ? bd_place_make(BD_PLACE_ZERO, 0, 0, 0)
                        : bd_place_make(BD_PLACE_DATA, (uint32_t)random_below(random, 65536),
                                        (uint32_t)random_below(random, 1 << 19),
                                        64 * (uint32_t)random_below(random, 1 << 18));
    set(map, extent.start, extent.length, extent.place);
    for (uint64_t k = 0; k < count; k++) {
        uint64_t place = place_at(extent, (first + k) * SECTOR);
        model[first + k] = place != 0 ? place : 1;
    }
}

static void run_random(uint64_t seed, int steps, uint64_t longest, unsigned zero_percent)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    memset(model, 0, sizeof model);
    uint64_t random = seed;
    for (int step = 0; step < steps; step++) {
        uint64_t first = random_below(&random, SECTORS);
        uint64_t most = SECTORS - first < longest ? SECTORS - first : longest;
        put(&map, first, 1 + random_below(&random, most), random_below(&random, 100) < zero_percent,
            &random);
        if (step % 256 == 0)
            check_model(&map);
    }
    check_model(&map);
    check_queries(&map, &random);
    bd_map_destroy(&map);
    CHECK(map.leaves == NULL && map.extent_count == 0);
}

static void test_random_sectors(void)
{
    run_random(1, 12000, 1, 0); /* many small leaves, splits and a directory that grows */
}

static void test_random_overlaps(void)
{
    for (uint64_t seed = 10; seed < 20; seed++)
        run_random(seed, 1500, 40, 20);
}

static void test_random_long_ranges_drop_leaves(void)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    memset(model, 0, sizeof model);
    uint64_t random = 5;
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 500; i++)
            put(&map, random_below(&random, SECTORS), 1, false, &random);
        uint64_t first = random_below(&random, SECTORS / 2);
        put(&map, first, 1 + random_below(&random, SECTORS - first), round % 2, &random);
        check_model(&map);
        check_queries(&map, &random);
    }
    put(&map, 0, SECTORS, true, &random);
    check_model(&map);
    CHECK_EQ(map.extent_count, 1);
    CHECK_EQ(map.leaf_count, 1);
    bd_map_destroy(&map);
}

static void test_sequential_writes_fill_leaves(void)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    memset(model, 0, sizeof model);
    uint64_t random = 3;
    for (uint64_t i = 0; i < 64 * BD_LEAF_EXTENTS; i++)
        put(&map, i, 1, false, &random);
    check_model(&map);
    CHECK_EQ(map.leaf_count, 64);
    bd_map_destroy(&map);
}

static void test_backward_writes(void)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    memset(model, 0, sizeof model);
    uint64_t random = 4;
    for (uint64_t i = 4000; i-- > 0;)
        put(&map, i, 1, false, &random);
    check_model(&map);
    CHECK_EQ(map.extent_count, 4000);
    bd_map_destroy(&map);
}

static void test_an_exact_overwrite_adds_nothing(void)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    memset(model, 0, sizeof model);
    uint64_t random = 6;
    for (uint64_t i = 0; i < 1000; i++)
        put(&map, i * 8, 8, false, &random);
    size_t memory = bd_map_memory(&map);
    for (uint64_t i = 0; i < 1000; i++)
        put(&map, i * 8, 8, i % 3 == 0, &random);
    check_model(&map);
    CHECK_EQ(map.extent_count, 1000);
    CHECK_EQ(bd_map_memory(&map), memory);
    bd_map_destroy(&map);
}

/* A hole in the middle of an extent in a full leaf: two extents more, so two splits at the most. */
static void test_splitting_in_full_leaves(void)
{
    for (uint64_t at = 0; at < 2 * BD_LEAF_EXTENTS; at++) {
        struct bd_extent_map map;
        bd_map_init(&map);
        memset(model, 0, sizeof model);
        uint64_t random = at;
        for (uint64_t i = 0; i < 2 * BD_LEAF_EXTENTS; i++)
            put(&map, i * 8, 8, false, &random);
        CHECK_EQ(map.leaf_count, 2);
        put(&map, at * 8 + 3, 2, false, &random);
        check_model(&map);
        CHECK_EQ(map.extent_count, 2 * BD_LEAF_EXTENTS + 2);
        bd_map_destroy(&map);
    }
}

static void test_huge_zero_ranges(void)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    const uint64_t zero = bd_place_make(BD_PLACE_ZERO, 0, 0, 0);
    const uint64_t data = bd_place_make(BD_PLACE_DATA, 1, 2, 4096);
    set(&map, 0, UINT64_C(1) << 62, zero);
    set(&map, UINT64_C(1) << 40, 4096, data);
    CHECK_EQ(map.extent_count, 3);
    CHECK_EQ(map.data_bytes, 4096);
    CHECK(bd_map_covers(&map, 0, UINT64_C(1) << 62));
    CHECK(!bd_map_covers(&map, 0, (UINT64_C(1) << 62) + 1));
    const struct bd_extent *extent = bd_map_get(&map, bd_map_find(&map, UINT64_C(1) << 61));
    CHECK_EQ(extent->start, (UINT64_C(1) << 40) + 4096);
    set(&map, 0, UINT64_MAX, zero);
    CHECK_EQ(map.extent_count, 1);
    CHECK_EQ(map.data_bytes, 0);
    set(&map, UINT64_MAX - 1, 1, data);
    check_shape(&map);
    CHECK_EQ(map.extent_count, 2);
    bd_map_destroy(&map);
}

static void test_an_empty_map(void)
{
    struct bd_extent_map map;
    bd_map_init(&map);
    CHECK(bd_map_get(&map, bd_map_find(&map, 0)) == NULL);
    CHECK(bd_map_get(&map, bd_map_find(&map, UINT64_MAX)) == NULL);
    CHECK(!bd_map_covers(&map, 0, 1));
    CHECK(bd_map_covers(&map, 5, 0));
    CHECK_EQ(bd_map_memory(&map), 0);
    bd_map_destroy(&map);
    CHECK_EQ(bd_map_reserve(&map), 0); /* reserved and never used: nothing leaks */
    bd_map_destroy(&map);
}

static void test_places(void)
{
    uint64_t place = bd_place_make(BD_PLACE_DATA, 0xffff, 0xfffff, 0x3ffffff);
    CHECK_EQ(bd_place_kind(place), BD_PLACE_DATA);
    CHECK_EQ(bd_place_slot(place), 0xffff);
    CHECK_EQ(bd_place_piece(place), 0xfffff);
    CHECK_EQ(bd_place_offset(place), 0x3ffffff);
    CHECK_EQ(bd_place_kind(bd_place_make(BD_PLACE_ZERO, 0, 0, 0)), BD_PLACE_ZERO);
}

/* A piece is the part of a record in one page of the volume: skipping moves on by pages begun. */
static void test_skip(void)
{
    for (uint64_t start = 0; start < 2 * BD_PAGE; start += 512) {
        struct bd_extent extent = {start, 5 * BD_PAGE, bd_place_make(BD_PLACE_DATA, 9, 100, 640)};
        for (uint64_t delta = 0; delta < extent.length; delta += 512) {
            struct bd_extent rest = bd_extent_skip(extent, delta);
            CHECK_EQ(rest.start, start + delta);
            CHECK_EQ(rest.length, extent.length - delta);
            CHECK_EQ(bd_place_offset(rest.place), 640 + delta);
            CHECK_EQ(bd_place_slot(rest.place), 9);
            CHECK_EQ(bd_place_piece(rest.place), 100 + (start + delta) / BD_PAGE - start / BD_PAGE);
        }
    }
    struct bd_extent zero = {512, 1 << 20, bd_place_make(BD_PLACE_ZERO, 0, 0, 0)};
    CHECK_EQ(bd_extent_skip(zero, 8192).place, zero.place);
}

int main(void)
{
    test_random_sectors();
    test_random_overlaps();
    test_random_long_ranges_drop_leaves();
    test_sequential_writes_fill_leaves();
    test_backward_writes();
    test_an_exact_overwrite_adds_nothing();
    test_splitting_in_full_leaves();
    test_huge_zero_ranges();
    test_an_empty_map();
    test_places();
    test_skip();
    return 0;
}
