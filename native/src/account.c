#include "account.h"

#include <stddef.h>

static void add(atomic_uint_fast64_t *counter, uint64_t count)
{
    atomic_fetch_add_explicit(counter, count, memory_order_relaxed);
}

void bd_tally_add(struct bd_tally *tally, const struct bd_tally *more)
{
    for (int op = 0; op < BD_OPS; op++) {
        tally->requests[op] += more->requests[op];
        tally->bytes[op] += more->bytes[op];
    }
}

uint64_t bd_account_bound_ns(unsigned bucket)
{
    uint64_t power = UINT64_C(1) << (BD_ACCOUNT_FIRST + bucket / 2);
    return bucket % 2 == 0 ? power : power + power / 2;
}

unsigned bd_account_bucket(uint64_t elapsed_ns)
{
    if (elapsed_ns <= UINT64_C(1) << BD_ACCOUNT_FIRST)
        return 0;
    uint64_t below = elapsed_ns - 1; /* a bound belongs to its own bucket */
    unsigned log2 = 63 - (unsigned)__builtin_clzll(below);
    unsigned half = (unsigned)(below >> (log2 - 1)) & 1;
    unsigned bucket = 1 + 2 * (log2 - BD_ACCOUNT_FIRST) + half;
    return bucket < BD_ACCOUNT_BOUNDS ? bucket : BD_ACCOUNT_BOUNDS;
}

void bd_account_add(struct bd_account *account, const struct bd_tally *tally, uint64_t elapsed_ns)
{
    if (account == NULL)
        return;
    unsigned bucket = bd_account_bucket(elapsed_ns);
    for (int op = 0; op < BD_OPS; op++) {
        uint64_t requests = tally->requests[op];
        if (requests == 0)
            continue;
        add(&account->ops[op].buckets[bucket], requests);
        add(&account->ops[op].sum_ns, requests * elapsed_ns);
        if (tally->bytes[op] > 0)
            add(&account->ops[op].bytes, tally->bytes[op]);
    }
}

void bd_account_record(struct bd_account *account, enum bd_op op, uint64_t payload, bool failed,
                       uint64_t elapsed_ns)
{
    if (account == NULL)
        return;
    add(&account->ops[op].buckets[bd_account_bucket(elapsed_ns)], 1);
    add(&account->ops[op].sum_ns, elapsed_ns);
    if (payload > 0)
        add(&account->ops[op].bytes, payload);
    if (failed)
        add(&account->ops[op].errors, 1);
}

void bd_account_enter(struct bd_account *account, uint64_t requests, uint64_t payload)
{
    if (account == NULL)
        return;
    add(&account->requests_in_flight, requests);
    add(&account->bytes_in_flight, payload);
}

void bd_account_leave(struct bd_account *account, uint64_t requests, uint64_t payload)
{
    bd_account_enter(account, -requests, -payload); /* modulo 2^64 */
}
