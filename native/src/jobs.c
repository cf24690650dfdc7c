#include "jobs.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gate.h"
#include "loop.h"
#include "sites.h"

enum {
    RARE_DELAY_US = 20000, /* of answers, for a test rig */
    MOST_READS = 16,       /* that one thread takes at once */
    FEW_READS = 8,         /* that are not worth waking another thread for */
    MOST_READ_BYTES = 256 << 10,
};

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct bd_job *first;
    struct bd_job *last;
    unsigned count;
    unsigned sleeping; /* threads */
    bool waking;       /* one of them has been woken, and is on its way */
    bool ending;
};

struct bd_jobs {
    struct queue syncs;
    struct queue reads;
    pthread_t syncer;
    pthread_t readers[BD_MAX_READERS];
    unsigned readers_wanted; /* set before any of them runs */
    unsigned reader_count;
    bool has_syncer;
};

static void queue_init(struct queue *queue)
{
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->more, NULL);
}

/* One thread at a time: it wakes the next when it has left any. The lock is held. */
static void wake_one(struct queue *queue)
{
    if (queue->first == NULL || queue->sleeping == 0 || queue->waking)
        return;
    queue->waking = true;
    pthread_cond_signal(&queue->more);
}

static void queue_add(struct queue *queue, struct bd_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&queue->lock);
    if (queue->first == NULL)
        queue->first = job;
    else
        queue->last->next = job;
    queue->last = job;
    queue->count++;
    wake_one(queue);
    pthread_mutex_unlock(&queue->lock);
}

static void queue_end(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->ending = true;
    pthread_cond_broadcast(&queue->more);
    pthread_mutex_unlock(&queue->lock);
}

/* Wait for jobs. False: the queue has ended. The lock is held. */
static bool has_jobs(struct queue *queue)
{
    while (queue->first == NULL && !queue->ending) {
        queue->sleeping++;
        pthread_cond_wait(&queue->more, &queue->lock);
        queue->sleeping--;
        queue->waking = false;
    }
    return queue->first != NULL;
}

/* All jobs; NULL when the queue has ended. */
static struct bd_job *take_all(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    struct bd_job *job = has_jobs(queue) ? queue->first : NULL;
    queue->first = NULL;
    queue->count = 0;
    pthread_mutex_unlock(&queue->lock);
    return job;
}

/* The next reads of one client, no more of them than this thread's share, nor than is bounded; a
 * longer one by itself. NULL when the queue has ended. */
static struct bd_job *take_reads(struct queue *queue, unsigned threads)
{
    pthread_mutex_lock(&queue->lock);
    struct bd_job *first = has_jobs(queue) ? queue->first : NULL;
    if (first != NULL) {
        unsigned share = (queue->count + threads - 1) / threads;
        if (share < FEW_READS)
            share = FEW_READS;
        struct bd_job *last = first;
        unsigned count = 1;
        uint64_t bytes = first->length;
        while (count < share && count < MOST_READS && last->next != NULL &&
               last->next->client == first->client &&
               bytes + last->next->length <= MOST_READ_BYTES) {
            last = last->next;
            bytes += last->length;
            count++;
        }
        queue->first = last->next;
        queue->count -= count;
        last->next = NULL;
        wake_one(queue);
    }
    pthread_mutex_unlock(&queue->lock);
    return first;
}

/* What a job has counted in its client. */
static void leave(struct bd_job *job)
{
    uint64_t bytes = job->data != NULL ? job->length : 0;
    job->client->jobs--;
    job->client->job_bytes -= bytes;
    bd_account_leave(job->account, 1, bytes);
}

/* Answer jobs of one client, a list, with one lock and one system call. */
static void end_all(struct bd_job *job)
{
    struct bd_client *client = job->client;
    pthread_mutex_lock(&client->lock);
    bd_client_gather(client);
    for (struct bd_job *at = job; at != NULL; at = at->next) {
        leave(at);
        if (!client->cut)
            client->protocol->finish(client, at);
    }
    bd_client_send_gathered(client);
    bd_loop_relieve(client);
    pthread_mutex_unlock(&client->lock);
    while (job != NULL) {
        struct bd_job *next = job->next;
        bd_arena_release(job->data);
        free(job);
        bd_client_release(client);
        job = next;
    }
}

void bd_job_end(struct bd_job *job)
{
    job->next = NULL;
    end_all(job);
}

static void *run_syncs(void *argument)
{
    struct bd_jobs *jobs = argument;
    struct bd_job *group;
    while ((group = take_all(&jobs->syncs)) != NULL) {
        struct bd_journal *synced = NULL;
        int status = 0;
        while (group != NULL) {
            struct bd_job *job = group;
            group = job->next;
            struct bd_journal *journal = job->volume->journal;
            if (journal != synced) { /* one, unless several stores are served */
                uint64_t lsn;
                status = bd_journal_sync(journal, &lsn);
                synced = journal;
                if (bd_site_fires(BD_SITE_ACK_DELAYED))
                    usleep(RARE_DELAY_US);
            }
            job->status = status;
            bd_job_end(job);
        }
    }
    return NULL;
}

