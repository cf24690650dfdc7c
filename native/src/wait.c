/* How a worker waits: when it looks again instead of sleeping is polling.h's to say. */
#include <string.h>
#include <sys/epoll.h>

#include "loop.h"

void bd_worker_turned_to(struct bd_worker *worker, const struct bd_client *client)
{
    worker->served.jobs |= client->jobs > 0;
    worker->served.others |= client != worker->last_served;
    worker->last_served = client;
}

void bd_worker_served(struct bd_worker *worker, unsigned requests, uint64_t payload)
{
    worker->served.requests += requests;
    worker->served.payload += payload;
}

/* Workers that are awake; the count is a guess that may be a moment old. */

static void set_awake(struct bd_worker *worker, bool awake)
{
    if (worker->awake == awake)
        return;
    worker->awake = awake;
    if (awake)
        atomic_fetch_add_explicit(&worker->loop->awake, 1, memory_order_relaxed);
    else
        atomic_fetch_sub_explicit(&worker->loop->awake, 1, memory_order_relaxed);
}

static bool has_core(const struct bd_worker *worker)
{
    return atomic_load_explicit(&worker->loop->awake, memory_order_relaxed) <=
           worker->loop->pollers;
}

/* Look without sleeping, while that is worth it. What was found, of which there may be nothing. */
static int look(struct bd_worker *worker, struct epoll_event *events, int room)
{
    uint64_t start = bd_loop_monotonic_ns();
    if (!has_core(worker) || !bd_poll_worth(&worker->poll, start))
        return 0;
    uint64_t now = start;
    int count = 0;
    enum bd_poll_end end = BD_POLL_NOTHING;
    while (end == BD_POLL_NOTHING && now - start < BD_POLL_WINDOW_NS && has_core(worker)) {
        uint64_t before = now;
        count = epoll_wait(worker->epoll, events, room, 0);
        now = bd_loop_monotonic_ns();
        if (now - before > BD_POLL_AWAY_NS)
            end = BD_POLL_AWAY;
        else if (count != 0)
            end = BD_POLL_FOUND;
    }
    bd_poll_ended(&worker->poll, end, now);
    return count;
}

int bd_worker_wait(struct bd_worker *worker, struct epoll_event *events, int room, int timeout)
{
    int count = 0;
    if (worker->served.requests > 0) {
        bd_poll_served(&worker->poll, worker->served.requests, worker->served.payload,
                       !worker->served.others);
        if (timeout != 0 && !worker->served.jobs)
            count = look(worker, events, room);
        memset(&worker->served, 0, sizeof worker->served);
    }
    if (count == 0) {
        set_awake(worker, timeout == 0);
        count = epoll_wait(worker->epoll, events, room, timeout);
        set_awake(worker, true);
    }
    return count;
}
