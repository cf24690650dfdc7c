/* Limit: how much the clients of one volume may ask for, all together.
 *
 * Each of six kinds (operations and payload bytes per second, of all, of reads, of writes) is a
 * leaky bucket, as in qemu's throttle groups: what is asked for is poured in, it leaks at the rate,
 * and a request may go on when the bucket does not hold more than the burst, which is what leaks in
 * `burst_ns`. Its own size does not matter for that, so a request that is larger than the burst
 * goes on as well, and those behind it wait the longer. Requests are never failed.
 *
 * A request that may not go on at once has its place all the same: it is poured in when it asks
 * first, and told when its time is (bd_reservation). So several clients of a volume are served in
 * turn, and none of them has to be quicker than another. Each client has one reservation at most,
 * for the oldest of its requests; so in any time, what goes on is at most what leaks in it, the
 * burst, and one request of each client. When the limits are changed, reservations are void, and
 * what is in the buckets is at most one burst.
 *
 * Each bucket is one number, the time at which it will have leaked empty (the generic cell rate
 * algorithm); the clock is the caller's. Any thread; a limit that is not set costs one load. A
 * limit of NULL limits nothing. */
#ifndef BLOCKD_LIMIT_H
#define BLOCKD_LIMIT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "op.h"

enum bd_limit_kind {
    BD_LIMIT_OPS,
    BD_LIMIT_READ_OPS,
    BD_LIMIT_WRITE_OPS,
    BD_LIMIT_BYTES,
    BD_LIMIT_READ_BYTES,
    BD_LIMIT_WRITE_BYTES,
    BD_LIMITS,
};

#define BD_LIMIT_MAX_RATE UINT64_C(1000000000000) /* of anything per second */
#define BD_LIMIT_MAX_BURST_NS UINT64_C(3600000000000)
/* The longest time after which somebody who waits asks again: limits may have changed. */
#define BD_LIMIT_SLICE_NS UINT64_C(100000000)

/* What waits, and has waited: requests that have asked. Those behind them have not yet. */
struct bd_held {
    uint64_t waiting; /* reservations that there are now */
    uint64_t count;   /* that had to wait and went on, ever */
    uint64_t ns;      /* how long these waited, all together */
};

struct bd_limit {
    atomic_bool set; /* any rate is */
    pthread_mutex_t lock;
    uint64_t rates[BD_LIMITS]; /* per second; 0: not limited */
    uint64_t burst_ns;
    uint64_t empty_ns[BD_LIMITS]; /* when the bucket has leaked empty */
    uint64_t generation;          /* raised by each change */
    struct bd_held held;
};

/* Of the request of a client that is next to go on. Zeros: there is none. */
struct bd_reservation {
    bool made;
    enum bd_op op;
    uint64_t length;
    uint64_t generation;
    uint64_t asked_ns; /* first */
    uint64_t due_ns;
};

void bd_limit_init(struct bd_limit *limit);
void bd_limit_destroy(struct bd_limit *limit);

/* Rates, and a burst, within the maxima: from now on, for everybody. */
void bd_limit_set(struct bd_limit *limit, const uint64_t rates[BD_LIMITS], uint64_t burst_ns,
                  uint64_t now_ns);

static inline bool bd_limit_is_set(const struct bd_limit *limit)
{
    return limit != NULL && atomic_load_explicit(&limit->set, memory_order_relaxed);
}

/* Whether a request may go on: 0, and then it has; else when to ask again for the same request,
 * with the same reservation (for another one, that of the first is given up). READs and WRITEs
 * count with `length` bytes, UNMAPs and WRITE_ZEROES as writes of none, nothing else is limited. */
uint64_t bd_limit_ask(struct bd_limit *limit, struct bd_reservation *reservation, enum bd_op op,
                      uint64_t length, uint64_t now_ns);

/* The request does not go on here after all: what it has poured in is taken out again. Without a
 * reservation, `limit` may be NULL. */
void bd_limit_give_up(struct bd_limit *limit, struct bd_reservation *reservation);

struct bd_held bd_limit_held(struct bd_limit *limit);

#endif
