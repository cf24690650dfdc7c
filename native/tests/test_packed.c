/* Reads of packed chunks: any part of them, what is kept decoded, and damage. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "codec.h"
#include "crc32c.h"
#include "packed.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 20, PACK = 77, PACK_BYTES = 4 << 20 };

static uint8_t buffer[VOLUME];
static uint8_t raw[VOLUME]; /* what the volume should hold */

struct packed_rig {
    struct rig rig;
    struct memory_file memory;
    struct bd_pack *pack;
    uint64_t end; /* of what is in the pack */
};

static void init(struct packed_rig *packed)
{
    rig_init(&packed->rig, SEGMENT, 4, VOLUME);
    memory_file_init(&packed->memory, PACK_BYTES, 0);
    packed->pack = bd_pack_new(memory_file_open(&packed->memory), PACK);
    CHECK(packed->pack != NULL);
    packed->end = 100; /* a place like any other */
}

static void destroy(struct packed_rig *packed)
{
    bd_pack_release(packed->pack);
    rig_destroy(&packed->rig);
    CHECK(packed->memory.closed);
    memory_file_destroy(&packed->memory);
}

/* Fill chunk `index` with text of its own and store it; where its stored bytes begin. */
static uint64_t put(struct packed_rig *packed, uint64_t index, uint8_t codec, uint32_t *length)
{
    uint8_t *chunk = raw + index * RIG_CHUNK;
    uint64_t seed = index * 16 + codec;
    for (uint32_t at = 0; at < RIG_CHUNK; at++)
        chunk[at] = (uint8_t)(at % 32 < 24 ? at / 32 + index : next_random(&seed));
    uint64_t place = packed->end;
    ssize_t used =
        bd_codec_encode(codec, chunk, RIG_CHUNK, packed->memory.bytes + place, PACK_BYTES - place);
    CHECK(used > 4096 && used < RIG_CHUNK);
    packed->end += (uint64_t)used;
    uint8_t checks[64];
    bd_crc32c_pages(packed->memory.bytes + place, (size_t)used, checks);
    CHECK_EQ(bd_table_put_packed(packed->rig.table, 1, index, packed->pack, place, RIG_CHUNK, codec,
                                 (uint32_t)used, checks, ((size_t)used + 4095) / 4096 * 4),
             0);
    if (length != NULL)
        *length = (uint32_t)used;
    return place;
}

static int read_at(struct packed_rig *packed, uint64_t offset, uint64_t length, bool nowait,
                   struct bd_read_fault *fault)
{
    memset(buffer, 0xcc, sizeof buffer);
    return bd_volume_read(packed->rig.volume, offset, length, buffer, nowait, fault);
}

static void expect(struct packed_rig *packed, uint64_t offset, uint64_t length)
{
    struct bd_read_fault fault;
    bool nowait = length <= BD_PACKED_NOWAIT_MAX;
    CHECK_EQ(read_at(packed, offset, length, nowait, &fault), 0);
    CHECK(memcmp(buffer, raw + offset, length) == 0);
    CHECK(length == sizeof buffer || buffer[length] == 0xcc);
}

static void test_any_part(void)
{
    struct packed_rig packed;
    init(&packed);
    for (uint64_t index = 0; index < 16; index++)
        put(&packed, index, (uint8_t)(1 + index % 3), NULL);
    expect(&packed, 0, VOLUME);
    uint64_t seed = 3;
    for (int round = 0; round < 600; round++) {
        uint64_t offset = random_below(&seed, VOLUME);
        uint64_t limit = round % 3 ? 9000 : 3 * RIG_CHUNK;
        uint64_t length = 1 + random_below(&seed, limit);
        expect(&packed, offset, length < VOLUME - offset ? length : VOLUME - offset);
    }
    destroy(&packed);
}

static void test_hot_data_over_a_packed_chunk(void)
{
    struct packed_rig packed;
    init(&packed);
    put(&packed, 0, BD_CODEC_LZ4, NULL);
    for (uint64_t at = 512; at < RIG_CHUNK; at += 4096) {
        rig_write(&packed.rig, at, 512, 0xab);
        memset(raw + at, 0xab, 512);
    }
    expect(&packed, 0, RIG_CHUNK);
    expect(&packed, 500, 30000);
    /* Its parts were read one after the other: it was decoded once in part, and once for all. */
    CHECK(packed.memory.preads <= 3);
    destroy(&packed);
}

