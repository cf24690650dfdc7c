/* Place table: (volume, chunk index) -> where the chunk's bytes are, under a byte budget.
 *
 * A cache of what manifest and index say, so that reading destaged data costs no Python. An entry
 * is a hole, a chunk in a pack, raw or packed by a codec (with one checksum for each 4 KiB page of
 * the stored bytes, or before anybody has read those: entry.h), or the bytes themselves, given by
 * the caller.
 *
 * A packed chunk that is read in small parts again and again keeps its decoded bytes for a while:
 * the least recently used go when they would take more than a quarter of the budget. The first part
 * that is read of a chunk is decoded and forgotten; only a chunk that is read again while as many
 * others as fit were read is worth it, so random reads all over a large volume keep nothing.
 *
 * Thread-safe. Entries are counted: one that is in use outlives its removal. */
#ifndef BLOCKD_PLACE_TABLE_H
#define BLOCKD_PLACE_TABLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "file_io.h"

enum bd_chunk_kind {
    BD_CHUNK_HOLE,
    BD_CHUNK_RAW,
    BD_CHUNK_DECODED,
    BD_CHUNK_PACKED,
    BD_CHUNK_ENTRY, /* to become RAW or PACKED: entry.h */
};

enum { BD_CHUNK_ID = 32 };

struct bd_mapping;

/* An open pack; shared by its entries, closed with the last of them. */
struct bd_pack {
    struct bd_file file;
    uint32_t number;
    atomic_uint references;
    struct bd_mapping *mapping; /* of view.h, and under its lock; or NULL */
};

/* The bytes of a packed chunk, shared by whoever copies from them. */
struct bd_decoded {
    struct bd_decoded *newer; /* both NULL outside of a table */
    struct bd_decoded *older;
    struct bd_chunk_place *owner;
    atomic_uint references;
    uint32_t length;
    uint8_t bytes[];
};

struct bd_chunk_place {
    struct bd_chunk_place *next; /* in its bucket */
    uint64_t index;
    uint32_t volume;
    uint8_t kind;
    uint8_t used;   /* since the eviction hand passed */
    uint8_t codec;  /* PACKED, ENTRY: of codec.h */
    uint8_t linked; /* the table has it; cleared when it is removed */
    atomic_uint references;
    atomic_uint part_read;      /* PACKED: the table's count of part reads at the last one */
    struct bd_pack *pack;       /* RAW, PACKED, ENTRY */
    uint64_t data_offset;       /* in the pack; RAW, PACKED: of the first stored byte; ENTRY: of the
                                   entry */
    uint32_t length;            /* bytes of the chunk */
    uint32_t stored_length;     /* RAW, PACKED, ENTRY: bytes in the pack */
    struct bd_decoded *decoded; /* PACKED; under the table's lock */
    uint8_t payload[]; /* RAW, PACKED: u32le checksums, one a page of stored bytes; DECODED: the
                          bytes; ENTRY: the chunk's id and the kind of its entry */
};

/* Numbers of packs that are told apart when they are read; a power of two. */
#define BD_READ_PACKS 65536
/* From here on numbers are of memory that shows chunks of stripes (volume/stripedpack.py). */
#define BD_SHOWN_PACKS 0xFFFF0000u

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
    struct bd_decoded *newest;
    struct bd_decoded *oldest;
    size_t decoded_bytes;   /* part of `bytes` */
    atomic_uint part_reads; /* of packed chunks that had to be decoded; wraps around */
    uint8_t read_packs[BD_READ_PACKS / 8];
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

/* The same for a PACKED chunk; `checks` are the checksums of its stored bytes. -EINVAL for an
 * unknown codec, or lengths that no packed chunk has. */
int bd_table_put_packed(struct bd_place_table *table, uint32_t volume, uint64_t index,
                        struct bd_pack *pack, uint64_t data_offset, uint32_t length, uint8_t codec,
                        uint32_t stored_length, const uint8_t *checks, size_t check_bytes);

/* The same for an ENTRY at `offset` of the pack, of the kind `entry_kind`. Lengths that no chunk
 * has are -EINVAL. */
int bd_table_put_entry(struct bd_place_table *table, uint32_t volume, uint64_t index,
                       struct bd_pack *pack, uint64_t offset, uint32_t length, uint8_t codec,
                       uint32_t stored_length, const uint8_t *id, uint8_t entry_kind);
/* A RAW or PACKED place in the stead of an ENTRY whose page table is `checks`; the table takes it
 * if it still has the entry. With a reference for the caller. NULL without memory. */
struct bd_chunk_place *bd_table_settle(struct bd_place_table *table, struct bd_chunk_place *entry,
                                       const uint8_t *checks, size_t check_bytes);
/* Forget one place, if the table still has it. */
void bd_table_drop(struct bd_place_table *table, struct bd_chunk_place *place);

/* A counted reference to the decoded bytes of a PACKED chunk, or NULL. */
struct bd_decoded *bd_table_decoded(struct bd_place_table *table, struct bd_chunk_place *place);
/* Whether a part of the chunk was read so lately that it should be decoded whole and kept. */
bool bd_table_read_lately(struct bd_place_table *table, struct bd_chunk_place *place);
/* A part of the chunk was read, and decoded for that. */
void bd_table_note_part_read(struct bd_place_table *table, struct bd_chunk_place *place);
/* Keeps a reference of its own, unless the place is no longer in the table. */
void bd_table_keep_decoded(struct bd_place_table *table, struct bd_chunk_place *place,
                           struct bd_decoded *decoded);
/* Room for `length` bytes, not set; one reference, which is the caller's. NULL without memory. */
struct bd_decoded *bd_decoded_new(uint32_t length);
void bd_decoded_release(struct bd_decoded *decoded);

/* Forget chunks [first, end) of a volume; with UINT64_MAX as end, all from first on. */
void bd_table_drop_range(struct bd_place_table *table, uint32_t volume, uint64_t first,
                         uint64_t end);
void bd_table_drop_pack(struct bd_place_table *table, uint32_t number);
/* Of which packs a chunk was asked for by `bd_table_get` since the last call: a bit for each number
 * modulo BD_READ_PACKS, the lowest of a byte first. What no reader asks for counts for nothing. */
void bd_table_take_read_packs(struct bd_place_table *table, uint8_t bits[BD_READ_PACKS / 8]);
/* Forget everything, and be as small as a new one. */
void bd_table_clear(struct bd_place_table *table);

struct bd_pack *bd_pack_new(struct bd_file file, uint32_t number);
void bd_pack_release(struct bd_pack *pack);

#endif
