/* A syncer: whoever asked is told once what was in the journal before is on the disk. */
#include <errno.h>
#include <poll.h>

#include "check.h"
#include "rig.h"
#include "syncer.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 24, PATIENCE_MS = 30000 };

static uint64_t wait_for(struct bd_syncer *syncer, uint64_t ticket, int *error)
{
    for (;;) {
        struct pollfd ready = {.fd = bd_syncer_event(syncer), .events = POLLIN};
        CHECK_EQ(poll(&ready, 1, PATIENCE_MS), 1);
        uint64_t done = bd_syncer_done(syncer, error);
        if (done >= ticket)
            return done;
    }
}

static void test_what_is_asked_for_is_synced(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    int error;
    struct bd_syncer *syncer = bd_syncer_new(rig.journal, &error);
    CHECK(syncer != NULL);
    CHECK_EQ(bd_syncer_done(syncer, &error), 0);
    uint64_t last = 0;
    for (int i = 0; i < 50; i++) {
        rig_write(&rig, (uint64_t)i * 4096, 4096, 1);
        uint64_t ticket = bd_syncer_ask(syncer);
        CHECK(ticket > last);
        last = ticket;
        if (i % 3 == 0) {
            CHECK(wait_for(syncer, ticket, &error) >= ticket);
            CHECK_EQ(error, 0);
            CHECK_EQ(rig.journal->synced_lsn, rig.journal->next_lsn - 1);
        }
    }
    CHECK_EQ(wait_for(syncer, last, &error), last);
    struct pollfd ready = {.fd = bd_syncer_event(syncer), .events = POLLIN};
    CHECK_EQ(poll(&ready, 1, 0), 0); /* told once */
    bd_syncer_free(syncer);
    rig_destroy(&rig);
}

static void test_a_sync_that_fails_is_told_and_so_is_every_later_one(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 7);
    rig.files[0].fail_sync = -EIO;
    int error;
    struct bd_syncer *syncer = bd_syncer_new(rig.journal, &error);
    CHECK(syncer != NULL);
    wait_for(syncer, bd_syncer_ask(syncer), &error);
    CHECK_EQ(error, -EIO);
    wait_for(syncer, bd_syncer_ask(syncer), &error);
    CHECK_EQ(error, -EIO);
    CHECK_EQ(rig.files[0].syncs, 1);
    bd_syncer_free(syncer);
    rig_destroy(&rig);
}

static void test_it_ends_with_something_asked_for(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    for (int i = 0; i < 20; i++) {
        int error;
        struct bd_syncer *syncer = bd_syncer_new(rig.journal, &error);
        CHECK(syncer != NULL);
        bd_syncer_ask(syncer);
        bd_syncer_free(syncer);
    }
    rig_destroy(&rig);
}

int main(void)
{
    test_what_is_asked_for_is_synced();
    test_a_sync_that_fails_is_told_and_so_is_every_later_one();
    test_it_ends_with_something_asked_for();
    return 0;
}
