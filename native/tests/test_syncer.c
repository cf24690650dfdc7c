/* A syncer: whoever asked is told once what was in the journal before is on the disk. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

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

static void ignore(int number)
{
    (void)number;
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

/* One may end an fdatasync, on some file systems, and that seals. */
static void test_signals_are_for_other_threads(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    int error;
    struct bd_syncer *syncer = bd_syncer_new(rig.journal, &error);
    CHECK(syncer != NULL);
    sigset_t user;
    sigset_t pending;
    sigemptyset(&user);
    sigaddset(&user, SIGUSR1);
    signal(SIGUSR1, ignore);
    pthread_sigmask(SIG_BLOCK, &user, NULL);
    wait_for(syncer, bd_syncer_ask(syncer), &error); /* its thread is there */
    CHECK_EQ(kill(getpid(), SIGUSR1), 0);
    wait_for(syncer, bd_syncer_ask(syncer), &error); /* and has had the time to take it */
    CHECK_EQ(sigpending(&pending), 0);
    CHECK(sigismember(&pending, SIGUSR1));
    bd_syncer_free(syncer);
    pthread_sigmask(SIG_UNBLOCK, &user, NULL);
    rig_destroy(&rig);
}

int main(void)
{
    test_signals_are_for_other_threads();
    test_what_is_asked_for_is_synced();
    test_a_sync_that_fails_is_told_and_so_is_every_later_one();
    test_it_ends_with_something_asked_for();
    return 0;
}
