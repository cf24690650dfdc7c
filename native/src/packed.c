#include "packed.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "codec.h"
#include "crc32c.h"

/* The stored bytes, all of them verified. */
static int read_stored(struct bd_chunk_place *chunk, uint8_t *stored, bool nowait,
                       uint64_t *fault_place)
{
    *fault_place = chunk->data_offset;
    int error = bd_file_read_exact(&chunk->pack->file, stored, chunk->stored_length,
                                   chunk->data_offset, nowait);
    if (error < 0)
        return error == -EAGAIN ? error : -EIO;
    const uint8_t *check = chunk->payload;
    for (uint32_t page = 0; page < chunk->stored_length; page += BD_PAGE, check += 4) {
        uint32_t rest = chunk->stored_length - page;
        if (bd_crc32c(0, stored + page, rest < BD_PAGE ? rest : BD_PAGE) != bd_get32(check)) {
            *fault_place = chunk->data_offset + page;
            return -EIO;
        }
    }
    return 0;
}

/* Decode the first `wanted` bytes, or some more of them, into `raw`, which has room for all. */
static int decode(const struct bd_chunk_place *chunk, const uint8_t *stored, uint8_t *raw,
                  uint64_t wanted)
{
    int error = bd_codec_decode(chunk->codec, stored, chunk->stored_length, raw, chunk->length,
                                (size_t)wanted);
    return error == 0 || error == -ENOMEM ? error : -EIO;
}

/* Decode all of a chunk that is read again and again, and keep it. */
static int decode_and_keep(struct bd_place_table *table, struct bd_chunk_place *chunk,
                           const uint8_t *stored, uint64_t at, uint64_t length, uint8_t *data)
{
    struct bd_decoded *decoded = bd_decoded_new(chunk->length);
    if (decoded == NULL)
        return -ENOMEM;
    int error = decode(chunk, stored, decoded->bytes, chunk->length);
    if (error == 0) {
        memcpy(data, decoded->bytes + at, (size_t)length);
        bd_table_keep_decoded(table, chunk, decoded);
    }
    bd_decoded_release(decoded);
    return error;
}

int bd_packed_read(struct bd_place_table *table, struct bd_chunk_place *chunk, uint64_t at,
                   uint64_t length, uint8_t *data, bool nowait, uint64_t *fault_place)
{
    assert(at + length <= chunk->length);
    bool whole = length == chunk->length;
    struct bd_decoded *decoded = whole ? NULL : bd_table_decoded(table, chunk);
    if (decoded != NULL) {
        memcpy(data, decoded->bytes + at, (size_t)length);
        bd_decoded_release(decoded);
        return 0;
    }
    bool keep = !whole && bd_table_read_lately(table, chunk);
    if (nowait && (keep ? chunk->length : at + length) > BD_PACKED_NOWAIT_MAX)
        return -EAGAIN;
    size_t room = whole || keep ? 0 : chunk->length;
    uint8_t *stored = bd_codec_scratch(chunk->stored_length + room);
    if (stored == NULL)
        return -ENOMEM;
    int error = read_stored(chunk, stored, nowait, fault_place);
    if (error < 0)
        return error;
    if (whole)
        return decode(chunk, stored, data, length);
    bd_table_note_part_read(table, chunk); /* not before: a read may have to be tried twice */
    if (keep)
        return decode_and_keep(table, chunk, stored, at, length, data);
    uint8_t *raw = stored + chunk->stored_length;
    error = decode(chunk, stored, raw, at + length);
    if (error == 0)
        memcpy(data, raw + at, (size_t)length);
    return error;
}
