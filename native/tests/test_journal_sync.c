/* What a sync promises, also when several threads ask for one. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "check.h"
#include "rig.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 24 };

static void test_sync_makes_durable_what_was_appended(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 1);
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, NULL), BD_ACTION_WAIT_SYNC);
    uint64_t synced = 0;
    CHECK_EQ(bd_journal_sync(rig.journal, &synced), 0);
    CHECK_EQ(synced, rig.journal->next_lsn - 1);
    CHECK_EQ(rig.files[0].syncs, 1);
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, NULL), BD_ACTION_DONE);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    CHECK_EQ(rig.files[0].syncs, 1); /* nothing new: nothing to sync */
    CHECK_EQ(rig.files[1].syncs, 0);
    rig_destroy(&rig);
}

static void test_sync_covers_every_segment_written_since(void)
{
    struct rig rig;
    rig_init(&rig, 64 << 10, 4, VOLUME);
    for (int i = 0; i < 40; i++)
        rig_write(&rig, (uint64_t)i * 4096, 4096, 1);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    CHECK_EQ(rig.files[0].syncs + rig.files[1].syncs + rig.files[2].syncs, 3);
    rig_destroy(&rig);
}

static void test_sync_error_seals(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 4096, 7);
    rig.files[0].fail_sync = -EIO;
    uint64_t synced = 99;
    CHECK_EQ(bd_journal_sync(rig.journal, &synced), -EIO);
    CHECK_EQ(synced, 0);
    CHECK_EQ(rig.journal->sealed, EIO);
    rig.files[0].fail_sync = 0;
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), -EIO);
    CHECK_EQ(rig.files[0].syncs, 1); /* never called again */
    uint8_t data[512] = {0};
    int status;
    CHECK_EQ(rig_do(&rig, BD_ACTION_WRITE, 0, 512, data, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -EIO);
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, &status), BD_ACTION_DONE);
    CHECK_EQ(status, -EIO);
    rig_expect(&rig, 0, 4096, 7); /* reads go on */
    rig_destroy(&rig);
}

/* While one thread is in fdatasync, a second one must not be told that its data is durable. */

struct meeting {
    struct rig *rig;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool first_is_inside;
    bool let_go;
    pthread_t passes; /* the thread that need not stay */
    atomic_bool second_done;
};

static void stay_inside(void *with)
{
    struct meeting *meeting = with;
    pthread_mutex_lock(&meeting->lock);
    meeting->first_is_inside = true;
    pthread_cond_broadcast(&meeting->changed);
    while (!meeting->let_go)
        pthread_cond_wait(&meeting->changed, &meeting->lock);
    pthread_mutex_unlock(&meeting->lock);
}

static void *sync_once(void *with)
{
    struct meeting *meeting = with;
    CHECK_EQ(bd_journal_sync(meeting->rig->journal, NULL), 0);
    return NULL;
}

static void *sync_second(void *with)
{
    struct meeting *meeting = with;
    CHECK_EQ(bd_journal_sync(meeting->rig->journal, NULL), 0);
    atomic_store(&meeting->second_done, true);
    return NULL;
}

static void test_a_second_sync_waits_for_the_first(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct meeting meeting = {.rig = &rig};
    pthread_mutex_init(&meeting.lock, NULL);
    pthread_cond_init(&meeting.changed, NULL);
    rig.files[0].during_sync = stay_inside;
    rig.files[0].during_sync_with = &meeting;
    rig_write(&rig, 0, 4096, 1);
    pthread_t first;
    pthread_t second;
    CHECK_EQ(pthread_create(&first, NULL, sync_once, &meeting), 0);
    pthread_mutex_lock(&meeting.lock);
    while (!meeting.first_is_inside)
        pthread_cond_wait(&meeting.changed, &meeting.lock);
    pthread_mutex_unlock(&meeting.lock);
    CHECK_EQ(pthread_create(&second, NULL, sync_second, &meeting), 0);
    /* The second one has every chance to run to its end; a flush goes by what it left behind. */
    for (int i = 0; i < 1000; i++) {
        CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, NULL), BD_ACTION_WAIT_SYNC);
        CHECK(!atomic_load(&meeting.second_done));
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000}, NULL);
    }
    pthread_mutex_lock(&meeting.lock);
    meeting.let_go = true;
    pthread_cond_broadcast(&meeting.changed);
    pthread_mutex_unlock(&meeting.lock);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    CHECK_EQ(rig_do(&rig, BD_ACTION_FLUSH, 0, 0, NULL, NULL), BD_ACTION_DONE);
    pthread_cond_destroy(&meeting.changed);
    pthread_mutex_destroy(&meeting.lock);
    rig_destroy(&rig);
}

static void others_stay_inside(void *with)
{
    struct meeting *meeting = with;
    if (!pthread_equal(pthread_self(), meeting->passes))
        stay_inside(with);
}

/* Who waits for a sync is the next one, however soon somebody who would rather not wait comes back:
 * others wait behind him. */
static void test_who_waits_for_a_sync_is_not_overtaken(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    struct meeting meeting = {.rig = &rig, .passes = pthread_self()};
    pthread_mutex_init(&meeting.lock, NULL);
    pthread_cond_init(&meeting.changed, NULL);
    rig.files[0].during_sync = others_stay_inside; /* so that he is not done before we come */
    rig.files[0].during_sync_with = &meeting;
    rig_write(&rig, 0, 4096, 1);
    pthread_mutex_lock(&rig.journal->sync_lock); /* as by a sync under way */
    pthread_t waiting;
    CHECK_EQ(pthread_create(&waiting, NULL, sync_once, &meeting), 0);
    while (atomic_load(&rig.journal->sync_waiters) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 20 * 1000}, NULL);
    pthread_mutex_unlock(&rig.journal->sync_lock);
    int error = bd_journal_try_sync(rig.journal);
    pthread_mutex_lock(&meeting.lock);
    meeting.let_go = true;
    pthread_cond_broadcast(&meeting.changed);
    pthread_mutex_unlock(&meeting.lock);
    pthread_join(waiting, NULL);
    CHECK_EQ(error, -EBUSY);
    CHECK_EQ(bd_journal_try_sync(rig.journal), 0); /* nobody waits any more */
    pthread_cond_destroy(&meeting.changed);
    pthread_mutex_destroy(&meeting.lock);
    rig_destroy(&rig);
}

static void test_a_sync_begins_a_new_sector(void)
{
    struct rig rig;
    rig_init(&rig, SEGMENT, 2, VOLUME);
    rig_write(&rig, 0, 512, 1);
    CHECK(rig.journal->position % BD_SECTOR != 0);
    CHECK_EQ(bd_journal_sync(rig.journal, NULL), 0);
    CHECK_EQ(rig.journal->position % BD_SECTOR, 0);
    rig_write(&rig, 512, 512, 2);
    CHECK_EQ(rig_restart(&rig), 4); /* two marks, two writes */
    rig_expect(&rig, 0, 512, 1);
    rig_expect(&rig, 512, 512, 2);
    rig_destroy(&rig);
}

int main(void)
{
    test_sync_makes_durable_what_was_appended();
    test_sync_covers_every_segment_written_since();
    test_sync_error_seals();
    test_a_second_sync_waits_for_the_first();
    test_who_waits_for_a_sync_is_not_overtaken();
    test_a_sync_begins_a_new_sector();
    return 0;
}
