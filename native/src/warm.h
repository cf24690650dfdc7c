/* Places of many chunks put into the place table at once, before anybody asks for them: what
 * `ChunkStore.locate` and `put_place` do for one, without the interpreter, and without the disk. */
#ifndef BLOCKD_WARM_H
#define BLOCKD_WARM_H

#include "volume.h"

enum {
    BD_INDEX_PLACE = 24, /* a row of the index, see docs/disk-format.md */
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

/* Put the chunks' places into the table, in order, as long as `generation` is the volume's. Packs
 * are not read: the first read of a chunk does that (entry.h).
 *
 * Returns how many are done. It stops at the first whose row is not as it should be, or for which
 * there is no memory: whoever can say what is wrong has to look at that one. */
size_t bd_volume_warm(struct bd_volume *volume, uint64_t generation,
                      const struct bd_warm_chunks *chunks);

#endif
