/* The place table: budget, eviction, removal, and entries that outlive it. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "memory_file.h"
#include "place_table.h"

enum { CHUNK = 65536, ENTRY = sizeof(struct bd_chunk_place) + 16 };

static void put_hole(struct bd_place_table *table, uint32_t volume, uint64_t index)
{
    CHECK_EQ(bd_table_put(table, volume, index, BD_CHUNK_HOLE, NULL, 0, CHUNK, NULL, 0), 0);
}

static bool has(struct bd_place_table *table, uint32_t volume, uint64_t index)
{
    struct bd_chunk_place *place = bd_table_get(table, volume, index);
    if (place == NULL)
        return false;
    CHECK_EQ(place->volume, volume);
    CHECK_EQ(place->index, index);
    bd_chunk_place_release(place);
    return true;
}

static void test_put_and_get(void)
{
    struct bd_place_table *table = bd_table_new(1 << 20);
    CHECK(!has(table, 1, 0));
    put_hole(table, 1, 0);
    put_hole(table, 2, 0);
    put_hole(table, 1, UINT64_MAX);
    CHECK(has(table, 1, 0) && has(table, 2, 0) && has(table, 1, UINT64_MAX));
    CHECK(!has(table, 1, 1) && !has(table, 3, 0));
    CHECK_EQ(table->entry_count, 3);
    CHECK_EQ(table->bytes, 3 * ENTRY);
    CHECK_EQ(table->hits, 3);
    CHECK_EQ(table->misses, 3);
    bd_table_free(table);
}

static void test_put_again_replaces(void)
{
    struct bd_place_table *table = bd_table_new(1 << 20);
    uint8_t bytes[4096];
    memset(bytes, 5, sizeof bytes);
    put_hole(table, 1, 7);
    CHECK_EQ(bd_table_put(table, 1, 7, BD_CHUNK_DECODED, NULL, 0, 4096, bytes, 4096), 0);
    CHECK_EQ(table->entry_count, 1);
    CHECK_EQ(table->bytes, ENTRY + 4096);
    struct bd_chunk_place *place = bd_table_get(table, 1, 7);
    CHECK_EQ(place->kind, BD_CHUNK_DECODED);
    CHECK(memcmp(place->payload, bytes, 4096) == 0);
    put_hole(table, 1, 7);
    CHECK(memcmp(place->payload, bytes, 4096) == 0); /* still ours */
    bd_chunk_place_release(place);
    CHECK_EQ(table->bytes, ENTRY);
    bd_table_free(table);
}

static void test_payloads_of_another_size_are_refused(void)
{
    struct bd_place_table *table = bd_table_new(1 << 20);
    struct memory_file memory;
    memory_file_init(&memory, 4096, 0);
    struct bd_pack *pack = bd_pack_new(memory_file_open(&memory), 1);
    uint8_t bytes[100] = {0};
    CHECK_EQ(bd_table_put(table, 1, 0, BD_CHUNK_HOLE, NULL, 0, CHUNK, bytes, 1), -EINVAL);
    CHECK_EQ(bd_table_put(table, 1, 0, BD_CHUNK_DECODED, NULL, 0, 99, bytes, 100), -EINVAL);
    CHECK_EQ(bd_table_put(table, 1, 0, BD_CHUNK_RAW, pack, 0, CHUNK, bytes, 60), -EINVAL);
    CHECK_EQ(bd_table_put(table, 1, 0, BD_CHUNK_RAW, pack, 0, CHUNK, bytes, 64), 0);
    CHECK_EQ(bd_table_put(table, 1, 1, BD_CHUNK_RAW, pack, 0, 4097, bytes, 8), 0);
    CHECK_EQ(table->entry_count, 2);
    CHECK_EQ(pack->references, 3);
    bd_pack_release(pack);
    CHECK(!memory.closed);
    bd_table_free(table);
    CHECK(memory.closed);
    memory_file_destroy(&memory);
}

