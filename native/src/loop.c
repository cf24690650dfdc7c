#include "loop.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "jobs.h"
#include "lone.h"

uint64_t bd_loop_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void bd_loop_served(struct bd_client *client, struct bd_account *account,
                    const struct bd_tally *tally, uint64_t elapsed_ns)
{
    bd_tally_add(&client->counters, tally);
    bd_account_add(account, tally, elapsed_ns);
}

static void close_worker(struct bd_worker *worker)
{
    if (worker->epoll >= 0)
        close(worker->epoll);
    if (worker->wake >= 0)
        close(worker->wake);
    bd_arena_release(worker->arena);
    free(worker->spare);
    pthread_mutex_destroy(&worker->lock);
}

/* 0 or -errno; what there is is closed by close_worker in any case. */
static int open_worker(struct bd_loop *loop, struct bd_worker *worker)
{
    *worker = (struct bd_worker){.loop = loop, .epoll = -1, .wake = -1, .wake_ns = UINT64_MAX};
    pthread_mutex_init(&worker->lock, NULL);
    worker->epoll = epoll_create1(EPOLL_CLOEXEC);
    worker->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (worker->epoll < 0 || worker->wake < 0)
        return -errno;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = worker};
    if (epoll_ctl(worker->epoll, EPOLL_CTL_ADD, worker->wake, &event) < 0)
        return -errno;
    return -pthread_create(&worker->thread, NULL, bd_worker_run, worker);
}

void bd_loop_end(struct bd_loop *loop)
{
    for (unsigned i = 0; i < loop->worker_count; i++) {
        struct bd_worker *worker = &loop->workers[i];
        pthread_mutex_lock(&worker->lock);
        worker->ending = true;
        pthread_mutex_unlock(&worker->lock);
        eventfd_write(worker->wake, 1);
        pthread_join(worker->thread, NULL); /* when its clients' jobs have ended */
    }
    if (loop->jobs != NULL)
        bd_jobs_free(loop->jobs);
    loop->jobs = NULL;
}

struct bd_loop *bd_loop_new(unsigned workers, unsigned readers, unsigned pollers)
{
    if (workers < 1 || workers > BD_MAX_WORKERS || readers < 1 || readers > BD_MAX_READERS) {
        errno = EINVAL;
        return NULL;
    }
    struct bd_loop *loop = calloc(1, sizeof *loop);
    if (loop == NULL)
        return NULL;
    loop->pollers = pollers;
    loop->long_wait_ns = BD_LONE_LONG_NS;
    /* Signals are for Python's threads, but for the one that tells a thread of its own access. */
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS); /* guard.h */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_init(&loop->lock, NULL);
    int error = 0;
    loop->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (loop->event < 0)
        error = -errno;
    if (error == 0) {
        loop->jobs = bd_jobs_new(readers);
        if (loop->jobs == NULL)
            error = -errno;
    }
    while (error == 0 && loop->worker_count < workers) {
        error = open_worker(loop, &loop->workers[loop->worker_count]);
        if (error == 0)
            loop->worker_count++;
        else
            close_worker(&loop->workers[loop->worker_count]);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error < 0) {
        bd_loop_end(loop);
        bd_loop_free(loop);
        errno = -error;
        return NULL;
    }
    return loop;
}

void bd_loop_free(struct bd_loop *loop)
{
    for (unsigned i = 0; i < loop->worker_count; i++)
        close_worker(&loop->workers[i]);
    struct bd_client *client;
    while ((client = bd_loop_news(loop)) != NULL)
        bd_client_release(client);
    if (loop->event >= 0)
        close(loop->event);
    pthread_mutex_destroy(&loop->lock);
    free(loop);
}

int bd_loop_fd(const struct bd_loop *loop)
{
    return loop->event;
}

struct bd_jobs *bd_loop_jobs(struct bd_loop *loop)
{
    return loop->jobs;
}

void bd_loop_tell(struct bd_client *client)
{
    struct bd_loop *loop = client->loop;
    if (client->told || loop == NULL)
        return;
    client->told = true;
    client->next_told = NULL;
    bd_client_retain(client);
    pthread_mutex_lock(&loop->lock);
    bool first = loop->first_told == NULL;
    if (first)
        loop->first_told = client;
    else
        loop->last_told->next_told = client;
    loop->last_told = client;
    pthread_mutex_unlock(&loop->lock);
    if (first)
        eventfd_write(loop->event, 1);
}

struct bd_client *bd_loop_news(struct bd_loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    struct bd_client *client = loop->first_told;
    if (client == NULL) {
        eventfd_t count;
        eventfd_read(loop->event, &count); /* under the lock: nobody can be told between the two */
    } else {
        loop->first_told = client->next_told;
    }
    pthread_mutex_unlock(&loop->lock);
    if (client != NULL) {
        /* Whatever comes from now on is told again; what came until now, the caller sees. */
        pthread_mutex_lock(&client->lock);
        client->told = false;
        pthread_mutex_unlock(&client->lock);
    }
    return client;
}

/* Whether it waits for the disk on its own thread, which may be stuck: a new client would be with
 * it. The loop's lock is held. */
static bool is_stuck(const struct bd_worker *worker, uint64_t now_ns)
{
    return worker->waiting_ns != 0 && now_ns - worker->waiting_ns > worker->loop->long_wait_ns;
}

static bool is_better(const struct bd_worker *worker, const struct bd_worker *least,
                      uint64_t now_ns)
{
    bool stuck = is_stuck(worker, now_ns);
    return stuck == is_stuck(least, now_ns) ? worker->count < least->count : !stuck;
}

int bd_loop_add(struct bd_loop *loop, struct bd_client *client)
{
    pthread_mutex_lock(&loop->lock);
    uint64_t now_ns = bd_loop_monotonic_ns(); /* with the lock: none has begun to wait later */
    struct bd_worker *least = &loop->workers[0];
    for (unsigned i = 1; i < loop->worker_count; i++)
        if (is_better(&loop->workers[i], least, now_ns))
            least = &loop->workers[i];
    least->count++;
    pthread_mutex_unlock(&loop->lock);
    bd_client_retain(client); /* the worker's, until the client has stopped */
    pthread_mutex_lock(&client->lock);
    client->loop = loop;
    client->worker = least;
    bd_loop_attend(client);
    pthread_mutex_unlock(&client->lock);
    return 0;
}

void bd_loop_left(struct bd_worker *worker)
{
    pthread_mutex_lock(&worker->loop->lock);
    worker->count--;
    pthread_mutex_unlock(&worker->loop->lock);
}

bool bd_loop_may_wait(struct bd_worker *worker, uint64_t now_ns)
{
    pthread_mutex_lock(&worker->loop->lock);
    bool alone = worker->count == 1;
    worker->waiting_ns = alone ? now_ns : 0;
    pthread_mutex_unlock(&worker->loop->lock);
    return alone;
}

void bd_loop_waited(struct bd_worker *worker)
{
    pthread_mutex_lock(&worker->loop->lock);
    worker->waiting_ns = 0;
    pthread_mutex_unlock(&worker->loop->lock);
}
