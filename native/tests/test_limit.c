#include <pthread.h>

#include "check.h"
#include "limit.h"

enum { MS = 1000000, SECOND = 1000 * MS };

static struct bd_limit limit;

static void limited(uint64_t ops, uint64_t bytes, uint64_t burst_ns)
{
    uint64_t rates[BD_LIMITS] = {[BD_LIMIT_OPS] = ops, [BD_LIMIT_BYTES] = bytes};
    bd_limit_init(&limit);
    bd_limit_set(&limit, rates, burst_ns, SECOND);
}

/* Asks until it may go on, as a client does; when that is. */
static uint64_t passed(struct bd_reservation *reservation, enum bd_op op, uint64_t length,
                       uint64_t now_ns)
{
    uint64_t until_ns;
    while ((until_ns = bd_limit_ask(&limit, reservation, op, length, now_ns)) != 0) {
        CHECK(until_ns > now_ns && until_ns <= now_ns + BD_LIMIT_SLICE_NS);
        now_ns = until_ns;
    }
    return now_ns;
}

static void what_is_not_limited_goes_on(void)
{
    struct bd_reservation mine = {0};
    bd_limit_init(&limit);
    CHECK(!bd_limit_is_set(&limit) && !bd_limit_is_set(NULL));
    CHECK_EQ(bd_limit_ask(&limit, &mine, BD_OP_WRITE, 1 << 20, 1), 0);
    CHECK_EQ(bd_limit_ask(NULL, &mine, BD_OP_WRITE, 1 << 20, 1), 0);
    bd_limit_give_up(NULL, &mine);
    limited(1, 0, 0);
    for (int i = 0; i < 10; i++)
        CHECK_EQ(bd_limit_ask(&limit, &mine, BD_OP_FLUSH, 0, SECOND), 0);
}

static void requests_are_a_rate_apart_after_the_burst(void)
{
    struct bd_reservation mine = {0};
    limited(100, 0, 50 * MS);
    uint64_t now_ns = SECOND;
    for (int i = 0; i < 6; i++) /* five of the burst, and one that finds it full */
        CHECK_EQ(passed(&mine, BD_OP_READ, 4096, now_ns), now_ns);
    for (int i = 1; i <= 100; i++) {
        now_ns = passed(&mine, BD_OP_READ, 4096, now_ns);
        CHECK_EQ(now_ns, SECOND + (uint64_t)i * 10 * MS);
    }
    now_ns += 10 * (uint64_t)SECOND; /* a pause does not save more than the burst */
    for (int i = 0; i < 6; i++)
        CHECK_EQ(passed(&mine, BD_OP_READ, 4096, now_ns), now_ns);
    CHECK_EQ(passed(&mine, BD_OP_READ, 4096, now_ns), now_ns + 10 * MS);
}

static void a_request_beyond_the_burst_goes_on_and_the_next_one_waits(void)
{
    struct bd_reservation mine = {0};
    limited(0, 1 << 20, 0);
    CHECK_EQ(passed(&mine, BD_OP_WRITE, 4 << 20, SECOND), SECOND);
    CHECK_EQ(passed(&mine, BD_OP_UNMAP, 1 << 30, SECOND), SECOND); /* no payload */
    CHECK_EQ(passed(&mine, BD_OP_WRITE, 512, SECOND), 5 * (uint64_t)SECOND);
}

static void clients_are_served_in_the_order_in_which_they_asked(void)
{
    struct bd_reservation clients[3] = {{0}};
    limited(10, 0, 0);
    uint64_t now_ns = SECOND;
    CHECK_EQ(bd_limit_ask(&limit, &clients[0], BD_OP_READ, 1, now_ns), 0);
    for (int i = 0; i < 3; i++)
        CHECK(bd_limit_ask(&limit, &clients[i], BD_OP_READ, 1, now_ns) != 0);
    for (int turn = 1; turn <= 9; turn++) {
        now_ns += 100 * MS;
        for (int i = 0; i < 3; i++) {
            bool is_its_turn = i == (turn - 1) % 3;
            CHECK((bd_limit_ask(&limit, &clients[i], BD_OP_READ, 1, now_ns) == 0) == is_its_turn);
            if (is_its_turn) /* it asks for the next one at once */
                CHECK(bd_limit_ask(&limit, &clients[i], BD_OP_READ, 1, now_ns) != 0);
        }
    }
}

static void a_change_lets_those_go_on_who_wait(void)
{
    struct bd_reservation mine = {0};
    limited(0, 1024, 0);
    CHECK_EQ(bd_limit_ask(&limit, &mine, BD_OP_READ, 1 << 20, SECOND), 0);
    uint64_t again_ns = bd_limit_ask(&limit, &mine, BD_OP_READ, 512, SECOND);
    CHECK_EQ(again_ns, SECOND + BD_LIMIT_SLICE_NS); /* it would be a thousand seconds */
    uint64_t rates[BD_LIMITS] = {[BD_LIMIT_BYTES] = 1 << 20};
    bd_limit_set(&limit, rates, 0, again_ns);
    CHECK_EQ(bd_limit_ask(&limit, &mine, BD_OP_READ, 512, again_ns), 0);
    CHECK(bd_limit_ask(&limit, &mine, BD_OP_READ, 512, again_ns) != 0);
    rates[BD_LIMIT_BYTES] = 0;
    bd_limit_set(&limit, rates, 0, again_ns);
    CHECK_EQ(bd_limit_ask(&limit, &mine, BD_OP_READ, 512, again_ns), 0);
}