static bool is_kept(struct packed_rig *packed, uint64_t index)
{
    struct bd_chunk_place *place = bd_table_get(packed->rig.table, 1, index);
    bool kept = place->decoded != NULL;
    bd_chunk_place_release(place);
    return kept;
}

static void test_what_is_read_again_is_kept(void)
{
    struct packed_rig packed;
    init(&packed);
    struct bd_place_table *table = packed.rig.table; /* a quarter of 1 MiB: not quite four */
    for (uint64_t index = 0; index < 16; index++)
        put(&packed, index, BD_CODEC_ZSTD, NULL);
    size_t places = table->bytes;
    expect(&packed, 0, RIG_CHUNK);
    expect(&packed, 0, RIG_CHUNK);
    CHECK(!is_kept(&packed, 0)); /* whole chunks are not */
    expect(&packed, 0, 4096);
    CHECK(!is_kept(&packed, 0));
    expect(&packed, 4096, 4096);
    CHECK(is_kept(&packed, 0));
    CHECK_EQ(table->bytes, places + table->decoded_bytes);
    unsigned reads = packed.memory.preads;
    for (uint64_t at = 0; at < RIG_CHUNK; at += 4096)
        expect(&packed, at, 4096);
    CHECK_EQ(packed.memory.preads, reads);

    for (uint64_t index = 1; index < 16; index++) { /* a stream pushes the others out, in order */
        expect(&packed, index * RIG_CHUNK, 512);
        expect(&packed, index * RIG_CHUNK + 512, 512);
        CHECK(is_kept(&packed, index));
        CHECK(table->decoded_bytes <= table->limit / 4);
        CHECK(table->bytes <= table->limit);
    }
    for (uint64_t index = 0; index < 16; index++)
        CHECK_EQ(is_kept(&packed, index), index >= 13);

    for (int round = 0; round < 5; round++) /* more chunks than fit, in turns: nothing is kept */
        for (uint64_t index = 0; index < 12; index++)
            expect(&packed, index * RIG_CHUNK, 512);
    for (uint64_t index = 0; index < 16; index++)
        CHECK_EQ(is_kept(&packed, index), index >= 13);

    bd_table_drop_range(table, 1, 0, 14);
    bd_table_drop_pack(table, PACK);
    CHECK_EQ(table->decoded_bytes, 0);
    CHECK_EQ(table->bytes, 0);
    CHECK(table->newest == NULL && table->oldest == NULL);
    destroy(&packed);
}

static void test_decoded_bytes_outlive_their_removal(void)
{
    struct packed_rig packed;
    init(&packed);
    put(&packed, 0, BD_CODEC_IGZIP, NULL);
    expect(&packed, 0, 512);
    expect(&packed, 0, 512);
    struct bd_place_table *table = packed.rig.table;
    struct bd_chunk_place *place = bd_table_get(table, 1, 0);
    struct bd_decoded *decoded = bd_table_decoded(table, place);
    CHECK(decoded != NULL);
    bd_table_drop_range(table, 1, 0, UINT64_MAX);
    CHECK(memcmp(decoded->bytes, raw, RIG_CHUNK) == 0);
    bd_table_keep_decoded(table, place, decoded); /* too late: the place is gone */
    CHECK_EQ(table->bytes, 0);
    CHECK_EQ(decoded->references, 1);
    bd_decoded_release(decoded);
    bd_chunk_place_release(place);
    destroy(&packed);
}

static void check_fault(struct packed_rig *packed, uint64_t offset, uint64_t length, uint64_t place)
{
    for (int nowait = 0; nowait < 2; nowait++) {
        struct bd_read_fault fault = {0};
        CHECK_EQ(read_at(packed, offset, length, nowait, &fault), -EIO);
        CHECK_EQ(fault.offset, offset);
        CHECK_EQ(fault.slot, PACK);
        CHECK_EQ(fault.place, place);
        CHECK(fault.in_pack);
    }
}

