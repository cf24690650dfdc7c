#include "check.h"
#include "polling.h"

static const uint64_t NOW = UINT64_C(1000000000);

static struct bd_poll in_a_row(unsigned wakeups)
{
    struct bd_poll poll = {0};
    for (unsigned i = 0; i < wakeups; i++)
        bd_poll_served(&poll, 1, 4096, true);
    return poll;
}

static void looks_once_a_client_asked_a_little_at_a_time(void)
{
    struct bd_poll poll = in_a_row(BD_POLL_ROW - 1);
    CHECK(!bd_poll_worth(&poll, NOW));
    bd_poll_served(&poll, BD_POLL_FEW, BD_POLL_SMALL, true);
    CHECK(bd_poll_worth(&poll, NOW));
    bd_poll_served(&poll, 1, 0, true);
    CHECK(bd_poll_worth(&poll, NOW));
}

static void begins_anew_after_what_is_better_served_asleep(void)
{
    struct bd_poll many = in_a_row(BD_POLL_ROW);
    bd_poll_served(&many, BD_POLL_FEW + 1, 4096, true);
    struct bd_poll large = in_a_row(BD_POLL_ROW);
    bd_poll_served(&large, 1, BD_POLL_SMALL + 1, true);
    struct bd_poll shared = in_a_row(BD_POLL_ROW);
    bd_poll_served(&shared, 1, 4096, false);
    struct bd_poll *all[] = {&many, &large, &shared};
    for (unsigned i = 0; i < 3; i++) {
        for (unsigned j = 0; j < BD_POLL_ROW; j++) {
            CHECK(!bd_poll_worth(all[i], NOW));
            bd_poll_served(all[i], 1, 4096, true);
        }
        CHECK(bd_poll_worth(all[i], NOW));
    }
}

static void pauses_double_until_looking_pays_again(void)
{
    struct bd_poll poll = in_a_row(BD_POLL_ROW);
    uint64_t now = NOW;
    for (unsigned i = 0; i < BD_POLL_MAX_PAUSES + 3; i++) {
        uint64_t pause = (uint64_t)BD_POLL_PAUSE_NS
                         << (i < BD_POLL_MAX_PAUSES ? i : BD_POLL_MAX_PAUSES);
        bd_poll_ended(&poll, i % 2 ? BD_POLL_AWAY : BD_POLL_NOTHING, now);
        CHECK(!bd_poll_worth(&poll, now + pause - 1));
        now += pause;
        CHECK(bd_poll_worth(&poll, now));
    }
    for (unsigned i = 0; i <= BD_POLL_CREDIT; i++)
        bd_poll_ended(&poll, BD_POLL_FOUND, now);
    for (unsigned i = 0; i < BD_POLL_CREDIT / BD_POLL_AWAY_COSTS; i++)
        bd_poll_ended(&poll, BD_POLL_AWAY, now);
    CHECK(bd_poll_worth(&poll, now)); /* the credit has paid */
    bd_poll_ended(&poll, BD_POLL_AWAY, now);
    CHECK(!bd_poll_worth(&poll, now + BD_POLL_PAUSE_NS - 1));
    CHECK(bd_poll_worth(&poll, now + BD_POLL_PAUSE_NS)); /* pauses are short again */
}

static void looks_that_seldom_find_something_end(void)
{
    struct bd_poll poll = in_a_row(BD_POLL_ROW);
    unsigned looks = 0;
    while (bd_poll_worth(&poll, NOW)) { /* each second one */
        bd_poll_ended(&poll, looks % 2 ? BD_POLL_NOTHING : BD_POLL_FOUND, NOW);
        looks++;
    }
    CHECK(looks <= 2);
}

int main(void)
{
    looks_once_a_client_asked_a_little_at_a_time();
    begins_anew_after_what_is_better_served_asleep();
    pauses_double_until_looking_pays_again();
    looks_that_seldom_find_something_end();
    return 0;
}