static void test_it_grows_and_finds_everything(void)
{
    struct bd_place_table *table = bd_table_new(64 << 20);
    for (uint64_t index = 0; index < 20000; index++)
        put_hole(table, (uint32_t)(index % 3), index);
    CHECK(table->bucket_count >= 16384);
    for (uint64_t index = 0; index < 20000; index++)
        CHECK(has(table, (uint32_t)(index % 3), index));
    bd_table_free(table);
}

static void test_the_budget_holds(void)
{
    struct bd_place_table *table = bd_table_new(100 * ENTRY);
    for (uint64_t index = 0; index < 5000; index++) {
        put_hole(table, 1, index);
        CHECK(table->bytes <= table->limit);
        CHECK_EQ(table->bytes, table->entry_count * ENTRY);
    }
    CHECK(table->entry_count > 50);
    bd_table_free(table);
}

static void test_what_is_used_stays_longer(void)
{
    struct bd_place_table *table = bd_table_new(200 * ENTRY);
    unsigned kept = 0;
    for (uint64_t index = 0; index < 4000; index++) {
        put_hole(table, 1, 1000000 + index);
        for (uint64_t hot = 0; hot < 50; hot++) {
            kept += has(table, 2, hot);
            if (!has(table, 2, hot))
                put_hole(table, 2, hot);
        }
    }
    CHECK(kept > 50 * 4000 * 9 / 10);
    bd_table_free(table);
}

static void test_an_entry_above_the_budget(void)
{
    struct bd_place_table *table = bd_table_new(1000);
    uint8_t bytes[4096] = {0};
    put_hole(table, 1, 0);
    CHECK_EQ(bd_table_put(table, 1, 1, BD_CHUNK_DECODED, NULL, 0, 4096, bytes, 4096), 0);
    CHECK(table->bytes <= 1000);
    CHECK(!has(table, 1, 1));
    bd_table_free(table);
    table = bd_table_new(0);
    put_hole(table, 1, 0);
    CHECK_EQ(table->entry_count, 0);
    CHECK_EQ(table->bytes, 0);
    bd_table_free(table);
}

static void check_dropped(uint64_t first, uint64_t end, uint64_t count)
{
    struct bd_place_table *table = bd_table_new(64 << 20);
    for (uint64_t index = 0; index < count; index++) {
        put_hole(table, 1, index);
        put_hole(table, 2, index);
    }
    bd_table_drop_range(table, 1, first, end);
    for (uint64_t index = 0; index < count; index++) {
        CHECK_EQ(has(table, 1, index), index < first || index >= end);
        CHECK(has(table, 2, index));
    }
    bd_table_free(table);
}

static void test_drop_range(void)
{
    check_dropped(10, 10, 100);
    check_dropped(10, 20, 100);
    check_dropped(50, UINT64_MAX, 100);
    check_dropped(0, UINT64_MAX, 100);
    check_dropped(7, 7 + 1023, 3000); /* on both sides of going through all buckets */
    check_dropped(7, 7 + 8192, 3000);
}

static void test_entries_in_use_outlive_their_removal(void)
{
    struct memory_file memory;
    memory_file_init(&memory, 4096, 0);
    struct bd_place_table *table = bd_table_new(1 << 20);
    struct bd_pack *pack = bd_pack_new(memory_file_open(&memory), 42);
    uint8_t checks[64];
    memset(checks, 9, sizeof checks);
    CHECK_EQ(bd_table_put(table, 1, 3, BD_CHUNK_RAW, pack, 100, CHUNK, checks, 64), 0);
    put_hole(table, 1, 4);
    bd_pack_release(pack);
    struct bd_chunk_place *place = bd_table_get(table, 1, 3);
    bd_table_drop_pack(table, 41);
    CHECK(has(table, 1, 3));
    bd_table_drop_pack(table, 42);
    CHECK(!has(table, 1, 3));
    CHECK(has(table, 1, 4));
    CHECK_EQ(table->entry_count, 1);
    CHECK(!memory.closed);
    CHECK(memcmp(place->payload, checks, 64) == 0);
    bd_table_free(table);
    CHECK(!memory.closed);
    bd_chunk_place_release(place);
    CHECK(memory.closed);
    memory_file_destroy(&memory);
}

