#include "warm.h"

#include <string.h>

#include "bytes.h"
#include "codec.h"
#include "locks.h"

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

/* Whether a chunk of the volume can be stored like this. */
static bool is_plausible(const struct bd_volume *volume, const struct place *place)
{
    bool packed = place->codec != BD_CODEC_NONE;
    return (place->kind == KIND_DATA || place->kind == KIND_DAMAGED) &&
           place->codec < BD_CODEC_COUNT && place->raw_length == volume->chunk_size &&
           place->stored_length > 0 && place->stored_length <= volume->chunk_size &&
           packed == (place->stored_length < volume->chunk_size);
}

static struct bd_pack *find_pack(const struct bd_warm_chunks *chunks, uint32_t number)
{
    for (size_t i = 0; i < chunks->pack_count; i++)
        if (chunks->packs[i]->number == number)
            return chunks->packs[i];
    return NULL;
}

/* `place` NULL: a hole. False without memory. */
static bool put(struct bd_volume *volume, uint64_t generation, uint64_t index, struct bd_pack *pack,
                const struct place *place, const uint8_t *id)
{
    int error = 0;
    bd_lock(&volume->lock);
    if (volume->generation == generation) {
        if (place == NULL)
            error = bd_table_put(volume->table, volume->number, index, BD_CHUNK_HOLE, NULL, 0,
                                 volume->chunk_size, NULL, 0);
        else
            error = bd_table_put_entry(volume->table, volume->number, index, pack, place->offset,
                                       volume->chunk_size, place->codec, place->stored_length, id,
                                       place->kind);
    }
    pthread_mutex_unlock(&volume->lock);
    return error == 0;
}

size_t bd_volume_warm(struct bd_volume *volume, uint64_t generation,
                      const struct bd_warm_chunks *chunks)
{
    static const uint8_t hole[BD_CHUNK_ID];
    size_t done = 0;
    for (; done < chunks->count; done++) {
        uint64_t index = bd_get64(chunks->indexes + done * 8);
        const uint8_t *id = chunks->ids + done * BD_CHUNK_ID;
        if (memcmp(id, hole, sizeof hole) == 0) {
            if (!put(volume, generation, index, NULL, NULL, NULL))
                break;
            continue;
        }
        struct place place = decode_place(chunks->places + done * BD_INDEX_PLACE);
        struct bd_pack *pack = find_pack(chunks, place.pack);
        if (pack == NULL || (index & BD_REFERRED) != 0 || !is_plausible(volume, &place) ||
            !put(volume, generation, index, pack, &place, id))
            break;
    }
    return done;
}
