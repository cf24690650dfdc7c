/* Reads: which layer answers, parts of pieces, damage, and what stays readable how long. */
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 20, SECTOR = 512 };

static uint8_t buffer[VOLUME];

static int read_at(struct rig *rig, uint64_t offset, uint64_t length, bool nowait,
                   struct bd_read_fault *fault)
{
    return bd_volume_read(rig->volume, offset, length, buffer, nowait, fault);
}

static void freeze(struct rig *rig)
{
    pthread_mutex_lock(&rig->journal->lock);
    pthread_mutex_lock(&rig->volume->lock);
    CHECK_EQ(bd_volume_freeze(rig->volume), 0);
    CHECK_EQ(bd_volume_freeze(rig->volume), -EBUSY);
    pthread_mutex_unlock(&rig->volume->lock);
    pthread_mutex_unlock(&rig->journal->lock);
}

static void put_decoded(struct rig *rig, uint64_t index, uint8_t byte)
{
    static uint8_t bytes[RIG_CHUNK];
    memset(bytes, byte, sizeof bytes);
    CHECK_EQ(
        bd_table_put(rig->table, 1, index, BD_CHUNK_DECODED, NULL, 0, RIG_CHUNK, bytes, RIG_CHUNK),
        0);
}

/* A raw chunk whose byte i is i / 256, stored at `data_offset` of the file. */
static struct bd_pack *put_raw(struct rig *rig, uint64_t index, struct memory_file *memory,
                               uint64_t data_offset, uint32_t length)
{
    uint8_t checks[4 * (RIG_CHUNK / BD_PAGE)];
    for (uint32_t i = 0; i < length; i++)
        memory->bytes[data_offset + i] = (uint8_t)(i / 256);
    bd_crc32c_pages(memory->bytes + data_offset, length, checks);
    struct bd_pack *pack = bd_pack_new(memory_file_open(memory), 77);
    CHECK_EQ(bd_table_put(rig->table, 1, index, BD_CHUNK_RAW, pack, data_offset, length, checks,
                          (length + 4095) / 4096 * 4),
             0);
    return pack;
}

static void test_layers(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    put_decoded(&rig, 0, 1);
    put_decoded(&rig, 1, 1);
    rig_write(&rig, 4096, 4 * 4096, 2);
    freeze(&rig);
    rig_write(&rig, 2 * 4096 + 512, 512, 3);
    CHECK_EQ(rig_do(&rig, BD_ACTION_UNMAP, 3 * 4096, 4096, NULL, NULL), BD_ACTION_DONE);
    struct bd_read_fault fault;
    CHECK_EQ(read_at(&rig, 0, 2 * RIG_CHUNK, true, &fault), 0);
    for (uint64_t at = 0; at < 2 * RIG_CHUNK; at++) {
        uint8_t want = at < 4096 || at >= 5 * 4096 ? 1 : 2;
        if (at >= 2 * 4096 + 512 && at < 2 * 4096 + 1024)
            want = 3;
        if (at >= 3 * 4096 && at < 4 * 4096)
            want = 0;
        CHECK_EQ(buffer[at], want);
    }
    memset(buffer, 9, sizeof buffer);
    CHECK_EQ(bd_volume_read_frozen(rig.volume, 0, RIG_CHUNK, buffer, &fault), 0);
    for (uint64_t at = 0; at < RIG_CHUNK; at++)
        CHECK_EQ(buffer[at], at < 4096 || at >= 5 * 4096 ? 9 : 2); /* the rest is left alone */
    bd_volume_commit(rig.volume, 5);
    CHECK_EQ(rig.volume->generation, 5);
    CHECK_EQ(read_at(&rig, 0, 512, true, &fault), -EAGAIN); /* its place was of the old head */
    rig_expect(&rig, RIG_CHUNK, 512, 1);                    /* untouched: still known */
    put_decoded(&rig, 0, 4);
    rig_expect(&rig, 4096, 4096, 4);
    rig_expect(&rig, 2 * 4096 + 512, 512, 3);
    rig_destroy(&rig);
}

static void test_thaw(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 1);
    freeze(&rig);
    bd_volume_thaw(rig.volume);
    CHECK(rig.volume->frozen == NULL);
    CHECK_EQ(rig.volume->active->extent_count, 1);
    rig_write(&rig, 4096, 4096, 2);
    rig_expect(&rig, 0, 4096, 1);
    rig_expect(&rig, 4096, 4096, 2);
    rig_destroy(&rig);
}

