/* Stored bytes of chunks, in every codec. Whatever they are,
 *
 * - nothing is read beyond them or written beyond the raw length, also by the libraries (guards);
 * - they are decoded or refused: 0, -EBADMSG, or -EINVAL for an unknown codec;
 * - decoding a part of a chunk gives what decoding all of it gives, and where that is refused only
 *   a part may still be had;
 * - what was encoded is decoded again, into the same bytes, and never takes more than its room.
 *
 * Input: codec, raw length (3), wanted (3), room (3), then the bytes. */
#include <errno.h>

#include "codec.h"
#include "fuzz.h"

enum { MAX_RAW = 128 << 10, MAX_STORED = 64 << 10 };

static struct guarded stored_room;
static struct guarded raw_room;
static struct guarded part_room;
static struct guarded encoded_room;

static void check_decode(uint8_t codec, const uint8_t *bytes, size_t length, size_t raw_length,
                         size_t wanted)
{
    uint8_t *stored = guarded_at(&stored_room, length);
    memcpy(stored, bytes, length);
    uint8_t *raw = guarded_at(&raw_room, raw_length);
    uint8_t *part = guarded_at(&part_room, raw_length);
    memset(raw, 0x11, raw_length);
    memset(part, 0x22, raw_length);
    int whole = bd_codec_decode(codec, stored, length, raw, raw_length, raw_length);
    int partial = bd_codec_decode(codec, stored, length, part, raw_length, wanted);
    CHECK(whole == 0 || whole == (codec >= BD_CODEC_COUNT ? -EINVAL : -EBADMSG));
    CHECK(partial == 0 || partial == (codec >= BD_CODEC_COUNT ? -EINVAL : -EBADMSG));
    if (whole == 0) {
        CHECK_EQ(partial, 0);
        CHECK(memcmp(raw, part, wanted) == 0);
    }
    CHECK(memcmp(stored, bytes, length) == 0);
}

static void check_encode(uint8_t codec, const uint8_t *bytes, size_t length, size_t room)
{
    uint8_t *raw = guarded_at(&stored_room, length);
    memcpy(raw, bytes, length);
    uint8_t *stored = guarded_at(&encoded_room, room);
    ssize_t used = bd_codec_encode(codec, raw, length, stored, room);
    if (codec >= BD_CODEC_COUNT) {
        CHECK_EQ(used, -EINVAL);
        return;
    }
    CHECK(used >= 0 && (size_t)used <= room);
    if (used == 0)
        return;
    uint8_t *copy = guarded_at(&part_room, (size_t)used);
    memmove(copy, stored, (size_t)used);
    uint8_t *again = guarded_at(&raw_room, length);
    CHECK_EQ(bd_codec_decode(codec, copy, (size_t)used, again, length, length), 0);
    CHECK(memcmp(again, bytes, length) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (stored_room.pages == NULL) {
        guarded_init(&stored_room, MAX_STORED);
        guarded_init(&raw_room, MAX_RAW);
        guarded_init(&part_room, MAX_RAW);
        guarded_init(&encoded_room, MAX_RAW);
    }
    struct input input = {data, size};
    uint8_t codec = (uint8_t)take(&input, 1) % (BD_CODEC_COUNT + 1);
    size_t raw_length = 1 + take(&input, 3) % MAX_RAW;
    size_t wanted = 1 + take(&input, 3) % raw_length;
    size_t room = 1 + take(&input, 3) % MAX_RAW;
    size_t length;
    const uint8_t *bytes = take_bytes(&input, MAX_STORED, &length);
    if (length == 0)
        return 0;
    check_decode(codec, bytes, length, raw_length, wanted);
    check_encode(codec, bytes, length, room);
    return 0;
}
