#include "jobs.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gate.h"
#include "loop.h"
#include "sites.h"

enum { RARE_DELAY_US = 20000 }; /* of answers, for a test rig */

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct bd_job *first;
    struct bd_job *last;
    bool ending;
};

struct bd_jobs {
    struct queue syncs;
    struct queue reads;
    pthread_t syncer;
    pthread_t readers[BD_MAX_READERS];
    unsigned reader_count;
    bool has_syncer;
};

static void queue_init(struct queue *queue)
{
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->more, NULL);
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
    pthread_cond_signal(&queue->more);
    pthread_mutex_unlock(&queue->lock);
}

static void queue_end(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->ending = true;
    pthread_cond_broadcast(&queue->more);
    pthread_mutex_unlock(&queue->lock);
}

/* The next job, or all of them; NULL when the queue has ended. */
static struct bd_job *queue_take(struct queue *queue, bool all)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->first == NULL && !queue->ending)
        pthread_cond_wait(&queue->more, &queue->lock);
    struct bd_job *job = queue->first;
    if (job != NULL) {
        queue->first = all ? NULL : job->next;
        if (!all)
            job->next = NULL;
    }
    pthread_mutex_unlock(&queue->lock);
    return job;
}

/* What a job has counted in its client. */
static void leave(struct bd_job *job)
{
    uint64_t bytes = job->data != NULL ? job->length : 0;
    job->client->jobs--;
    job->client->job_bytes -= bytes;
    bd_account_leave(job->account, 1, bytes);
}

void bd_job_end(struct bd_job *job)
{
    struct bd_client *client = job->client;
    pthread_mutex_lock(&client->lock);
    leave(job);
    if (!client->cut)
        client->protocol->finish(client, job);
    bd_loop_relieve(client);
    pthread_mutex_unlock(&client->lock);
    bd_arena_release(job->data);
    free(job);
    bd_client_release(client);
}

static void *run_syncs(void *argument)
{
    struct bd_jobs *jobs = argument;
    struct bd_job *group;
    while ((group = queue_take(&jobs->syncs, true)) != NULL) {
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

static void *run_reads(void *argument)
{
    struct bd_jobs *jobs = argument;
    struct bd_job *job;
    while ((job = queue_take(&jobs->reads, false)) != NULL) {
        struct bd_read_fault fault;
        job->status = bd_volume_read(job->volume, job->offset, job->length,
                                     job->data->data + job->data_at, false, &fault);
        if (job->volume->gate == NULL || !bd_gate_hold(job->volume->gate, job))
            bd_job_end(job);
    }
    return NULL;
}

struct bd_jobs *bd_jobs_new(unsigned readers)
{
    struct bd_jobs *jobs = calloc(1, sizeof *jobs);
    if (jobs == NULL)
        return NULL;
    queue_init(&jobs->syncs);
    queue_init(&jobs->reads);
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
