/* Rendezvous: fixed vectors, what a logarithm is, the choice beside the obvious one. */
#include <stdbool.h>
#include <string.h>

#include "check.h"
#include "rendezvous.h"

enum { DEVICES = 200, PACKS = 300 };

static struct bd_device devices[DEVICES];

static void make_devices(unsigned domains)
{
    uint64_t seed = 7;
    for (unsigned i = 0; i < DEVICES; i++)
        devices[i] = (struct bd_device){next_random(&seed), 1 + random_below(&seed, 1 << 20),
                                        (uint32_t)random_below(&seed, domains)};
}

/* Other values are other placements: a cluster would move all that it has. */
static void test_fixed_vectors(void)
{
    static const struct {
        uint64_t u, cost;
    } costs[] = {
        {0, UINT64_C(1) << 62},
        {1, UINT64_C(1) << 62},
        {2, UINT64_C(4539628424389459968)},
        {3, UINT64_C(4497477433985083769)},
        {UINT64_C(1000000000000000000), UINT64_C(303023388904931561)},
        {UINT64_C(1) << 63, UINT64_C(1) << 56},
        {UINT64_C(0x123456789abcdef0), UINT64_C(274811896826202473)},
        {UINT64_MAX, 1},
    };
    for (size_t i = 0; i < sizeof costs / sizeof *costs; i++)
        CHECK_EQ(bd_rendezvous_cost(costs[i].u), costs[i].cost);
    CHECK(bd_rendezvous_hash(0, 0) == UINT64_C(0x48218226ff3cd4bf));
    CHECK(bd_rendezvous_hash(1, 2) == UINT64_C(0x81a5c1377856b73));
    CHECK(bd_rendezvous_hash(UINT64_C(0xdeadbeefcafef00d), UINT64_C(0x0123456789abcdef)) ==
          UINT64_C(0x8b4e796d955d2c1));
}

/* Half of u costs one more, and more of u never costs more. */
static void test_cost_is_a_logarithm(void)
{
    uint64_t seed = 1;
    for (int i = 0; i < 20000; i++) {
        uint64_t u = 1 + (next_random(&seed) >> (1 + random_below(&seed, 63)));
        CHECK_EQ(bd_rendezvous_cost(u), bd_rendezvous_cost(2 * u) + (UINT64_C(1) << 56));
        CHECK(bd_rendezvous_cost(u + 1) <= bd_rendezvous_cost(u));
    }
}

static uint64_t cost_of(uint64_t pack, unsigned device)
{
    return bd_rendezvous_cost(bd_rendezvous_hash(pack, devices[device].key));
}

static bool domain_taken(uint32_t domain, const uint32_t *chosen, unsigned found)
{
    for (unsigned i = 0; i < found; i++)
        if (devices[chosen[i]].domain == domain)
            return true;
    return false;
}

/* The cheapest of the domains that are left, again and again. */
static unsigned choose_slowly(uint64_t pack, unsigned count, uint32_t *chosen)
{
    for (unsigned found = 0; found < count; found++) {
        unsigned best = DEVICES;
        for (unsigned i = 0; i < DEVICES; i++) {
            if (domain_taken(devices[i].domain, chosen, found))
                continue;
            if (best == DEVICES || (unsigned __int128)cost_of(pack, i) * devices[best].weight <
                                       (unsigned __int128)cost_of(pack, best) * devices[i].weight)
                best = i;
        }
        if (best == DEVICES)
            return found;
        chosen[found] = best;
    }
    return count;
}

static void test_choice_is_the_obvious_one(unsigned domains)
{
    make_devices(domains);
    uint64_t seed = domains;
    for (int i = 0; i < PACKS; i++) {
        uint64_t pack = next_random(&seed);
        uint32_t got[BD_RENDEZVOUS_MAX_CHOSEN], want[BD_RENDEZVOUS_MAX_CHOSEN];
        unsigned count = 1 + (unsigned)random_below(&seed, BD_RENDEZVOUS_MAX_CHOSEN);
        unsigned found = choose_slowly(pack, count, want);
        CHECK_EQ(bd_rendezvous_choose(devices, DEVICES, pack, count, got), found);
        CHECK(memcmp(got, want, found * sizeof *got) == 0);
    }
}

/* Equal keys and weights draw equal costs: the lower index is first. */
static void test_ties(void)
{
    for (uint32_t i = 0; i < DEVICES; i++)
        devices[i] = (struct bd_device){5, UINT64_C(1) << BD_RENDEZVOUS_MAX_WEIGHT_BITS, i / 2};
    uint32_t chosen[4];
    CHECK_EQ(bd_rendezvous_choose(devices, DEVICES, 9, 4, chosen), 4);
    for (uint32_t i = 0; i < 4; i++)
        CHECK_EQ(chosen[i], 2 * i);
}

static void test_few(void)
{
    uint32_t chosen[4] = {0};
    CHECK_EQ(bd_rendezvous_choose(NULL, 0, 1, 4, chosen), 0);
    make_devices(1);
    CHECK_EQ(bd_rendezvous_choose(devices, DEVICES, 1, 0, chosen), 0);
    CHECK_EQ(bd_rendezvous_choose(devices, DEVICES, 1, 4, chosen), 1);
}

int main(void)
{
    test_fixed_vectors();
    test_cost_is_a_logarithm();
    test_choice_is_the_obvious_one(1);
    test_choice_is_the_obvious_one(5);
    test_choice_is_the_obvious_one(40);
    test_choice_is_the_obvious_one(1000);
    test_ties();
    test_few();
    return 0;
}