static void test_damage(void)
{
    for (uint8_t codec = BD_CODEC_LZ4; codec < BD_CODEC_COUNT; codec++) {
        struct packed_rig packed;
        init(&packed);
        uint32_t length;
        uint64_t place = put(&packed, 2, codec, &length);
        /* A flipped bit anywhere is found, also where the part that is read is not affected. */
        packed.memory.bytes[place + 4096 + 5] ^= 1;
        check_fault(&packed, 2 * RIG_CHUNK, 512, place + 4096);
        check_fault(&packed, 2 * RIG_CHUNK + 60000, 512, place + 4096);
        check_fault(&packed, 2 * RIG_CHUNK, RIG_CHUNK, place + 4096);
        packed.memory.bytes[place + 4096 + 5] ^= 1;
        expect(&packed, 2 * RIG_CHUNK, RIG_CHUNK);
        packed.memory.fail_pread = -EIO;
        check_fault(&packed, 2 * RIG_CHUNK + 512, 512, place);
        packed.memory.fail_pread = 0;
        packed.memory.size = place + length - 1; /* cut off */
        check_fault(&packed, 2 * RIG_CHUNK + 512, 512, place);
        packed.memory.size = PACK_BYTES;
        expect(&packed, 2 * RIG_CHUNK, RIG_CHUNK);
        destroy(&packed);
    }
}

/* Checksums that hold over bytes that the codec does not accept. */
static void test_bytes_of_another_codec(void)
{
    struct packed_rig packed;
    init(&packed);
    uint32_t length;
    uint64_t place = put(&packed, 0, BD_CODEC_ZSTD, &length);
    uint8_t checks[64];
    bd_crc32c_pages(packed.memory.bytes + place, length, checks);
    for (uint8_t codec = BD_CODEC_LZ4; codec < BD_CODEC_COUNT; codec++) {
        if (codec == BD_CODEC_ZSTD)
            continue;
        CHECK_EQ(bd_table_put_packed(packed.rig.table, 1, 0, packed.pack, place, RIG_CHUNK, codec,
                                     length, checks, (length + 4095) / 4096 * 4),
                 0);
        check_fault(&packed, 0, RIG_CHUNK, place);
        check_fault(&packed, RIG_CHUNK - 1, 1, place);
    }
    destroy(&packed);
}

static void test_a_read_that_would_wait(void)
{
    struct packed_rig packed;
    init(&packed);
    put(&packed, 0, BD_CODEC_LZ4, NULL);
    struct bd_read_fault fault;
    packed.memory.would_wait = true;
    CHECK_EQ(read_at(&packed, 0, 512, true, &fault), -EAGAIN);
    CHECK_EQ(read_at(&packed, 0, RIG_CHUNK, true, &fault), -EAGAIN);
    CHECK_EQ(read_at(&packed, 0, 512, false, &fault), 0);
    CHECK(memcmp(buffer, raw, 512) == 0);
    CHECK(!is_kept(&packed, 0)); /* that was one read, tried twice */
    CHECK_EQ(read_at(&packed, 0, 4096, true, &fault), -EAGAIN);
    CHECK_EQ(read_at(&packed, 0, 4096, false, &fault), 0);
    CHECK(is_kept(&packed, 0));
    CHECK_EQ(read_at(&packed, 0, 4096, true, &fault), 0);
    destroy(&packed);
}

/* Decoding a large chunk takes too long for a thread that must not wait. */
static void test_large_chunks_are_left_to_others(void)
{
    enum { LARGE = 1 << 20 };
    struct memory_file memory;
    memory_file_init(&memory, 2 * LARGE, 0);
    struct bd_pack *pack = bd_pack_new(memory_file_open(&memory), PACK);
    struct bd_place_table *table = bd_table_new(64 << 20);
    for (uint32_t at = 0; at < LARGE; at++)
        raw[at] = (uint8_t)(at / 100);
    ssize_t used = bd_codec_encode(BD_CODEC_LZ4, raw, LARGE, memory.bytes, LARGE);
    CHECK(used > 0);
    static uint8_t checks[1024];
    bd_crc32c_pages(memory.bytes, (size_t)used, checks);
    CHECK_EQ(bd_table_put_packed(table, 1, 0, pack, 0, LARGE, BD_CODEC_LZ4, (uint32_t)used, checks,
                                 ((size_t)used + 4095) / 4096 * 4),
             0);
    struct bd_chunk_place *place = bd_table_get(table, 1, 0);
    uint64_t fault;
    CHECK_EQ(bd_packed_read(table, place, 0, LARGE, buffer, true, &fault), -EAGAIN);
    CHECK_EQ(bd_packed_read(table, place, 0, LARGE, buffer, false, &fault), 0);
    CHECK(memcmp(buffer, raw, LARGE) == 0);
    CHECK_EQ(bd_packed_read(table, place, 4096, 4096, buffer, true, &fault), 0);
    CHECK_EQ(bd_packed_read(table, place, LARGE - 4096, 4096, buffer, true, &fault), -EAGAIN);
    CHECK_EQ(bd_packed_read(table, place, LARGE - 4096, 4096, buffer, false, &fault), 0);
    CHECK(memcmp(buffer, raw + LARGE - 4096, 4096) == 0);
    CHECK_EQ(bd_packed_read(table, place, 5000, 3, buffer, true, &fault), 0); /* kept */
    CHECK(memcmp(buffer, raw + 5000, 3) == 0);
    bd_chunk_place_release(place);
    bd_pack_release(pack);
    bd_table_free(table);
    memory_file_destroy(&memory);
}

