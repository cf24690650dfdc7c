/* Reed-Solomon over GF(2^8), by ISA-L: `data` shards and `parity` more, any `data` of which give
 * the others back.
 *
 * The code is systematic: shards 0 .. data-1 are the data, shard data+i is row i of a Cauchy matrix
 * times them: coefficient 1 / ((data+i) ^ j) for data shard j, polynomial 0x11d. Every square part
 * of a Cauchy matrix can be inverted, so that any `parity` losses can be undone; of the Vandermonde
 * matrix that ISA-L makes as well that is not so for all sizes. The coefficients are part of the
 * format of shards: another matrix is another format.
 *
 * Bytes at the same place of all shards make a codeword of their own. So a part of a lost shard
 * needs the same part of others only, and a shard may be taken in pieces. */
#ifndef BLOCKD_ERASURE_H
#define BLOCKD_ERASURE_H

#include <stddef.h>
#include <stdint.h>

enum {
    BD_ERASURE_MAX_SHARDS = 20, /* 16+4, the widest stripe */
    BD_ERASURE_PATTERNS = 32,   /* patterns of loss whose tables are kept: 100 KiB with 10+10 */
};

struct bd_erasure;

/* NULL with errno: EINVAL unless 1 <= data, 1 <= parity, data + parity <= BD_ERASURE_MAX_SHARDS;
 * ENOMEM. Any number of threads may use it at once. */
struct bd_erasure *bd_erasure_new(unsigned data, unsigned parity);
void bd_erasure_free(struct bd_erasure *code);

/* The parity of `data` buffers of `length` bytes into as many buffers as there are parity shards.
 * No output may overlap any other buffer. */
void bd_erasure_encode(struct bd_erasure *code, size_t length, const uint8_t *const *data,
                       uint8_t *const *parity);

/* Compute shards from others. Both arrays have an item for each shard: `shards` the bytes that are
 * there, else NULL; `into` a buffer where the shard is wanted, else NULL. The first `data` shards
 * that are there are read; whether they are what was encoded must be known by their checksums, for
 * a code cannot tell. No output may overlap any other buffer. 0; -ENODATA with fewer than `data`
 * shards; -EINVAL when a shard is both there and wanted. */
int bd_erasure_reconstruct(struct bd_erasure *code, size_t length, const uint8_t *const *shards,
                           uint8_t *const *into);

unsigned bd_erasure_data(const struct bd_erasure *code);
unsigned bd_erasure_parity(const struct bd_erasure *code);

/* Patterns whose tables are kept now, and how often tables had to be made. */
void bd_erasure_stats(struct bd_erasure *code, size_t *patterns, uint64_t *made);

#endif
