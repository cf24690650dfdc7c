#include <pthread.h>
#include <string.h>

#include "account.h"
#include "check.h"
#include "client.h"

static uint64_t load(const atomic_uint_fast64_t *counter)
{
    return atomic_load(counter);
}

/* The first bucket whose bound is not below. */
static unsigned slow_bucket(uint64_t elapsed_ns)
{
    unsigned bucket = 0;
    while (bucket < BD_ACCOUNT_BOUNDS && elapsed_ns > bd_account_bound_ns(bucket))
        bucket++;
    return bucket;
}

static void bounds_grow_by_half_powers_of_two(void)
{
    CHECK(bd_account_bound_ns(0) == 1024);
    CHECK(bd_account_bound_ns(1) == 1536);
    CHECK(bd_account_bound_ns(2) == 2048);
    CHECK(bd_account_bound_ns(BD_ACCOUNT_BOUNDS - 1) == UINT64_C(1) << 36);
}

static void a_time_is_in_the_first_bucket_that_reaches_it(void)
{
    static const uint64_t far[] = {0, 1, UINT64_C(1) << 40, UINT64_MAX};
    for (unsigned i = 0; i < sizeof far / sizeof *far; i++)
        CHECK(bd_account_bucket(far[i]) == slow_bucket(far[i]));
    for (unsigned i = 0; i < BD_ACCOUNT_BOUNDS; i++) {
        uint64_t bound = bd_account_bound_ns(i);
        CHECK(bd_account_bucket(bound) == i);
        CHECK(bd_account_bucket(bound + 1) == i + 1);
        CHECK(bd_account_bucket(bound - 1) == slow_bucket(bound - 1));
    }
}

static void a_round_counts_at_once(void)
{
    static struct bd_account account;
    struct bd_tally tally = {0};
    for (int i = 0; i < 3; i++)
        bd_tally_count(&tally, BD_OP_READ, 4096);
    bd_tally_count(&tally, BD_OP_UNMAP, 1 << 20); /* carries nothing */
    bd_account_add(&account, &tally, 5000);
    bd_account_record(&account, BD_OP_READ, 512, false, 5000);
    bd_account_record(&account, BD_OP_WRITE, 0, true, 7);
    unsigned bucket = bd_account_bucket(5000);
    CHECK(load(&account.ops[BD_OP_READ].buckets[bucket]) == 4);
    CHECK(load(&account.ops[BD_OP_READ].bytes) == 3 * 4096 + 512);
    CHECK(load(&account.ops[BD_OP_READ].sum_ns) == 4 * 5000);
    CHECK(load(&account.ops[BD_OP_READ].errors) == 0);
    CHECK(load(&account.ops[BD_OP_UNMAP].buckets[bucket]) == 1);
    CHECK(load(&account.ops[BD_OP_UNMAP].bytes) == 0);
    CHECK(load(&account.ops[BD_OP_WRITE].buckets[0]) == 1);
    CHECK(load(&account.ops[BD_OP_WRITE].errors) == 1);
}

static void nobody_counts_where_there_is_no_account(void)
{
    struct bd_tally tally = {.requests = {1}};
    bd_account_add(NULL, &tally, 1);
    bd_account_record(NULL, BD_OP_READ, 1, false, 1);
    bd_account_enter(NULL, 1, 1);
    bd_account_leave(NULL, 1, 1);
}

enum { THREADS = 4, ROUNDS = 20000 };

static void *count_much(void *argument)
{
    struct bd_account *account = argument;
    struct bd_tally tally = {0};
    bd_tally_count(&tally, BD_OP_WRITE, 10);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        bd_account_enter(account, 1, 10);
        bd_account_add(account, &tally, i << 4);
        bd_account_leave(account, 1, 10);
    }
    return NULL;
}

static void threads_count_into_one_account(void)
{
    static struct bd_account account;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, count_much, &account) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    uint64_t requests = 0;
    for (int i = 0; i < BD_ACCOUNT_BUCKETS; i++)
        requests += load(&account.ops[BD_OP_WRITE].buckets[i]);
    CHECK(requests == (uint64_t)THREADS * ROUNDS);
    CHECK(load(&account.ops[BD_OP_WRITE].bytes) == requests * 10);
    CHECK(load(&account.requests_in_flight) == 0);
    CHECK(load(&account.bytes_in_flight) == 0);
}

/* As the loop does: bytes come, and are served from the start. */
static void receive(struct bd_client *client, size_t bytes, uint64_t now_ns)
{
    client->input.end += bytes;
    bd_client_arrived(client, bytes, now_ns);
}

static void a_request_came_when_its_last_byte_did(void)
{
    static struct bd_client client;
    memset(&client, 0, sizeof client);
    receive(&client, 100, 1);
    receive(&client, 100, 2);
    CHECK(bd_client_arrival_ns(&client, 28) == 1);
    client.input.start = 28;
    CHECK(bd_client_arrival_ns(&client, 100) == 1);
    CHECK(bd_client_arrival_ns(&client, 101) == 2);
    client.input.start = 200;
    client.input.start = client.input.end = 0; /* the input is given back */
    receive(&client, 10, 3);
    CHECK(bd_client_arrival_ns(&client, 10) == 3);
}

static void of_many_receives_the_last_ones_count_as_older(void)
{
    static struct bd_client client;
    memset(&client, 0, sizeof client);
    for (uint64_t i = 0; i < 3 * BD_ARRIVALS; i++)
        receive(&client, 10, i + 1);
    CHECK(bd_client_arrival_ns(&client, 10) == 1);
    CHECK(bd_client_arrival_ns(&client, 10 * BD_ARRIVALS) == BD_ARRIVALS);
    CHECK(bd_client_arrival_ns(&client, client.input.end) == BD_ARRIVALS);
}

static void what_landed_past_the_input_came_last(void)
{
    static struct bd_client client;
    memset(&client, 0, sizeof client);
    receive(&client, 48, 1);
    client.input.start = 48;
    receive(&client, 0, 2);
    receive(&client, 0, 3);
    CHECK(bd_client_arrival_ns(&client, 48) == 3);
    receive(&client, 20, 4); /* the end of it, and what follows */
    CHECK(bd_client_arrival_ns(&client, 48) == 4);
}

int main(void)
{
    bounds_grow_by_half_powers_of_two();
    a_time_is_in_the_first_bucket_that_reaches_it();
    a_round_counts_at_once();
    nobody_counts_where_there_is_no_account();
    threads_count_into_one_account();
    a_request_came_when_its_last_byte_did();
    of_many_receives_the_last_ones_count_as_older();
    what_landed_past_the_input_came_last();
    return 0;
}