static void test_many_whole_chunks_are_left_to_others(void)
{
    struct packed_rig packed;
    init(&packed);
    for (uint64_t index = 0; index < 8; index++)
        put(&packed, index, BD_CODEC_LZ4, NULL);
    struct bd_read_fault fault;
    unsigned reads = packed.memory.preads;
    CHECK_EQ(read_at(&packed, 0, 5 * RIG_CHUNK, true, &fault), -EAGAIN);
    CHECK_EQ(packed.memory.preads, reads); /* before anything was done */
    CHECK_EQ(read_at(&packed, 0, 4 * RIG_CHUNK, true, &fault), 0);
    CHECK_EQ(read_at(&packed, 512, 5 * RIG_CHUNK, true, &fault), 0); /* four whole, two in part */
    CHECK(memcmp(buffer, raw + 512, 5 * RIG_CHUNK) == 0);
    CHECK_EQ(read_at(&packed, 0, 5 * RIG_CHUNK, false, &fault), 0);
    CHECK(memcmp(buffer, raw, 5 * RIG_CHUNK) == 0);
    destroy(&packed);
}

static void test_places_that_no_packed_chunk_has(void)
{
    struct packed_rig packed;
    init(&packed);
    struct bd_place_table *table = packed.rig.table;
    uint8_t checks[64] = {0};
    struct bd_pack *pack = packed.pack;
    static const struct {
        uint32_t length;
        uint8_t codec;
        uint32_t stored;
        size_t bytes;
    } wrong[] = {
        {65536, BD_CODEC_NONE, 4096, 4}, {65536, BD_CODEC_COUNT, 4096, 4},
        {65536, BD_CODEC_LZ4, 0, 0},     {65536, BD_CODEC_LZ4, 65536, 64},
        {65536, BD_CODEC_LZ4, 4097, 4},  {BD_CODEC_MAX_RAW + 1, BD_CODEC_LZ4, 4096, 4},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK_EQ(bd_table_put_packed(table, 1, 0, pack, 0, wrong[i].length, wrong[i].codec,
                                     wrong[i].stored, checks, wrong[i].bytes),
                 -EINVAL);
    CHECK_EQ(bd_table_put_packed(table, 1, 0, NULL, 0, 65536, BD_CODEC_LZ4, 4096, checks, 4),
             -EINVAL);
    CHECK_EQ(bd_table_put(table, 1, 0, BD_CHUNK_PACKED, pack, 0, 65536, checks, 64), -EINVAL);
    CHECK_EQ(table->entry_count, 0);

    /* A chunk shorter than the volume's: reads beyond its end are damage. */
    CHECK_EQ(bd_table_put_packed(table, 1, 0, pack, 0, 8192, BD_CODEC_LZ4, 4096, checks, 4), 0);
    check_fault(&packed, 4096, 8192, 0);
    destroy(&packed);
}

int main(void)
{
    test_any_part();
    test_hot_data_over_a_packed_chunk();
    test_what_is_read_again_is_kept();
    test_decoded_bytes_outlive_their_removal();
    test_damage();
    test_bytes_of_another_codec();
    test_a_read_that_would_wait();
    test_large_chunks_are_left_to_others();
    test_many_whole_chunks_are_left_to_others();
    test_places_that_no_packed_chunk_has();
    return 0;
}