/* Random writes at sector granularity over each other; every sector range reads as the model. */
static void test_any_part_of_any_write(void)
{
    enum { AREA = 12 * 4096 };
    struct rig rig;
    rig_init(&rig, SEGMENT, 16, VOLUME);
    rig_holes(&rig, VOLUME / RIG_CHUNK);
    static uint8_t model[AREA];
    static uint8_t data[AREA];
    memset(model, 0, sizeof model);
    uint64_t random = 11;
    struct bd_read_fault fault;
    for (int round = 0; round < 250; round++) {
        uint64_t first = random_below(&random, AREA / SECTOR);
        uint64_t count = 1 + random_below(&random, AREA / SECTOR - first);
        if (round % 3)
            count = 1 + count % 12;
        if (first + count > AREA / SECTOR)
            count = AREA / SECTOR - first;
        uint64_t offset = first * SECTOR;
        uint64_t length = count * SECTOR;
        if (round % 7 == 0) {
            rig_do(&rig, BD_ACTION_ZERO, offset, length, NULL, NULL);
            memset(model + offset, 0, length);
        } else {
            random_bytes(&random, data, length);
            CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, offset, length, data, NULL), BD_ACTION_DONE);
            memcpy(model + offset, data, length);
        }
        for (int i = 0; i < 10; i++) {
            first = random_below(&random, AREA / SECTOR);
            count = 1 + random_below(&random, AREA / SECTOR - first);
            memset(buffer, 0xcc, AREA);
            CHECK_EQ(read_at(&rig, first * SECTOR, count * SECTOR, true, &fault), 0);
            CHECK(memcmp(buffer, model + first * SECTOR, count * SECTOR) == 0);
            CHECK_EQ(buffer[count * SECTOR], 0xcc);
        }
        if (round % 60 == 59) {
            rig_restart(&rig);
            rig_holes(&rig, VOLUME / RIG_CHUNK);
        }
    }
    rig_destroy(&rig);
}

/* Bytes need not be in sectors for the core. */
static void test_odd_ranges(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_holes(&rig, 1);
    rig_write(&rig, 1, 1, 1);
    rig_write(&rig, 4095, 2, 2);
    rig_write(&rig, 4097, 8190, 3);
    rig_expect(&rig, 0, 1, 0);
    rig_expect(&rig, 1, 1, 1);
    rig_expect(&rig, 2, 4093, 0);
    rig_expect(&rig, 4095, 2, 2);
    for (uint64_t at = 4097; at < 4097 + 8190; at += 13)
        rig_expect(&rig, at, at + 600 < 4097 + 8190 ? 600 : 1, 3);
    rig_destroy(&rig);
}

static void test_damage_in_the_journal(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 512, 3 * 4096, 5); /* pieces of 3584, 4096, 4096 and 512 bytes */
    const uint64_t payload = bd_place_offset(rig.volume->active->leaves[0]->extents[0].place);
    const uint64_t pieces[] = {512, 4096, 8192, 12288};
    for (int i = 0; i < 4; i++) {
        uint64_t place = payload + pieces[i] - 512;
        struct bd_read_fault fault = {0};
        rig.files[0].bytes[place] ^= 0x10;
        CHECK_EQ(read_at(&rig, 512, 3 * 4096, false, &fault), -EIO);
        CHECK_EQ(fault.offset, pieces[i]);
        CHECK_EQ(fault.slot, 0);
        CHECK_EQ(fault.place, place);
        CHECK(!fault.in_pack);
        CHECK_EQ(read_at(&rig, pieces[i] + 256, 128, false, &fault), -EIO); /* a part of it too */
        CHECK_EQ(fault.offset, pieces[i] + 256);
        uint8_t sound[512];
        uint64_t other = pieces[(i + 1) % 4];
        CHECK_EQ(bd_volume_read(rig.volume, other, 512, sound, false, &fault), 0);
        struct bd_action action = {
            .kind = BD_ACTION_READ, .offset = 512, .length = 3 * 4096, .data = buffer};
        bd_batch_execute(rig.volume, &action, 1, 1);
        CHECK_EQ(action.state, BD_ACTION_WAIT_READ); /* the slow path says what is wrong */
        rig.files[0].bytes[place] ^= 0x10;
    }
    rig_expect(&rig, 512, 3 * 4096, 5);
    rig_destroy(&rig);
}