static void put_in_pack(struct bd_place_table *table, uint64_t index, struct memory_file *memory,
                        uint32_t number)
{
    uint8_t checks[64] = {0};
    struct bd_pack *pack = bd_pack_new(memory_file_open(memory), number);
    CHECK_EQ(bd_table_put(table, 1, index, BD_CHUNK_RAW, pack, 100, CHUNK, checks, 64), 0);
    bd_pack_release(pack);
}

static void test_packs_are_marked_by_who_reads_them(void)
{
    static uint8_t bits[BD_READ_PACKS / 8];
    static const uint8_t nothing[BD_READ_PACKS / 8];
    struct memory_file files[3];
    for (int i = 0; i < 3; i++)
        memory_file_init(&files[i], 4096, 0);
    struct bd_place_table *table = bd_table_new(1 << 20);
    put_in_pack(table, 0, &files[0], 3);
    put_in_pack(table, 1, &files[1], BD_READ_PACKS + 12);
    put_in_pack(table, 2, &files[2], BD_SHOWN_PACKS + 5);
    put_hole(table, 1, 3);
    bd_table_take_read_packs(table, bits);
    CHECK(memcmp(bits, nothing, sizeof bits) == 0); /* to be put is not to be read */

    CHECK(has(table, 1, 0) && has(table, 1, 1) && has(table, 1, 2) && has(table, 1, 3));
    bd_table_take_read_packs(table, bits);
    CHECK_EQ(bits[0], 1 << 3);
    CHECK_EQ(bits[1], 1 << 4);
    bits[0] = bits[1] = 0;
    CHECK(memcmp(bits, nothing, sizeof bits) == 0);
    bd_table_take_read_packs(table, bits);
    CHECK(memcmp(bits, nothing, sizeof bits) == 0);
    bd_table_free(table);
    for (int i = 0; i < 3; i++)
        memory_file_destroy(&files[i]);
}

static void test_a_cleared_table_is_as_small_as_a_new_one(void)
{
    struct memory_file memory;
    memory_file_init(&memory, 4096, 0);
    struct bd_place_table *table = bd_table_new(64 << 20);
    size_t buckets = table->bucket_count;
    struct bd_pack *pack = bd_pack_new(memory_file_open(&memory), 42);
    uint8_t checks[64] = {0};
    for (uint64_t index = 0; index < 5000; index++)
        CHECK_EQ(bd_table_put(table, 1, index, BD_CHUNK_RAW, pack, 0, CHUNK, checks, 64), 0);
    bd_pack_release(pack);
    struct bd_chunk_place *used = bd_table_get(table, 1, 77);
    struct bd_decoded *decoded = bd_decoded_new(4096);
    bd_table_keep_decoded(table, used, decoded);
    bd_decoded_release(decoded);
    CHECK(table->bucket_count > buckets);
    bd_table_clear(table);
    CHECK_EQ(table->bucket_count, buckets);
    CHECK_EQ(table->entry_count, 0);
    CHECK_EQ(table->bytes, 0);
    CHECK_EQ(table->decoded_bytes, 0);
    CHECK(!memory.closed); /* a reader has a place in hand */
    CHECK_EQ(used->index, 77);
    bd_chunk_place_release(used);
    CHECK(memory.closed);
    put_hole(table, 1, 3);
    CHECK(has(table, 1, 3));
    bd_table_free(table);
    memory_file_destroy(&memory);
}

int main(void)
{
    test_put_and_get();
    test_put_again_replaces();
    test_payloads_of_another_size_are_refused();
    test_it_grows_and_finds_everything();
    test_the_budget_holds();
    test_what_is_used_stays_longer();
    test_an_entry_above_the_budget();
    test_drop_range();
    test_entries_in_use_outlive_their_removal();
    test_packs_are_marked_by_who_reads_them();
    test_a_cleared_table_is_as_small_as_a_new_one();
    return 0;
}
