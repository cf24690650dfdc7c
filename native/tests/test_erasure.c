/* Erasure code: every pattern of loss of some codes, odd lengths, the bound of the cache, threads.
 */
#include <errno.h>
#include <stdbool.h>
#include <pthread.h>
#include <string.h>

#include "check.h"
#include "erasure.h"

enum { MAX = BD_ERASURE_MAX_SHARDS };

struct stripe {
    unsigned data, parity;
    size_t length;
    uint8_t *shards[MAX]; /* each of just `length` bytes, so that a sanitizer sees all beyond */
};

static uint8_t *memory(size_t length)
{
    uint8_t *bytes = malloc(length);
    CHECK(bytes != NULL);
    memset(bytes, 0x5a, length);
    return bytes;
}

static struct stripe make_stripe(struct bd_erasure *code, size_t length, uint64_t seed)
{
    struct stripe stripe = {bd_erasure_data(code), bd_erasure_parity(code), length, {0}};
    for (unsigned i = 0; i < stripe.data + stripe.parity; i++)
        stripe.shards[i] = memory(length);
    for (unsigned i = 0; i < stripe.data; i++)
        random_bytes(&seed, stripe.shards[i], length);
    bd_erasure_encode(code, length, (const uint8_t *const *)stripe.shards,
                      stripe.shards + stripe.data);
    return stripe;
}

static void free_stripe(struct stripe *stripe)
{
    for (unsigned i = 0; i < stripe->data + stripe->parity; i++)
        free(stripe->shards[i]);
}

/* The shards of `lost` are computed from the others and compared. */
static void check_loss(struct bd_erasure *code, const struct stripe *stripe, uint32_t lost)
{
    const uint8_t *there[MAX] = {0};
    uint8_t *into[MAX] = {0};
    unsigned count = stripe->data + stripe->parity;
    for (unsigned i = 0; i < count; i++) {
        if (lost >> i & 1)
            into[i] = memory(stripe->length);
        else
            there[i] = stripe->shards[i];
    }
    bool possible = (unsigned)__builtin_popcount(lost) <= stripe->parity;
    CHECK_EQ(bd_erasure_reconstruct(code, stripe->length, there, into), possible ? 0 : -ENODATA);
    for (unsigned i = 0; i < count; i++) {
        if (into[i] != NULL && possible)
            CHECK(memcmp(into[i], stripe->shards[i], stripe->length) == 0);
        free(into[i]);
    }
}

static void test_sizes(void)
{
    static const unsigned wrong[][2] = {{0, 1},  {1, 0},   {0, 0},  {20, 1},
                                        {1, 20}, {~0u, 2}, {2, ~0u}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        errno = 0;
        CHECK(bd_erasure_new(wrong[i][0], wrong[i][1]) == NULL);
        CHECK_EQ(errno, EINVAL);
    }
}

static void test_every_loss(unsigned data, unsigned parity)
{
    struct bd_erasure *code = bd_erasure_new(data, parity);
    CHECK(code != NULL);
    struct stripe stripe = make_stripe(code, 97, data);
    for (uint32_t lost = 0; lost < UINT32_C(1) << (data + parity); lost++)
        check_loss(code, &stripe, lost);
    free_stripe(&stripe);
    bd_erasure_free(code);
}

static void test_random_loss_of_every_size(void)
{
    uint64_t seed = 3;
    for (unsigned data = 1; data < MAX; data++) {
        for (unsigned parity = 1; data + parity <= MAX; parity++) {
            struct bd_erasure *code = bd_erasure_new(data, parity);
            CHECK(code != NULL);
            struct stripe stripe = make_stripe(code, 1 + random_below(&seed, 200), seed);
            for (int round = 0; round < 20; round++) {
                uint32_t lost = 0;
                for (unsigned i = 0; i < parity; i++)
                    lost |= UINT32_C(1) << random_below(&seed, data + parity);
                check_loss(code, &stripe, lost);
            }
            free_stripe(&stripe);
            bd_erasure_free(code);
        }
    }
}

