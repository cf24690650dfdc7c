/* Ways: whether large appends stay in the page cache or leave it.
 *
 * What is appended in long writes is read once more, by the destager, and written once. Left to
 * itself the page cache keeps all of it: each megabyte takes 256 pages that were free, and where
 * free memory is not there until it is touched (a virtual machine whose host takes it back) these
 * cost ten times the copy. Written with RWF_DONTCACHE the kernel begins to write it to the disk at
 * once and lets go of its pages when that has been done, so that the same pages serve for the next.
 *
 * But whoever appends then waits for room in the disk's queue, and on a slow disk a burst that
 * memory would have taken up goes no faster than the disk does. So that nobody has to know the
 * machine, both ways are timed, and the one is taken that holds the journal's lock the shorter
 * time; leaving counts for less than it takes, as nothing of it has to be written behind. The other
 * way is tried now and then, the more seldom the less it was worth.
 *
 * Neither is more durable than the other: kill -9 leaves both, a power cut what was synced. */
#ifndef BLOCKD_WAYS_H
#define BLOCKD_WAYS_H

#include <stdint.h>

enum bd_way { BD_WAY_STAYS, BD_WAY_LEAVES, BD_WAYS };

struct bd_ways {
    uint64_t ns[BD_WAYS]; /* for a MiB, a moving average; 0: not known */
    enum bd_way chosen;
    uint32_t until_other; /* appends before the other way is tried */
    uint32_t patience;    /* the next `until_other` */
};

void bd_ways_init(struct bd_ways *ways);

/* How to write the next one. */
enum bd_way bd_ways_next(struct bd_ways *ways);

/* How long it took. */
void bd_ways_took(struct bd_ways *ways, enum bd_way way, uint64_t bytes, uint64_t ns);

#endif
