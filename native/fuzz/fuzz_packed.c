/* Reads of a chunk whose stored bytes, raw or packed by any codec, are hostile behind checksums
 * that hold:
 *
 * - a read is done or fails with -EIO, which names a place in the pack, or with -EAGAIN when it may
 *   not wait; nothing is written beyond what was asked for;
 * - where the whole chunk can be read, every part of it reads the same, decoded or kept decoded;
 * - a bit that flips afterwards is never read: the read fails, or is served from what was kept.
 *
 * Input: codec, stored length (2), raw length (2), which bit flips (3), then reads of offset (2),
 * length (2) and switches (1) up to a read of length 0, then the stored bytes. */
#include <errno.h>

#include "codec.h"
#include "crc32c.h"
#include "fuzz.h"
#include "packed.h"
#include "rig.h"

enum { SEGMENT = 16 << 10, PLACE = 100, PACK_BYTES = 80 << 10, MAX_READS = 16 };

static uint8_t whole[RIG_CHUNK];
static uint8_t part[RIG_CHUNK + 1];

static int put(struct rig *rig, struct bd_pack *pack, uint8_t codec, uint32_t length,
               const uint8_t *stored, uint32_t stored_length)
{
    uint8_t checks[(RIG_CHUNK / BD_PAGE + 1) * 4];
    size_t check_bytes = ((size_t)stored_length + BD_PAGE - 1) / BD_PAGE * 4;
    bd_crc32c_pages(stored, stored_length, checks);
    if (codec == BD_CODEC_NONE)
        return bd_table_put(rig->table, 1, 0, BD_CHUNK_RAW, pack, PLACE, stored_length, checks,
                            check_bytes);
    return bd_table_put_packed(rig->table, 1, 0, pack, PLACE, length, codec, stored_length, checks,
                               check_bytes);
}

static void check_read(struct rig *rig, struct input *input, bool readable, uint64_t offset,
                       uint64_t length)
{
    bool nowait = take(input, 1) & 1;
    struct bd_read_fault fault = {0};
    memset(part, 0xcc, sizeof part);
    int result = bd_volume_read(rig->volume, offset, length, part, nowait, &fault);
    CHECK_EQ(part[length], 0xcc);
    CHECK(result == 0 || result == -EIO || (result == -EAGAIN && nowait));
    if (readable && result != -EAGAIN) {
        CHECK_EQ(result, 0);
        CHECK(memcmp(part, whole + offset, length) == 0);
    }
    if (result == -EIO) {
        CHECK(fault.in_pack && fault.offset < RIG_CHUNK);
        CHECK(fault.place >= PLACE && fault.place < PACK_BYTES);
    }
}

static void check_flip(struct rig *rig, struct memory_file *memory, uint32_t stored_length,
                       uint64_t bit, uint64_t readable_length)
{
    bit %= (uint64_t)stored_length * 8;
    memory->bytes[PLACE + bit / 8] ^= (uint8_t)(1 << bit % 8);
    struct bd_read_fault fault;
    memset(part, 0xcc, sizeof part);
    uint64_t length = readable_length ? readable_length : 1;
    int result = bd_volume_read(rig->volume, 0, length, part, false, &fault);
    CHECK(result == -EIO || (readable_length && result == 0));
    if (result == 0)
        CHECK(memcmp(part, whole, length) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t codec = (uint8_t)take(&input, 1) % BD_CODEC_COUNT;
    size_t stored_length = 1 + take(&input, 2) % RIG_CHUNK;
    uint32_t length = 1 + (uint32_t)take(&input, 2) % RIG_CHUNK;
    uint64_t bit = take(&input, 3);
    struct input reads = input;
    for (int count = 0; count < MAX_READS && input.left > 0; count++) {
        take(&input, 2);
        uint64_t wanted = take(&input, 2);
        take(&input, 1);
        if (wanted == 0)
            break;
    }
    const uint8_t *stored = take_bytes(&input, stored_length, &stored_length);
    if (stored_length == 0)
        return 0;
    if (codec == BD_CODEC_NONE)
        length = (uint32_t)stored_length;

    struct rig rig;
    rig_init(&rig, SEGMENT, 1, RIG_CHUNK);
    struct memory_file memory;
    memory_file_init(&memory, PACK_BYTES, 0);
    memcpy(memory.bytes + PLACE, stored, stored_length);
    struct bd_pack *pack = bd_pack_new(memory_file_open(&memory), 7);
    CHECK(pack != NULL);
    int error = put(&rig, pack, codec, length, stored, (uint32_t)stored_length);
    bd_pack_release(pack);
    CHECK(error == 0 || error == -EINVAL);
    if (error == 0) {
        struct bd_read_fault fault;
        bool readable = bd_volume_read(rig.volume, 0, length, whole, false, &fault) == 0;
        for (int count = 0; count < MAX_READS && reads.left > 0; count++) {
            uint64_t offset = take(&reads, 2) % length;
            uint64_t wanted = take(&reads, 2);
            if (wanted == 0)
                break;
            wanted = 1 + wanted % (length - offset);
            check_read(&rig, &reads, readable, offset, wanted);
        }
        check_flip(&rig, &memory, (uint32_t)stored_length, bit, readable ? length : 0);
    }
    rig_destroy(&rig);
    CHECK(memory.closed);
    memory_file_destroy(&memory);
    return 0;
}
