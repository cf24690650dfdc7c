/* Weighted rendezvous: which devices have the shards of a pack, for all who know the same devices.
 *
 * Each device draws a cost for each pack, and the cheapest have it, at most one in each failure
 * domain. The cost of device d is -log2(u) / weight with u a hash of pack and device, taken as a
 * number in (0, 1): an exponential variable with a rate of `weight`. Hence
 *
 * - the cheapest device is d with probability weight(d) / sum of weights;
 * - the cheapest device of a domain has an exponential cost with the domain's weight as its rate,
 *   so domains are drawn by weight, and devices by weight within theirs, without a tree;
 * - devices do not know of each other: where one is added, it takes from others what it wins, and
 *   where one goes, others take over what it had. Nothing moves between those that stay.
 *
 * Integers only, so that every machine, compiler and version draws the same. The logarithm is a
 * Q56 found bit by bit, costs are compared as fractions with 128-bit products. Hash, logarithm and
 * ties are part of what nodes agree on: another function is another cluster. */
#ifndef BLOCKD_RENDEZVOUS_H
#define BLOCKD_RENDEZVOUS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BD_RENDEZVOUS_MAX_DEVICES = 4096,
    BD_RENDEZVOUS_MAX_CHOSEN = 32,     /* more than the widest stripe has shards */
    BD_RENDEZVOUS_MAX_WEIGHT_BITS = 60 /* a cost has 62 bits; their product has to fit in 128 */
};

struct bd_device {
    uint64_t key;    /* random, its own */
    uint64_t weight; /* 1 to 2^60 */
    uint32_t domain; /* devices with equal numbers fail together */
};

/* -log2(u / 2^64) in Q56, from 1 to 2^62; u = 0 counts as 1. */
uint64_t bd_rendezvous_cost(uint64_t u);

/* The hash of a pack and a device. */
uint64_t bd_rendezvous_hash(uint64_t pack, uint64_t device);

/* Indices of up to `count` devices for a pack into `chosen`, cheapest first, of different domains;
 * of equal costs the lower index. The number found: fewer than `count` when there are no more
 * domains. `count` is at most BD_RENDEZVOUS_MAX_CHOSEN. */
unsigned bd_rendezvous_choose(const struct bd_device *devices, size_t device_count, uint64_t pack,
                              unsigned count, uint32_t *chosen);

#endif
