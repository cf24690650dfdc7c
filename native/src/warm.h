/* Places of many chunks put into the place table at once, before anybody asks for them: what
 * `ChunkStore.locate` and `put_place` do for one, without the interpreter. */
#ifndef BLOCKD_WARM_H
#define BLOCKD_WARM_H

#include "volume.h"

enum {
    BD_CHUNK_ID = 32,
    BD_INDEX_PLACE = 24,  /* a row of the index, see docs/disk-format.md */
    BD_ENTRY_HEADER = 64, /* of a chunk in a pack */
};

/* Chunks of one tree of a volume, as manifest and index tell of them. */
struct bd_warm_chunks {
    const uint8_t *indexes; /* u64le each */
    const uint8_t *ids;     /* BD_CHUNK_ID each; all zeros: a hole */
    const uint8_t *places;  /* BD_INDEX_PLACE each; all zeros: the index has none */
    size_t count;
    struct bd_pack **packs; /* where they are, in any order */
    size_t pack_count;
};

/* Put the chunks' places into the table, in order, as long as `generation` is the volume's. Reads
 * header and page table of each from its pack, and verifies both; may wait for the disk.
 *
 * Returns how many are done. It stops at the first that is not as it should be, cannot be read, or
 * has no memory: whoever can say what is wrong has to look at that one. */
size_t bd_volume_warm(struct bd_volume *volume, uint64_t generation,
                      const struct bd_warm_chunks *chunks);

#endif
