#include "warm.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "codec.h"
#include "crc32c.h"
#include "locks.h"

static const uint8_t entry_magic[4] = {'B', 'E', 'N', 'T'};

enum { KIND_DATA = 1, KIND_DAMAGED = 4 };

struct place {
    uint32_t pack;
    uint32_t offset; /* of the entry's header */
    uint32_t stored_length;
    uint32_t raw_length;
    uint8_t codec;
    uint8_t kind;
};

static struct place decode_place(const uint8_t *row)
{
    return (struct place){.pack = bd_get32(row),
                          .offset = bd_get32(row + 4),
                          .stored_length = bd_get32(row + 8),
                          .raw_length = bd_get32(row + 12),
                          .codec = row[20],
                          .kind = row[21]};
}

static size_t table_bytes(uint32_t stored_length)
{
    return ((size_t)stored_length + BD_PAGE - 1) / BD_PAGE * 4;
}

/* Whether a chunk of the volume can be stored like this. */
static bool is_plausible(const struct bd_volume *volume, const struct place *place)
{
    bool packed = place->codec != BD_CODEC_NONE;
    return (place->kind == KIND_DATA || place->kind == KIND_DAMAGED) &&
           place->codec < BD_CODEC_COUNT && place->raw_length == volume->chunk_size &&
           place->stored_length > 0 && place->stored_length <= volume->chunk_size &&
           packed == (place->stored_length < volume->chunk_size);
}

/* Whether header and page table are those of the chunk at that place. */
static bool holds(const uint8_t *entry, const struct place *place, const uint8_t *id)
{
    return bd_get32(entry + 60) == bd_crc32c(0, entry, 60) &&
           memcmp(entry, entry_magic, sizeof entry_magic) == 0 && entry[4] == place->kind &&
           entry[5] == place->codec && bd_get16(entry + 6) == 0 &&
           bd_get32(entry + 8) == place->pack && bd_get32(entry + 12) == place->offset &&
           bd_get32(entry + 16) == place->raw_length &&
           bd_get32(entry + 20) == place->stored_length &&
           memcmp(entry + 24, id, BD_CHUNK_ID) == 0 &&
           bd_get32(entry + 56) ==
               bd_crc32c(0, entry + BD_ENTRY_HEADER, table_bytes(place->stored_length));
}

static struct bd_pack *find_pack(const struct bd_warm_chunks *chunks, uint32_t number)
{
    for (size_t i = 0; i < chunks->pack_count; i++)
        if (chunks->packs[i]->number == number)
            return chunks->packs[i];
    return NULL;
}

/* `pack` NULL: a hole. False without memory. */
static bool put(struct bd_volume *volume, uint64_t generation, uint64_t index, struct bd_pack *pack,
                const struct place *place, const uint8_t *table)
{
    int error = 0;
    bd_lock(&volume->lock);
    if (volume->generation == generation) {
        if (pack == NULL) {
            error = bd_table_put(volume->table, volume->number, index, BD_CHUNK_HOLE, NULL, 0,
                                 volume->chunk_size, NULL, 0);
        } else {
            size_t bytes = table_bytes(place->stored_length);
            uint64_t data_offset = (uint64_t)place->offset + BD_ENTRY_HEADER + bytes;
            if (place->codec == BD_CODEC_NONE)
                error = bd_table_put(volume->table, volume->number, index, BD_CHUNK_RAW, pack,
                                     data_offset, volume->chunk_size, table, bytes);
            else
                error = bd_table_put_packed(volume->table, volume->number, index, pack, data_offset,
                                            volume->chunk_size, place->codec, place->stored_length,
                                            table, bytes);
        }
    }
    pthread_mutex_unlock(&volume->lock);
    return error == 0;
}

size_t bd_volume_warm(struct bd_volume *volume, uint64_t generation,
                      const struct bd_warm_chunks *chunks)
{
    static const uint8_t hole[BD_CHUNK_ID];
    uint8_t *entry = malloc(BD_ENTRY_HEADER + table_bytes(volume->chunk_size));
    size_t done = 0;
    for (; entry != NULL && done < chunks->count; done++) {
        uint64_t index = bd_get64(chunks->indexes + done * 8);
        const uint8_t *id = chunks->ids + done * BD_CHUNK_ID;
        if (memcmp(id, hole, sizeof hole) == 0) {
            if (!put(volume, generation, index, NULL, NULL, NULL))
                break;
            continue;
        }
        struct place place = decode_place(chunks->places + done * BD_INDEX_PLACE);
        struct bd_pack *pack = find_pack(chunks, place.pack);
        if (pack == NULL || (index & BD_REFERRED) != 0 || !is_plausible(volume, &place))
            break;
        size_t bytes = BD_ENTRY_HEADER + table_bytes(place.stored_length);
        if (bd_file_read_exact(&pack->file, entry, bytes, place.offset, false) < 0 ||
            !holds(entry, &place, id) ||
            !put(volume, generation, index, pack, &place, entry + BD_ENTRY_HEADER))
            break;
    }
    free(entry);
    return done;
}
