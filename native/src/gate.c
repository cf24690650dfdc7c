#include "gate.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "jobs.h"
#include "locks.h"

uint64_t bd_gate_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

int bd_gate_new(struct bd_volume *volume)
{
    struct bd_gate *gate = calloc(1, sizeof *gate);
    if (gate == NULL)
        return -ENOMEM;
    gate->wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int error = gate->wake < 0 ? -errno : 0;
    if (error == 0) {
        atomic_init(&gate->shut, true);
        pthread_mutex_init(&gate->lock, NULL);
        bd_lock(&volume->journal->lock);
        if (volume->gate != NULL)
            error = -EEXIST;
        else
            volume->gate = gate;
        pthread_mutex_unlock(&volume->journal->lock);
        if (error < 0)
            bd_gate_free(gate);
    } else {
        free(gate);
    }
    return error;
}

void bd_gate_free(struct bd_gate *gate)
{
    if (gate == NULL)
        return;
    close(gate->wake);
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}

void bd_gate_open(struct bd_volume *volume, uint64_t start, bool strict, uint64_t timeout_ns)
{
    struct bd_gate *gate = volume->gate;
    bd_lock(&volume->journal->lock);
    bd_lock(&gate->lock);
    gate->acked = gate->durable = gate->wanted = start;
    gate->strict = strict;
    gate->timeout_ns = timeout_ns;
    gate->reads_until_ns = 0;
    gate->forgotten = 0;
    gate->count = 0;
    atomic_store(&gate->shut, false);
    pthread_mutex_unlock(&gate->lock);
    pthread_mutex_unlock(&volume->journal->lock);
}

/* Whether what waits for these may go. `now_ns`: not before the data of a read was there. The lock
 * is held. */
static bool passes(const struct bd_gate *gate, uint64_t seq, bool durable, bool reads,
                   uint64_t now_ns)
{
    return seq <= (durable ? gate->durable : gate->acked) &&
           (!reads || now_ns < gate->reads_until_ns);
}

static bool is_read(const struct bd_job *job)
{
    return job->data != NULL;
}

/* Jobs that may go, or that have `status` because of `until_ns` or of everything; in their order.
 * The lock is held. */
static struct bd_job *leave(struct bd_gate *gate, int status, uint64_t until_ns)
{
    uint64_t now_ns = bd_gate_now_ns();
    struct bd_job *left = NULL;
    struct bd_job **to = &left;
    struct bd_job **at = &gate->first_job;
    gate->last_job = NULL;
    while (*at != NULL) {
        struct bd_job *job = *at;
        bool fails = status < 0 && job->deadline_ns <= until_ns;
        if (fails)
            job->status = status;
        if (fails || passes(gate, job->wait_seq, job->wait_durable, is_read(job), now_ns)) {
            *at = job->next;
            job->next = NULL;
            *to = job;
            to = &job->next;
            gate->waiting--;
        } else {
            gate->last_job = job;
            at = &job->next;
        }
    }
    return left;
}

static void end_all(struct bd_job *job)
{
    while (job != NULL) {
        struct bd_job *next = job->next;
        bd_job_end(job);
        job = next;
    }
}

void bd_gate_shut(struct bd_volume *volume)
{
    struct bd_gate *gate = volume->gate;
    bd_lock(&volume->journal->lock);
    bd_lock(&gate->lock);
    atomic_store(&gate->shut, true);
    struct bd_job *left = leave(gate, -ESHUTDOWN, UINT64_MAX);
    pthread_mutex_unlock(&gate->lock);
    pthread_mutex_unlock(&volume->journal->lock);
    end_all(left);
}

static void forget_acked(struct bd_gate *gate)
{
    while (gate->count > 0 && gate->writes[gate->first].seq <= gate->acked) {
        gate->first = (gate->first + 1) % BD_GATE_WRITES;
        gate->count--;
    }
}

void bd_gate_advance(struct bd_gate *gate, uint64_t acked, uint64_t durable)
{
    bd_lock(&gate->lock);
    if (acked > gate->acked)
        gate->acked = acked;
    if (durable > gate->durable)
        gate->durable = durable;
    forget_acked(gate);
    struct bd_job *left = leave(gate, 0, 0);
    pthread_mutex_unlock(&gate->lock);
    end_all(left);
}

void bd_gate_lease(struct bd_gate *gate, uint64_t until_ns)
{
    bd_lock(&gate->lock);
    gate->reads_until_ns = until_ns;
    struct bd_job *left = leave(gate, 0, 0);
    pthread_mutex_unlock(&gate->lock);
    end_all(left);
}

