/* Place table: (volume, chunk index) -> where the chunk's bytes are, under a byte budget.
 *
 * A cache of what manifest and index say, so that reading destaged data costs no Python. An entry
 * is a hole, a raw chunk in a pack (with one checksum for each 4 KiB page), or decoded bytes.
 * Thread-safe. Entries are counted: one that is in use outlives its removal. */
#ifndef BLOCKD_PLACE_TABLE_H
#define BLOCKD_PLACE_TABLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "file_io.h"

enum bd_chunk_kind {
    BD_CHUNK_HOLE,
    BD_CHUNK_RAW,
    BD_CHUNK_DECODED,
};

/* An open pack; shared by its entries, closed with the last of them. */
struct bd_pack {
    struct bd_file file;
    uint32_t number;
    atomic_uint references;
};

struct bd_chunk_place {
    struct bd_chunk_place *next; /* in its bucket */
    uint64_t index;
    uint32_t volume;
    uint8_t kind;
    uint8_t used; /* since the eviction hand passed */
    atomic_uint references;
    struct bd_pack *pack; /* RAW */
    uint64_t data_offset; /* RAW: of the first stored byte in the pack */
    uint32_t length;      /* bytes of the chunk */
    uint8_t payload[];    /* RAW: u32le checksums, one a page; DECODED: the bytes */
};

struct bd_place_table {
    pthread_mutex_t lock;
    struct bd_chunk_place **buckets;
    size_t bucket_count; /* a power of two */
    size_t entry_count;
    size_t hand; /* bucket at which eviction goes on */
    size_t bytes;
    size_t limit;
    uint64_t hits;
    uint64_t misses;
};

struct bd_place_table *bd_table_new(size_t limit);
void bd_table_free(struct bd_place_table *table);

/* A counted reference, or NULL. */
struct bd_chunk_place *bd_table_get(struct bd_place_table *table, uint32_t volume, uint64_t index);
void bd_chunk_place_release(struct bd_chunk_place *place);

/* `payload_bytes` of payload are copied. Evicts others to stay under the limit. 0 or -ENOMEM. */
int bd_table_put(struct bd_place_table *table, uint32_t volume, uint64_t index, uint8_t kind,
                 struct bd_pack *pack, uint64_t data_offset, uint32_t length,
                 const uint8_t *payload, size_t payload_bytes);

/* Forget chunks [first, end) of a volume; with UINT64_MAX as end, all from first on. */
void bd_table_drop_range(struct bd_place_table *table, uint32_t volume, uint64_t first,
                         uint64_t end);
void bd_table_drop_pack(struct bd_place_table *table, uint32_t number);

struct bd_pack *bd_pack_new(struct bd_file file, uint32_t number);
void bd_pack_release(struct bd_pack *pack);

#endif