static void test_read_errors_and_short_files(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 8192, 5);
    struct bd_read_fault fault = {0};
    rig.files[0].fail_pread = -EIO;
    CHECK_EQ(read_at(&rig, 4096, 4096, false, &fault), -EIO);
    CHECK_EQ(fault.offset, 4096);
    CHECK_EQ(read_at(&rig, 4096, 100, false, &fault), -EIO);
    rig.files[0].fail_pread = 0;
    rig.files[0].size = 4096 + 64 + 64 + 8191;
    CHECK_EQ(read_at(&rig, 0, 8192, false, &fault), -EIO);
    CHECK_EQ(read_at(&rig, 0, 4096, false, &fault), 0);
    rig.files[0].size = SEGMENT;
    rig.files[0].would_wait = true;
    CHECK_EQ(read_at(&rig, 0, 8192, true, &fault), -EAGAIN);
    CHECK_EQ(read_at(&rig, 100, 10, true, &fault), -EAGAIN);
    CHECK_EQ(read_at(&rig, 0, 8192, false, &fault), 0);
    CHECK_EQ(rig.journal->segments[0]->pins, 0); /* each way out let go of it */
    rig_destroy(&rig);
}

static void test_raw_chunks(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct memory_file memory;
    memory_file_init(&memory, 1000 + RIG_CHUNK, 0xee);
    bd_pack_release(put_raw(&rig, 3, &memory, 1000, RIG_CHUNK));
    struct bd_read_fault fault;
    uint64_t random = 8;
    for (int i = 0; i < 2000; i++) {
        uint64_t at = random_below(&random, RIG_CHUNK);
        uint64_t length = 1 + random_below(&random, i % 2 ? 5000 : RIG_CHUNK);
        if (length > RIG_CHUNK - at)
            length = RIG_CHUNK - at;
        if (i % 3 == 0) {
            at &= ~(uint64_t)4095;
            length = RIG_CHUNK - at < 8192 ? RIG_CHUNK - at : 8192;
        }
        CHECK_EQ(read_at(&rig, 3 * RIG_CHUNK + at, length, true, &fault), 0);
        for (uint64_t k = 0; k < length; k++)
            CHECK_EQ(buffer[k], (at + k) / 256);
    }
    rig_write(&rig, 3 * RIG_CHUNK + 5000, 1000, 0xab); /* the journal over the middle of it */
    CHECK_EQ(read_at(&rig, 3 * RIG_CHUNK, RIG_CHUNK, true, &fault), 0);
    for (uint64_t k = 0; k < RIG_CHUNK; k++)
        CHECK_EQ(buffer[k], k >= 5000 && k < 6000 ? 0xab : k / 256);
    rig_destroy(&rig);
    CHECK(memory.closed);
    memory_file_destroy(&memory);
}

static void test_damage_in_a_pack(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct memory_file memory;
    memory_file_init(&memory, 1000 + RIG_CHUNK, 0);
    bd_pack_release(put_raw(&rig, 3, &memory, 1000, RIG_CHUNK));
    const uint64_t chunk = 3 * RIG_CHUNK;
    struct bd_read_fault fault = {0};
    memory.bytes[1000 + 9 * 4096 + 7] ^= 1;
    CHECK_EQ(read_at(&rig, chunk, RIG_CHUNK, false, &fault), -EIO);
    CHECK_EQ(fault.offset, chunk + 9 * 4096);
    CHECK_EQ(fault.slot, 77);
    CHECK_EQ(fault.place, 1000 + 9 * 4096);
    CHECK(fault.in_pack);
    CHECK_EQ(read_at(&rig, chunk + 9 * 4096 + 100, 10, false, &fault), -EIO);
    CHECK_EQ(fault.offset, chunk + 9 * 4096 + 100);
    CHECK_EQ(read_at(&rig, chunk, 9 * 4096, false, &fault), 0);
    CHECK_EQ(read_at(&rig, chunk + 10 * 4096, 6 * 4096, false, &fault), 0);
    memory.would_wait = true;
    CHECK_EQ(read_at(&rig, chunk, 4096, true, &fault), -EAGAIN);
    CHECK_EQ(read_at(&rig, chunk + 1, 5, true, &fault), -EAGAIN);
    memory.size = 1000 + 4096;
    CHECK_EQ(read_at(&rig, chunk + 4096, 4096, false, &fault), -EIO);
    CHECK_EQ(read_at(&rig, chunk, 4096, false, &fault), 0);
    rig_destroy(&rig);
    memory_file_destroy(&memory);
}