/* Around the widths of vector registers, and around the slices that shards are taken in. */
static void test_lengths(void)
{
    struct bd_erasure *code = bd_erasure_new(8, 3);
    CHECK(code != NULL);
    for (size_t length = 1; length < 200; length++) {
        struct stripe stripe = make_stripe(code, length, length);
        check_loss(code, &stripe, 0x221);
        free_stripe(&stripe);
    }
    static const size_t around[] = {16 << 10, 64 << 10, 1 << 20};
    for (size_t i = 0; i < sizeof around / sizeof *around; i++) {
        for (size_t length = around[i] - 1; length <= around[i] + 1; length++) {
            struct stripe stripe = make_stripe(code, length, length);
            check_loss(code, &stripe, 0x4c0);
            free_stripe(&stripe);
        }
    }
    bd_erasure_free(code);
}

/* What is both there and wanted; nothing wanted; one wanted though more are lost. */
static void test_what_is_wanted(void)
{
    struct bd_erasure *code = bd_erasure_new(4, 2);
    CHECK(code != NULL);
    struct stripe stripe = make_stripe(code, 64, 1);
    uint8_t *into[MAX] = {0};
    const uint8_t *there[MAX] = {0};
    memcpy(there, stripe.shards, 6 * sizeof *there);
    CHECK_EQ(bd_erasure_reconstruct(code, 64, there, into), 0);
    into[5] = memory(64);
    CHECK_EQ(bd_erasure_reconstruct(code, 64, there, into), -EINVAL);
    there[5] = there[0] = NULL;
    CHECK_EQ(bd_erasure_reconstruct(code, 64, there, into), 0);
    CHECK(memcmp(into[5], stripe.shards[5], 64) == 0);
    there[1] = NULL;
    CHECK_EQ(bd_erasure_reconstruct(code, 64, there, into), -ENODATA);
    free(into[5]);
    free_stripe(&stripe);
    bd_erasure_free(code);
}

static void test_cache_is_bounded(void)
{
    struct bd_erasure *code = bd_erasure_new(8, 3);
    CHECK(code != NULL);
    struct stripe stripe = make_stripe(code, 32, 5);
    size_t patterns;
    uint64_t made;
    for (int round = 0; round < 3; round++)
        for (unsigned i = 0; i < 8; i++)
            check_loss(code, &stripe, UINT32_C(1) << i);
    bd_erasure_stats(code, &patterns, &made);
    CHECK_EQ(patterns, 8);
    CHECK_EQ(made, 8);
    for (unsigned i = 0; i < 11; i++) {
        for (unsigned j = i + 1; j < 11; j++) {
            check_loss(code, &stripe, 1); /* in use all the time, so it stays */
            check_loss(code, &stripe, UINT32_C(1) << i | UINT32_C(1) << j);
        }
    }
    bd_erasure_stats(code, &patterns, &made);
    CHECK_EQ(patterns, BD_ERASURE_PATTERNS);
    CHECK_EQ(made, 8 + 55);
    free_stripe(&stripe);
    bd_erasure_free(code);
}

struct shared {
    struct bd_erasure *code;
    struct stripe *stripe;
    uint64_t seed;
};

static void *lose_at_random(void *argument)
{
    struct shared *shared = argument;
    for (int round = 0; round < 2000; round++) {
        uint32_t lost = UINT32_C(1) << random_below(&shared->seed, 11);
        lost |= UINT32_C(1) << random_below(&shared->seed, 11);
        check_loss(shared->code, shared->stripe, lost);
    }
    return NULL;
}

static void test_threads_share_the_cache(void)
{
    struct bd_erasure *code = bd_erasure_new(8, 3);
    CHECK(code != NULL);
    struct stripe stripe = make_stripe(code, 128, 9);
    struct shared shared[3];
    pthread_t threads[3];
    for (unsigned i = 0; i < 3; i++) {
        shared[i] = (struct shared){code, &stripe, i + 1};
        CHECK_EQ(pthread_create(&threads[i], NULL, lose_at_random, &shared[i]), 0);
    }
    for (unsigned i = 0; i < 3; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    free_stripe(&stripe);
    bd_erasure_free(code);
}

int main(void)
{
    test_sizes();
    test_every_loss(2, 1);
    test_every_loss(4, 2);
    test_every_loss(8, 3);
    test_every_loss(1, 5);
    test_every_loss(6, 1);
    test_random_loss_of_every_size();
    test_lengths();
    test_what_is_wanted();
    test_cache_is_bounded();
    test_threads_share_the_cache();
    return 0;
}