void bd_gate_expire(struct bd_gate *gate)
{
    bd_lock(&gate->lock);
    struct bd_job *left = leave(gate, -EIO, bd_gate_now_ns());
    pthread_mutex_unlock(&gate->lock);
    end_all(left);
}

void bd_gate_note(struct bd_gate *gate, uint64_t seq, uint64_t offset, uint64_t length)
{
    bd_lock(&gate->lock);
    if (gate->count == BD_GATE_WRITES) {
        gate->forgotten = gate->writes[gate->first].seq;
        gate->first = (gate->first + 1) % BD_GATE_WRITES;
        gate->count--;
    }
    gate->writes[(gate->first + gate->count++) % BD_GATE_WRITES] =
        (struct bd_gate_write){.seq = seq, .offset = offset, .end = offset + length};
    pthread_mutex_unlock(&gate->lock);
}

/* As bd_gate_seen. The lock is held. */
static uint64_t seen(const struct bd_gate *gate, uint64_t offset, uint64_t length)
{
    for (uint32_t i = gate->count; i > 0; i--) {
        const struct bd_gate_write *write = &gate->writes[(gate->first + i - 1) % BD_GATE_WRITES];
        if (write->seq > gate->acked && write->offset < offset + length && offset < write->end)
            return write->seq;
    }
    return gate->forgotten > gate->acked ? gate->forgotten : 0;
}

uint64_t bd_gate_seen(struct bd_gate *gate, uint64_t offset, uint64_t length)
{
    bd_lock(&gate->lock);
    uint64_t seq = seen(gate, offset, length);
    pthread_mutex_unlock(&gate->lock);
    return seq;
}

/* The lock is held; whether it is news. */
static bool want(struct bd_gate *gate, uint64_t seq)
{
    if (seq <= gate->wanted)
        return false;
    gate->wanted = seq;
    return true;
}

void bd_gate_want(struct bd_gate *gate, uint64_t seq)
{
    bd_lock(&gate->lock);
    bool news = want(gate, seq);
    pthread_mutex_unlock(&gate->lock);
    if (news)
        (void)!eventfd_write(gate->wake, 1); /* full: then somebody is woken already */
}

static bool is_done(const struct bd_action *action)
{
    return action->state == BD_ACTION_WAIT_SYNC ||
           (action->state == BD_ACTION_DONE && action->status == 0);
}

void bd_gate_judge(struct bd_gate *gate, struct bd_action *actions, int count)
{
    bool news = false;
    bd_lock(&gate->lock);
    uint64_t now_ns = bd_gate_now_ns();
    for (int i = 0; i < count; i++) {
        struct bd_action *action = &actions[i];
        if (!is_done(action) || action->kind == BD_ACTION_NONE)
            continue;
        bool reads = action->kind == BD_ACTION_READ;
        if (reads)
            action->wait_seq = seen(gate, action->offset, action->length);
        action->wait_durable =
            !reads && (gate->strict || action->sync || action->kind == BD_ACTION_FLUSH);
        if (atomic_load(&gate->shut)) {
            /* What was written before may be with the successor, or not: nobody knows. */
            action->status = -ESHUTDOWN;
            action->state = BD_ACTION_DONE;
        } else if (passes(gate, action->wait_seq, action->wait_durable, reads, now_ns)) {
            action->state = BD_ACTION_DONE;
        } else {
            action->state = BD_ACTION_WAIT_ACKS;
            if (action->wait_durable)
                news |= want(gate, action->wait_seq);
        }
    }
    pthread_mutex_unlock(&gate->lock);
    if (news)
        (void)!eventfd_write(gate->wake, 1);
}

bool bd_gate_hold(struct bd_gate *gate, struct bd_job *job)
{
    bool held = false;
    bool news = false;
    bd_lock(&gate->lock);
    uint64_t now_ns = bd_gate_now_ns();
    if (job->status == 0 && atomic_load(&gate->shut))
        job->status = -ESHUTDOWN;
    if (job->status == 0) {
        if (is_read(job) && job->wait_seq == 0)
            job->wait_seq = seen(gate, job->offset, job->length);
        held = !passes(gate, job->wait_seq, job->wait_durable, is_read(job), now_ns);
    }
    if (held) {
        job->deadline_ns = now_ns + gate->timeout_ns;
        job->next = NULL;
        if (gate->last_job == NULL)
            gate->first_job = job;
        else
            gate->last_job->next = job;
        gate->last_job = job;
        gate->waiting++;
        if (job->wait_durable)
            news = want(gate, job->wait_seq);
    }
    pthread_mutex_unlock(&gate->lock);
    if (news)
        (void)!eventfd_write(gate->wake, 1);
    return held;
}