/* A chunk shorter than its range is an error, never bytes of something else. */
static void test_short_chunks(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct memory_file memory;
    memory_file_init(&memory, RIG_CHUNK, 0);
    bd_pack_release(put_raw(&rig, 0, &memory, 0, 5000));
    uint8_t bytes[100] = {0};
    CHECK_EQ(bd_table_put(rig.table, 1, 1, BD_CHUNK_DECODED, NULL, 0, 100, bytes, 100), 0);
    struct bd_read_fault fault;
    CHECK_EQ(read_at(&rig, 0, 5000, false, &fault), 0);
    CHECK_EQ(read_at(&rig, 4096, 904, false, &fault), 0);
    CHECK_EQ(read_at(&rig, 4096, 905, false, &fault), -EIO);
    CHECK_EQ(read_at(&rig, 0, RIG_CHUNK, false, &fault), -EIO);
    CHECK_EQ(read_at(&rig, RIG_CHUNK, 100, false, &fault), 0);
    CHECK_EQ(read_at(&rig, RIG_CHUNK + 1, 100, false, &fault), -EIO);
    rig_destroy(&rig);
    memory_file_destroy(&memory);
}

static void test_missing(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    uint64_t indexes[16];
    CHECK_EQ(bd_volume_missing(rig.volume, 0, VOLUME, indexes, 16), 16);
    for (uint64_t i = 0; i < 16; i++)
        CHECK_EQ(indexes[i], i);
    CHECK_EQ(bd_volume_missing(rig.volume, 0, VOLUME, indexes, 3), 3);
    CHECK_EQ(bd_volume_missing(rig.volume, 0, 0, indexes, 3), 0);
    rig_write(&rig, RIG_CHUNK, RIG_CHUNK, 1);
    rig_write(&rig, 2 * RIG_CHUNK, 512, 1);
    put_decoded(&rig, 4, 1);
    CHECK_EQ(bd_volume_missing(rig.volume, 0, 6 * RIG_CHUNK, indexes, 16), 4);
    CHECK(indexes[0] == 0 && indexes[1] == 2 && indexes[2] == 3 && indexes[3] == 5);
    CHECK_EQ(bd_volume_missing(rig.volume, RIG_CHUNK, RIG_CHUNK + 512, indexes, 16), 0);
    struct bd_read_fault fault;
    CHECK_EQ(read_at(&rig, 0, VOLUME, false, &fault), -EAGAIN);
    CHECK_EQ(rig.journal->segments[0]->pins, 0);
    rig_destroy(&rig);
}

static void test_a_read_of_many_pieces(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_holes(&rig, 4);
    for (uint64_t at = 0; at < 400; at += 2)
        rig_write(&rig, at * 512, 512, 1);
    struct bd_read_fault fault;
    CHECK_EQ(read_at(&rig, 0, 400 * 512, true, &fault), 0);
    for (uint64_t at = 0; at < 400 * 512; at++)
        CHECK_EQ(buffer[at], at / 512 % 2 == 0);
    CHECK_EQ(rig.journal->segments[0]->pins, 0);
    rig_destroy(&rig);
}

/* A deleted volume's hot data is not saved by destage rounds: its segments get other bytes. */
static void test_a_retired_volume_is_not_read(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 1);
    bd_volume_retire(rig.volume, true);
    struct bd_read_fault fault;
    CHECK_EQ(read_at(&rig, 0, 4096, false, &fault), -ESHUTDOWN);
    int status;
    CHECK_EQ(rig_do(&rig, BD_ACTION_READ, 0, 4096, buffer, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -ESHUTDOWN);
    freeze(&rig);
    CHECK_EQ(bd_volume_read_frozen(rig.volume, 0, 4096, buffer, &fault), 0); /* a round under way */
    rig_destroy(&rig);
}

int main(void)
{
    test_layers();
    test_thaw();
    test_any_part_of_any_write();
    test_odd_ranges();
    test_damage_in_the_journal();
    test_read_errors_and_short_files();
    test_raw_chunks();
    test_damage_in_a_pack();
    test_short_chunks();
    test_missing();
    test_a_read_of_many_pieces();
    test_a_retired_volume_is_not_read();
    return 0;
}