static int read_job(struct bd_job *job, bool nowait)
{
    struct bd_read_fault fault;
    return bd_volume_read(job->volume, job->offset, job->length, job->data->data + job->data_at,
                          nowait, &fault);
}

/* Who reads several answers all of them at once, but has none wait for another's disk read. Other
 * threads read what is behind; and the kernel has begun with all of it (bd_volume_read, nowait). */
static void do_reads(struct bd_job *job)
{
    struct bd_job *done = NULL;
    struct bd_job **end = &done;
    while (job != NULL) {
        struct bd_job *next = job->next;
        job->next = NULL;
        job->status = done == NULL ? -EAGAIN : read_job(job, true);
        if (job->status < 0) {
            if (done != NULL)
                end_all(done);
            done = NULL;
            end = &done;
            job->status = read_job(job, false);
        }
        if (job->volume->gate == NULL || !bd_gate_hold(job->volume->gate, job)) {
            *end = job;
            end = &job->next;
        }
        job = next;
    }
    if (done != NULL)
        end_all(done);
}

static void *run_reads(void *argument)
{
    struct bd_jobs *jobs = argument;
    struct bd_job *job;
    while ((job = take_reads(&jobs->reads, jobs->readers_wanted)) != NULL)
        do_reads(job);
    return NULL;
}

struct bd_jobs *bd_jobs_new(unsigned readers)
{
    struct bd_jobs *jobs = calloc(1, sizeof *jobs);
    if (jobs == NULL)
        return NULL;
    queue_init(&jobs->syncs);
    queue_init(&jobs->reads);
    jobs->readers_wanted = readers;
    int error = pthread_create(&jobs->syncer, NULL, run_syncs, jobs);
    jobs->has_syncer = error == 0;
    while (error == 0 && jobs->reader_count < readers) {
        error = pthread_create(&jobs->readers[jobs->reader_count], NULL, run_reads, jobs);
        if (error == 0)
            jobs->reader_count++;
    }
    if (error != 0) {
        bd_jobs_free(jobs);
        errno = error;
        return NULL;
    }
    return jobs;
}

void bd_jobs_free(struct bd_jobs *jobs)
{
    queue_end(&jobs->syncs);
    queue_end(&jobs->reads);
    if (jobs->has_syncer)
        pthread_join(jobs->syncer, NULL);
    for (unsigned i = 0; i < jobs->reader_count; i++)
        pthread_join(jobs->readers[i], NULL);
    free(jobs);
}

void bd_jobs_add(struct bd_jobs *jobs, struct bd_job *job)
{
    queue_add(job->kind == BD_JOB_SYNC ? &jobs->syncs : &jobs->reads, job);
}

/* A job of the client, counted; NULL when memory or the bounds refuse it. */
static struct bd_job *new_job(struct bd_client *client, const struct bd_job *wanted, bool reads)
{
    if (client->jobs >= BD_MAX_JOBS || (reads && client->job_bytes > BD_JOB_BYTES))
        return NULL;
    struct bd_job *job = malloc(sizeof *job);
    if (job == NULL)
        return NULL;
    *job = *wanted;
    job->client = client;
    if (job->volume == NULL)
        job->volume = client->volume;
    job->status = 0;
    job->data = NULL;
    if (reads) {
        job->data = bd_arena_new(job->data_at + (size_t)job->length);
        if (job->data == NULL) {
            free(job);
            return NULL;
        }
        client->job_bytes += job->length;
    }
    client->jobs++;
    bd_account_enter(job->account, 1, reads ? job->length : 0);
    bd_client_retain(client);
    return job;
}

bool bd_loop_begin(struct bd_client *client, const struct bd_job *wanted)
{
    struct bd_job *job = new_job(client, wanted, wanted->kind == BD_JOB_READ);
    if (job == NULL)
        return false;
    bd_jobs_add(bd_loop_jobs(client->loop), job);
    return true;
}

enum bd_waited bd_loop_wait(struct bd_client *client, const struct bd_job *wanted,
                            const uint8_t *data)
{
    struct bd_job *job = new_job(client, wanted, data != NULL);
    if (job == NULL)
        return BD_WAITED_REFUSED;
    if (data != NULL)
        memcpy(job->data->data + job->data_at, data, (size_t)job->length);
    if (bd_gate_hold(job->volume->gate, job))
        return BD_WAITED_BEGUN;
    int status = job->status;
    leave(job);
    bd_arena_release(job->data);
    free(job);
    bd_client_release(client); /* who calls has another reference */
    return status < 0 ? BD_WAITED_REFUSED : BD_WAITED_PASSED;
}
