#include "ways.h"

#include <stdbool.h>

enum {
    FIRST_TRY = 8, /* appends */
    LEAST_PATIENCE = 32,
    MOST_PATIENCE = 4096,
    SMOOTHING = 8, /* appends that an average looks back on, about */
};

void bd_ways_init(struct bd_ways *ways)
{
    *ways = (struct bd_ways){
        .chosen = BD_WAY_LEAVES, .until_other = FIRST_TRY, .patience = LEAST_PATIENCE};
}

static enum bd_way other(enum bd_way way)
{
    return way == BD_WAY_STAYS ? BD_WAY_LEAVES : BD_WAY_STAYS;
}

enum bd_way bd_ways_next(struct bd_ways *ways)
{
    if (ways->until_other == 0)
        return other(ways->chosen);
    ways->until_other--;
    return ways->chosen;
}

/* Whether the way that is not chosen is better by so much that it is worth changing. */
static bool is_worth_it(const struct bd_ways *ways)
{
    if (ways->ns[BD_WAY_STAYS] == 0 || ways->ns[BD_WAY_LEAVES] == 0)
        return false;
    uint64_t worth[BD_WAYS] = {ways->ns[BD_WAY_STAYS] * 3, ways->ns[BD_WAY_LEAVES] * 2};
    return worth[other(ways->chosen)] * 5 < worth[ways->chosen] * 4;
}

void bd_ways_took(struct bd_ways *ways, enum bd_way way, uint64_t bytes, uint64_t ns)
{
    uint64_t took = (ns << 20) / (bytes + 1) + 1;
    uint64_t known = ways->ns[way];
    ways->ns[way] = known == 0 ? took : known - known / SMOOTHING + took / SMOOTHING + 1;
    bool tried = way != ways->chosen;
    if (tried)
        ways->ns[way] = took; /* what it was long ago says little */
    if (is_worth_it(ways)) {
        ways->chosen = other(ways->chosen);
        ways->patience = LEAST_PATIENCE;
        ways->until_other = LEAST_PATIENCE;
    } else if (tried) {
        ways->until_other = ways->patience;
        ways->patience = ways->patience < MOST_PATIENCE ? ways->patience * 2 : MOST_PATIENCE;
    }
}
