/* When a flush is synced by the thread that serves its client, and when before it has come. */
#include "check.h"
#include "lone.h"

enum { LENGTH = 4096 };

static void pairs(struct bd_lone *lone, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        bd_lone_served(lone, 1, BD_LONE_WRITE, LENGTH);
        bd_lone_served(lone, 1, BD_LONE_FLUSH, 0);
    }
}

static struct bd_lone settled(void)
{
    struct bd_lone lone = {0};
    pairs(&lone, BD_LONE_ROW);
    CHECK(bd_lone_syncs_here(&lone));
    return lone;
}

static void test_flushes_that_come_alone_are_synced_here(void)
{
    struct bd_lone lone = {0};
    for (unsigned i = 0; i < BD_LONE_ROW; i++) {
        CHECK(!bd_lone_syncs_here(&lone));
        bd_lone_served(&lone, 1, i % 3 == 2 ? BD_LONE_FLUSH : BD_LONE_WRITE, LENGTH);
    }
    CHECK(bd_lone_syncs_here(&lone));
    CHECK(!bd_lone_syncs_ahead(&lone));
}

static void test_a_write_is_synced_ahead_when_each_had_a_flush(void)
{
    struct bd_lone lone = settled();
    CHECK(!bd_lone_syncs_ahead(&lone)); /* it was a flush */
    bd_lone_served(&lone, 1, BD_LONE_WRITE, LENGTH);
    CHECK(bd_lone_syncs_ahead(&lone));
    bd_lone_served(&lone, 1, BD_LONE_FLUSH, 0);
    CHECK(!bd_lone_syncs_ahead(&lone));
}

static void test_a_write_without_its_flush_ends_syncing_ahead(void)
{
    struct bd_lone lone = settled();
    bd_lone_served(&lone, 1, BD_LONE_WRITE, LENGTH);
    bd_lone_served(&lone, 1, BD_LONE_WRITE, LENGTH);
    CHECK(!bd_lone_syncs_ahead(&lone));
    CHECK(bd_lone_syncs_here(&lone));
    bd_lone_served(&lone, 1, BD_LONE_FLUSH, 0);
    pairs(&lone, BD_LONE_PAIRS - 2);
    bd_lone_served(&lone, 1, BD_LONE_WRITE, LENGTH);
    CHECK(!bd_lone_syncs_ahead(&lone));
    bd_lone_served(&lone, 1, BD_LONE_FLUSH, 0);
    bd_lone_served(&lone, 1, BD_LONE_WRITE, LENGTH);
    CHECK(bd_lone_syncs_ahead(&lone));
}

static void test_two_flushes_in_a_row_are_no_pair(void)
{
    struct bd_lone lone = settled();
    bd_lone_served(&lone, 1, BD_LONE_FLUSH, 0);
    bd_lone_served(&lone, 1, BD_LONE_WRITE, LENGTH);
    CHECK(!bd_lone_syncs_ahead(&lone));
    CHECK(bd_lone_syncs_here(&lone));
}

static void read_alone(struct bd_lone *lone, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        bd_lone_served(lone, 1, BD_LONE_READ, LENGTH);
}

static void test_reads_that_come_alone_wait_here(void)
{
    struct bd_lone lone = {0};
    read_alone(&lone, BD_LONE_ROW - 1);
    CHECK(!bd_lone_reads_here(&lone));
    read_alone(&lone, 2);
    CHECK(bd_lone_reads_here(&lone));
    CHECK(!bd_lone_syncs_here(&lone));
    bd_lone_served(&lone, 1, BD_LONE_WRITE, LENGTH);
    CHECK(!bd_lone_reads_here(&lone));
    read_alone(&lone, BD_LONE_ROW);
    bd_lone_served(&lone, 2, BD_LONE_READ, 2 * LENGTH);
    CHECK(!bd_lone_reads_here(&lone));
    read_alone(&lone, BD_LONE_ROW);
    bd_lone_served(&lone, 1, BD_LONE_READ, BD_LONE_SMALL + 1);
    CHECK(!bd_lone_reads_here(&lone));
    read_alone(&lone, BD_LONE_ROW);
    bd_lone_interrupted(&lone);
    CHECK(!bd_lone_reads_here(&lone));
}

static void test_whoever_has_more_under_way_is_not_kept_waiting(void)
{
    struct bd_lone two = settled();
    bd_lone_served(&two, 2, BD_LONE_WRITE, LENGTH);
    CHECK(!bd_lone_syncs_here(&two));
    struct bd_lone read = settled();
    bd_lone_served(&read, 1, BD_LONE_OTHER, LENGTH);
    CHECK(!bd_lone_syncs_here(&read));
    struct bd_lone large = settled();
    bd_lone_served(&large, 1, BD_LONE_WRITE, BD_LONE_SMALL + 1);
    CHECK(!bd_lone_syncs_here(&large));
    struct bd_lone early = settled();
    bd_lone_interrupted(&early);
    CHECK(!bd_lone_syncs_here(&early));
    bd_lone_served(&early, 1, BD_LONE_WRITE, LENGTH);
    CHECK(!bd_lone_syncs_ahead(&early));
}

static void test_a_slow_disk_is_waited_for_by_another_thread(void)
{
    CHECK_EQ(bd_lone_again_ns(BD_LONE_LONG_NS, BD_LONE_LONG_NS, 5), 0);
    uint64_t took = BD_LONE_LONG_NS + 1;
    CHECK_EQ(bd_lone_again_ns(took, BD_LONE_LONG_NS, 5), 5 + BD_LONE_PAUSE * took);
}

int main(void)
{
    test_flushes_that_come_alone_are_synced_here();
    test_a_write_is_synced_ahead_when_each_had_a_flush();
    test_a_write_without_its_flush_ends_syncing_ahead();
    test_two_flushes_in_a_row_are_no_pair();
    test_reads_that_come_alone_wait_here();
    test_whoever_has_more_under_way_is_not_kept_waiting();
    test_a_slow_disk_is_waited_for_by_another_thread();
    return 0;
}
