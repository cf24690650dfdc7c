/* Few devices need their logarithm: -log2(x) > 1 - x for every x in (0, 1), and where that bound is
 * beyond the worst that is kept already, so is the cost. With 1,000 devices it is taken for some
 * dozens of them. */
#include "rendezvous.h"

typedef unsigned __int128 u128;

enum { FRACTION_BITS = 56 };

static const uint64_t GOLDEN = UINT64_C(0x9e3779b97f4a7c15);

/* The finalizer of splitmix64: each bit of the input changes half of the output. */
static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

uint64_t bd_rendezvous_hash(uint64_t pack, uint64_t device)
{
    return mix(mix(pack + GOLDEN) + device);
}

/* Squaring doubles the logarithm, so each squaring of the mantissa brings out one more bit of it.
 * Products are cut off, never rounded up: the logarithm comes out low and the cost high, and with
 * a greater u it is never higher. */
uint64_t bd_rendezvous_cost(uint64_t u)
{
    u |= u == 0;
    unsigned shift = (unsigned)__builtin_clzll(u);
    uint64_t mantissa = u << shift; /* Q63, from 1 to 2 */
    uint64_t log = (uint64_t)(63 - shift) << FRACTION_BITS;
    for (int bit = FRACTION_BITS - 1; bit >= 0; bit--) {
        u128 square = (u128)mantissa * mantissa; /* Q126, from 1 to 4 */
        if (square >> 127 != 0) {
            log |= UINT64_C(1) << bit;
            mantissa = (uint64_t)(square >> 64);
        } else {
            mantissa = (uint64_t)(square >> 63);
        }
    }
    return (UINT64_C(64) << FRACTION_BITS) - log;
}

struct draw {
    uint64_t cost, weight;
    uint32_t index, domain;
};

/* Whether the cost of `a` by its weight is the lower one. */
static bool cheaper(const struct draw *a, const struct draw *b)
{
    return (u128)a->cost * b->weight < (u128)b->cost * a->weight;
}

/* Keep a draw if it is among the best, which are in order, one of each domain. Draws come by rising
 * index, so one of equal cost goes behind. */
static void keep(struct draw *best, unsigned *found, unsigned count, struct draw draw)
{
    unsigned place = 0; /* of the draw that gives way: of the same domain, else the worst */
    while (place < *found && best[place].domain != draw.domain)
        place++;
    if (place == count)
        place--;
    if (place < *found && !cheaper(&draw, &best[place]))
        return;
    if (place == *found)
        ++*found;
    for (; place > 0 && cheaper(&draw, &best[place - 1]); place--)
        best[place] = best[place - 1];
    best[place] = draw;
}

unsigned bd_rendezvous_choose(const struct bd_device *devices, size_t device_count, uint64_t pack,
                              unsigned count, uint32_t *chosen)
{
    struct draw best[BD_RENDEZVOUS_MAX_CHOSEN];
    unsigned found = 0;
    uint64_t mixed = mix(pack + GOLDEN);
    for (size_t i = 0; count > 0 && i < device_count; i++) {
        uint64_t u = mix(mixed + devices[i].key);
        /* At the least; the logarithm may not be needed. */
        struct draw draw = {~u >> (64 - FRACTION_BITS), devices[i].weight, (uint32_t)i,
                            devices[i].domain};
        if (found == count && cheaper(&best[count - 1], &draw))
            continue;
        draw.cost = bd_rendezvous_cost(u);
        keep(best, &found, count, draw);
    }
    for (unsigned i = 0; i < found; i++)
        chosen[i] = best[i].index;
    return found;
}