static void a_place_that_is_given_up_is_there_for_others(void)
{
    struct bd_reservation mine = {0};
    struct bd_reservation gone = {0};
    limited(10, 1000, 0);
    CHECK_EQ(passed(&mine, BD_OP_READ, 100, SECOND), SECOND);
    CHECK(bd_limit_ask(&limit, &gone, BD_OP_READ, 64 << 20, SECOND) != 0);
    bd_limit_give_up(&limit, &gone);
    bd_limit_give_up(&limit, &gone); /* once only */
    CHECK_EQ(bd_limit_held(&limit).waiting, 0);
    CHECK_EQ(passed(&mine, BD_OP_READ, 500, SECOND), SECOND + 100 * MS);
    CHECK(bd_limit_ask(&limit, &gone, BD_OP_READ, 64 << 20, 2 * (uint64_t)SECOND) == 0);
    CHECK(bd_limit_ask(&limit, &gone, BD_OP_READ, 1, 2 * (uint64_t)SECOND) != 0);
    limited(10, 1000, 0);
    bd_limit_give_up(&limit, &gone); /* of other limits: nothing is taken out of these */
    CHECK_EQ(passed(&mine, BD_OP_READ, 500, SECOND), SECOND);
    CHECK_EQ(passed(&mine, BD_OP_READ, 500, SECOND), SECOND + 500 * MS);
}

static void a_place_is_kept_for_one_request_only(void)
{
    struct bd_reservation mine = {0};
    limited(0, 1000, 0);
    CHECK_EQ(passed(&mine, BD_OP_WRITE, 1000, SECOND), SECOND);
    CHECK(bd_limit_ask(&limit, &mine, BD_OP_WRITE, 512, SECOND) != 0);
    CHECK(bd_limit_ask(&limit, &mine, BD_OP_WRITE, 5000, SECOND) != 0); /* instead */
    uint64_t next_ns = passed(&mine, BD_OP_WRITE, 5000, SECOND);
    CHECK_EQ(next_ns, 2 * (uint64_t)SECOND);
    CHECK_EQ(passed(&mine, BD_OP_WRITE, 512, next_ns), 7 * (uint64_t)SECOND);
}

static void what_waited_is_counted(void)
{
    struct bd_reservation mine = {0};
    limited(100, 0, 0);
    for (int i = 0; i < 3; i++)
        passed(&mine, BD_OP_READ, 1, SECOND);
    struct bd_held held = bd_limit_held(&limit);
    CHECK_EQ(held.waiting, 0);
    CHECK_EQ(held.count, 2);
    CHECK_EQ(held.ns, 10 * MS + 20 * MS);
    CHECK(bd_limit_ask(&limit, &mine, BD_OP_READ, 1, SECOND) != 0);
    CHECK_EQ(bd_limit_held(&limit).waiting, 1);
    uint64_t none[BD_LIMITS] = {0};
    bd_limit_set(&limit, none, 0, SECOND + 5 * MS);
    CHECK_EQ(bd_limit_ask(&limit, &mine, BD_OP_READ, 1, SECOND + 5 * MS), 0);
    CHECK(!mine.made);
    held = bd_limit_held(&limit);
    CHECK_EQ(held.waiting, 0);
    CHECK_EQ(held.count, 3);
    CHECK_EQ(held.ns, 35 * MS);
}

static void what_nobody_can_wait_for_does_not_wrap(void)
{
    struct bd_reservation clients[8] = {{0}};
    limited(0, 1, 0);
    CHECK_EQ(bd_limit_ask(&limit, &clients[0], BD_OP_READ, UINT64_MAX, SECOND), 0);
    for (int i = 0; i < 8; i++)
        CHECK(bd_limit_ask(&limit, &clients[i], BD_OP_READ, UINT64_MAX, SECOND) != 0);
    for (int i = 0; i < 8; i++)
        CHECK(bd_limit_ask(&limit, &clients[i], BD_OP_READ, UINT64_MAX, 1000 * (uint64_t)SECOND) !=
              0);
}

enum { THREADS = 4, EACH = 5000 };

static uint64_t last_ns[THREADS];

static void *ask_much(void *argument)
{
    struct bd_reservation mine = {0};
    uint64_t now_ns = SECOND;
    for (int i = 0; i < EACH; i++)
        now_ns = passed(&mine, i % 2 == 0 ? BD_OP_READ : BD_OP_WRITE, 4096, now_ns);
    *(uint64_t *)argument = now_ns;
    return NULL;
}

/* Each thread's clock stands still but for what it waits: the last of all is when the rate says. */
static void threads_share_one_rate(void)
{
    pthread_t threads[THREADS];
    limited(1000, 0, 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, ask_much, &last_ns[i]) == 0);
    uint64_t last = 0;
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        last = last_ns[i] > last ? last_ns[i] : last;
    }
    CHECK_EQ(last, SECOND + (uint64_t)(THREADS * EACH - 1) * MS);
}

int main(void)
{
    what_is_not_limited_goes_on();
    requests_are_a_rate_apart_after_the_burst();
    a_request_beyond_the_burst_goes_on_and_the_next_one_waits();
    clients_are_served_in_the_order_in_which_they_asked();
    a_change_lets_those_go_on_who_wait();
    a_place_that_is_given_up_is_there_for_others();
    a_place_is_kept_for_one_request_only();
    what_waited_is_counted();
    what_nobody_can_wait_for_does_not_wrap();
    threads_share_one_rate();
    return 0;
}
