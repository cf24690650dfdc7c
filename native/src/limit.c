#include "limit.h"

#include <string.h>

#include "locks.h"

enum { SECOND_NS = 1000000000 };

#define MOST_BYTES (UINT64_C(4) << 30) /* of one request; nobody asks for so many */

static bool reads(enum bd_op op)
{
    return op == BD_OP_READ;
}

static bool writes(enum bd_op op)
{
    return op == BD_OP_WRITE || op == BD_OP_UNMAP || op == BD_OP_WRITE_ZEROES;
}

/* How much of a kind a request is. */
static uint64_t amount(enum bd_limit_kind kind, enum bd_op op, uint64_t length)
{
    uint64_t bytes = op == BD_OP_READ || op == BD_OP_WRITE ? length : 0;
    if (bytes > MOST_BYTES)
        bytes = MOST_BYTES;
    switch (kind) {
    case BD_LIMIT_OPS:
        return reads(op) || writes(op);
    case BD_LIMIT_READ_OPS:
        return reads(op);
    case BD_LIMIT_WRITE_OPS:
        return writes(op);
    case BD_LIMIT_BYTES:
        return bytes;
    case BD_LIMIT_READ_BYTES:
        return reads(op) ? bytes : 0;
    default:
        return writes(op) ? bytes : 0;
    }
}

/* How long that takes to leak: rounded up, so that a rate is never exceeded. */
static uint64_t cost_ns(const struct bd_limit *limit, enum bd_limit_kind kind, enum bd_op op,
                        uint64_t length)
{
    uint64_t rate = limit->rates[kind];
    return rate == 0 ? 0 : (amount(kind, op, length) * SECOND_NS + rate - 1) / rate;
}

void bd_limit_init(struct bd_limit *limit)
{
    memset(limit, 0, sizeof *limit);
    pthread_mutex_init(&limit->lock, NULL);
}

void bd_limit_destroy(struct bd_limit *limit)
{
    pthread_mutex_destroy(&limit->lock);
}

void bd_limit_set(struct bd_limit *limit, const uint64_t rates[BD_LIMITS], uint64_t burst_ns,
                  uint64_t now_ns)
{
    bd_lock(&limit->lock);
    bool any = false;
    limit->burst_ns = burst_ns;
    limit->generation++;
    for (int kind = 0; kind < BD_LIMITS; kind++) {
        limit->rates[kind] = rates[kind];
        any |= rates[kind] > 0;
        if (limit->empty_ns[kind] > now_ns + burst_ns)
            limit->empty_ns[kind] = now_ns + burst_ns;
    }
    atomic_store_explicit(&limit->set, any, memory_order_relaxed);
    pthread_mutex_unlock(&limit->lock);
}

/* Pour a request in; when it may go on. */
static uint64_t pour(struct bd_limit *limit, enum bd_op op, uint64_t length, uint64_t now_ns)
{
    uint64_t due_ns = 0;
    for (int kind = 0; kind < BD_LIMITS; kind++) {
        uint64_t cost = cost_ns(limit, kind, op, length);
        uint64_t *empty_ns = &limit->empty_ns[kind];
        if (cost == 0)
            continue;
        if (*empty_ns < now_ns)
            *empty_ns = now_ns;
        if (*empty_ns > limit->burst_ns && *empty_ns - limit->burst_ns > due_ns)
            due_ns = *empty_ns - limit->burst_ns;
        *empty_ns = cost > UINT64_MAX - *empty_ns ? UINT64_MAX : *empty_ns + cost;
    }
    return due_ns;
}

/* The lock is held. */
static void give_up(struct bd_limit *limit, struct bd_reservation *reservation)
{
    bool counts = reservation->generation == limit->generation;
    reservation->made = false;
    limit->held.waiting--;
    for (int kind = 0; counts && kind < BD_LIMITS; kind++) {
        uint64_t cost = cost_ns(limit, kind, reservation->op, reservation->length);
        limit->empty_ns[kind] -= cost < limit->empty_ns[kind] ? cost : limit->empty_ns[kind];
    }
}

uint64_t bd_limit_ask(struct bd_limit *limit, struct bd_reservation *reservation, enum bd_op op,
                      uint64_t length, uint64_t now_ns)
{
    if (!reservation->made && !bd_limit_is_set(limit))
        return 0;
    bd_lock(&limit->lock);
    if (reservation->made && (reservation->op != op || reservation->length != length))
        give_up(limit, reservation);
    bool waits = reservation->made;
    if (!waits)
        reservation->asked_ns = now_ns;
    if (!waits || reservation->generation != limit->generation) {
        reservation->made = true;
        reservation->op = op;
        reservation->length = length;
        reservation->generation = limit->generation;
        reservation->due_ns = pour(limit, op, length, now_ns);
    }
    bool goes_on = reservation->due_ns <= now_ns;
    if (goes_on && waits) {
        limit->held.waiting--;
        limit->held.count++;
        limit->held.ns += now_ns - reservation->asked_ns;
    } else if (!goes_on && !waits) {
        limit->held.waiting++;
    }
    pthread_mutex_unlock(&limit->lock);
    if (goes_on) {
        reservation->made = false;
        return 0;
    }
    uint64_t again_ns = now_ns + BD_LIMIT_SLICE_NS;
    return reservation->due_ns < again_ns ? reservation->due_ns : again_ns;
}

void bd_limit_give_up(struct bd_limit *limit, struct bd_reservation *reservation)
{
    if (!reservation->made)
        return;
    bd_lock(&limit->lock);
    give_up(limit, reservation);
    pthread_mutex_unlock(&limit->lock);
}

struct bd_held bd_limit_held(struct bd_limit *limit)
{
    bd_lock(&limit->lock);
    struct bd_held held = limit->held;
    pthread_mutex_unlock(&limit->lock);
    return held;
}
