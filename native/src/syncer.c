#include "syncer.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct bd_syncer {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct bd_journal *journal;
    pthread_t thread;
    uint64_t asked;
    uint64_t done;
    int error;
    int event;
    bool ending;
};

static void *run(void *argument)
{
    struct bd_syncer *syncer = argument;
    pthread_mutex_lock(&syncer->lock);
    for (;;) {
        while (syncer->asked == syncer->done && !syncer->ending)
            pthread_cond_wait(&syncer->more, &syncer->lock);
        if (syncer->ending)
            break;
        uint64_t upto = syncer->asked;
        pthread_mutex_unlock(&syncer->lock);
        uint64_t lsn;
        int error = bd_journal_sync(syncer->journal, &lsn);
        pthread_mutex_lock(&syncer->lock);
        syncer->done = upto;
        syncer->error = error;
        /* Full: then whoever waits is woken already. */
        (void)!eventfd_write(syncer->event, 1);
    }
    pthread_mutex_unlock(&syncer->lock);
    return NULL;
}

struct bd_syncer *bd_syncer_new(struct bd_journal *journal, int *error)
{
    struct bd_syncer *syncer = calloc(1, sizeof *syncer);
    if (syncer == NULL) {
        *error = -ENOMEM;
        return NULL;
    }
    pthread_mutex_init(&syncer->lock, NULL);
    pthread_cond_init(&syncer->more, NULL);
    syncer->journal = journal;
    syncer->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    /* Signals are for Python's threads: where one may end an fdatasync, that would seal the store.
     */
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    *error = syncer->event < 0 ? -errno : -pthread_create(&syncer->thread, NULL, run, syncer);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (*error == 0)
        return syncer;
    if (syncer->event >= 0)
        close(syncer->event);
    pthread_cond_destroy(&syncer->more);
    pthread_mutex_destroy(&syncer->lock);
    free(syncer);
    return NULL;
}

void bd_syncer_free(struct bd_syncer *syncer)
{
    pthread_mutex_lock(&syncer->lock);
    syncer->ending = true;
    pthread_cond_signal(&syncer->more);
    pthread_mutex_unlock(&syncer->lock);
    pthread_join(syncer->thread, NULL);
    close(syncer->event);
    pthread_cond_destroy(&syncer->more);
    pthread_mutex_destroy(&syncer->lock);
    free(syncer);
}

int bd_syncer_event(const struct bd_syncer *syncer)
{
    return syncer->event;
}

uint64_t bd_syncer_ask(struct bd_syncer *syncer)
{
    pthread_mutex_lock(&syncer->lock);
    uint64_t ticket = ++syncer->asked;
    pthread_cond_signal(&syncer->more);
    pthread_mutex_unlock(&syncer->lock);
    return ticket;
}

uint64_t bd_syncer_done(struct bd_syncer *syncer, int *error)
{
    eventfd_t value;
    (void)!eventfd_read(syncer->event, &value);
    pthread_mutex_lock(&syncer->lock);
    uint64_t done = syncer->done;
    *error = syncer->error;
    pthread_mutex_unlock(&syncer->lock);
    return done;
}
