/* Account: what the clients of one volume asked for by one protocol, and how long it took.
 *
 * For each op: requests, payload bytes, errors, and a histogram of latency, from the moment when
 * the last byte of a request had come until its reply was handed to the socket. Bounds grow by
 * powers of two of a nanosecond with one step between two of them, from 2^10 (about 1 us) to 2^36
 * (about 69 s): what is read from the histogram is off by a half at the most.
 *
 * Any thread may count at any time: all fields are atomics that are only ever added to, in no order
 * (relaxed), so a snapshot may be between two of them. Requests are not counted beside the buckets:
 * their count is the buckets' sum. All requests of a round end together, and count at once.
 *
 * An account of NULL counts nothing. */
#ifndef BLOCKD_ACCOUNT_H
#define BLOCKD_ACCOUNT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "op.h"

enum {
    BD_ACCOUNT_FIRST = 10, /* the first bound is 2^10 ns */
    BD_ACCOUNT_LAST = 36,
    BD_ACCOUNT_BOUNDS = 2 * (BD_ACCOUNT_LAST - BD_ACCOUNT_FIRST) + 1,
    BD_ACCOUNT_BUCKETS = BD_ACCOUNT_BOUNDS + 1, /* the last one has no bound */
};

/* Requests by op: of a round, or of a client. Not shared. */
struct bd_tally {
    uint64_t requests[BD_OPS];
    uint64_t bytes[BD_OPS]; /* of payload: READ and WRITE */
};

struct bd_account {
    struct {
        atomic_uint_fast64_t bytes;
        atomic_uint_fast64_t errors;
        atomic_uint_fast64_t sum_ns;
        atomic_uint_fast64_t buckets[BD_ACCOUNT_BUCKETS];
    } ops[BD_OPS];
    atomic_uint_fast64_t requests_in_flight;
    atomic_uint_fast64_t bytes_in_flight; /* of payload */
};

/* What a plain READ or WRITE carries; other requests carry none, however long their range is. */
static inline uint64_t bd_payload(enum bd_op op, uint64_t length)
{
    return op == BD_OP_READ || op == BD_OP_WRITE ? length : 0;
}

static inline void bd_tally_count(struct bd_tally *tally, enum bd_op op, uint64_t length)
{
    tally->requests[op]++;
    tally->bytes[op] += bd_payload(op, length);
}

void bd_tally_add(struct bd_tally *tally, const struct bd_tally *more);

/* The upper bound of a bucket, which belongs to it; `bucket` < BD_ACCOUNT_BOUNDS. */
uint64_t bd_account_bound_ns(unsigned bucket);
unsigned bd_account_bucket(uint64_t elapsed_ns);

/* Requests that took equally long, none of which failed. */
void bd_account_add(struct bd_account *account, const struct bd_tally *tally, uint64_t elapsed_ns);

/* One request. `payload` bytes were moved. */
void bd_account_record(struct bd_account *account, enum bd_op op, uint64_t payload, bool failed,
                       uint64_t elapsed_ns);

/* Requests are under way, and are no more: always in pairs. */
void bd_account_enter(struct bd_account *account, uint64_t requests, uint64_t payload);
void bd_account_leave(struct bd_account *account, uint64_t requests, uint64_t payload);

#endif
