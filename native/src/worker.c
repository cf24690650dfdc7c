/* The thread of a worker: waits for sockets, receives, has protocols serve, and lets clients leave.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>

#include "batch.h"
#include "lone.h"
#include "loop.h"
#include "view.h"

enum { EVENTS = 64 };

uint64_t bd_loop_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

struct bd_arena *bd_worker_arena(struct bd_worker *worker, size_t bytes)
{
    struct bd_arena *arena = worker->arena;
    if (arena != NULL && (atomic_load(&arena->refs) > 1 || arena->capacity < bytes)) {
        bd_arena_release(arena); /* bytes of it wait in a client's queue, or it is too small */
        arena = NULL;
    }
    if (arena == NULL) {
        arena = bd_arena_new(bytes > BD_ARENA_BYTES ? bytes : BD_ARENA_BYTES);
        worker->arena = arena;
        if (arena == NULL)
            return NULL;
    }
    atomic_fetch_add(&arena->refs, 1);
    return arena;
}

void bd_worker_slow_down(struct bd_client *client)
{
    uint64_t delay_ns = atomic_load(&client->volume->journal->delay_ns);
    if (delay_ns == 0)
        return;
    uint64_t until_ns = bd_loop_monotonic_ns() + delay_ns;
    if (until_ns > client->held_until_ns) /* a limit may hold it already */
        client->held_until_ns = until_ns;
}

/* Whether this thread may wait for the disk, for that client; since when in *start. If so, end_wait
 * has to follow. */
static bool begin_wait(struct bd_worker *worker, const struct bd_client *client, uint64_t *start)
{
    if (worker->clients != client || client->next != NULL)
        return false;
    *start = bd_loop_monotonic_ns();
    return *start >= worker->wait_again_ns && bd_loop_may_wait(worker, *start);
}

static void end_wait(struct bd_worker *worker, uint64_t start)
{
    bd_loop_waited(worker);
    uint64_t now = bd_loop_monotonic_ns();
    worker->wait_again_ns = bd_lone_again_ns(now - start, worker->loop->long_wait_ns, now);
}

bool bd_worker_sync(struct bd_worker *worker, struct bd_client *client)
{
    uint64_t start;
    if (!begin_wait(worker, client, &start))
        return false;
    int error = bd_journal_try_sync(client->volume->journal);
    end_wait(worker, start);
    return error == 0;
}

bool bd_worker_read(struct bd_worker *worker, struct bd_client *client,
                    const struct bd_action *action)
{
    uint64_t start;
    struct bd_read_fault fault;
    if (!begin_wait(worker, client, &start))
        return false;
    int error =
        bd_volume_read(client->volume, action->offset, action->length, action->data, false, &fault);
    end_wait(worker, start);
    return error == 0;
}

void bd_loop_attend(struct bd_client *client)
{
    struct bd_worker *worker = client->worker;
    if (client->attention || worker == NULL)
        return;
    client->attention = true;
    bd_client_retain(client);
    pthread_mutex_lock(&worker->lock);
    bool first = worker->attention == NULL;
    client->next_attention = worker->attention;
    worker->attention = client;
    pthread_mutex_unlock(&worker->lock);
    if (first)
        eventfd_write(worker->wake, 1);
}

void bd_loop_relieve(struct bd_client *client)
{
    bool may_leave = client->stopping && client->jobs == 0;
    bool may_go_on = client->blocked && client->unsent <= BD_OUTPUT_LOW;
    if (may_leave || (may_go_on && bd_client_has_room(client)))
        bd_loop_attend(client);
}

void bd_loop_watch(struct bd_client *client)
{
    if (!client->registered)
        return;
    uint32_t events = 0;
    if (!client->stopping && !client->blocked)
        events |= EPOLLIN;
    if (client->first_unsent != NULL && !client->cut && !client->stopping)
        events |= EPOLLOUT;
    if (events == client->events)
        return;
    client->events = events;
    struct epoll_event event = {.events = events, .data.ptr = client};
    if (epoll_ctl(client->worker->epoll, EPOLL_CTL_MOD, client->fd, &event) < 0)
        bd_client_cut(client);
}

/* Turns: clients that have complete requests left. */

static void give_turn(struct bd_worker *worker, struct bd_client *client)
{
    if (client->has_turn)
        return;
    client->has_turn = true;
    client->next_turn = NULL;
    if (worker->first_turn == NULL)
        worker->first_turn = client;
    else
        worker->last_turn->next_turn = client;
    worker->last_turn = client;
}

static struct bd_client *next_turn(struct bd_worker *worker)
{
    struct bd_client *client = worker->first_turn;
    if (client != NULL) {
        worker->first_turn = client->next_turn;
        client->has_turn = false;
    }
    return client;
}

static void forget_turn(struct bd_worker *worker, struct bd_client *client)
{
    if (!client->has_turn)
        return;
    struct bd_client *before = NULL;
    struct bd_client *at = worker->first_turn;
    while (at != client) {
        before = at;
        at = at->next_turn;
    }
    if (before == NULL)
        worker->first_turn = client->next_turn;
    else
        before->next_turn = client->next_turn;
    if (worker->last_turn == client)
        worker->last_turn = before;
    client->has_turn = false;
}

/* Input. */

static void give_back_input(struct bd_worker *worker, struct bd_client *client)
{
    if (client->input.capacity > worker->spare_capacity &&
        client->input.capacity <= BD_SPARE_BYTES) {
        free(worker->spare);
        worker->spare = client->input.data;
        worker->spare_capacity = client->input.capacity;
    } else {
        free(client->input.data);
    }
    memset(&client->input, 0, sizeof client->input);
}

/* Room for what comes next, all of the request that has begun included. */
static bool make_room(struct bd_worker *worker, struct bd_client *client)
{
    size_t have = client->input.end - client->input.start;
    size_t wanted = client->need > BD_INPUT_BYTES ? client->need : BD_INPUT_BYTES;
    if (client->input.data == NULL && worker->spare != NULL) {
        client->input.data = worker->spare;
        client->input.capacity = worker->spare_capacity;
        worker->spare = NULL;
        worker->spare_capacity = 0;
    }
    if (client->input.data == NULL || client->input.capacity < wanted) {
        uint8_t *data = malloc(wanted);
        if (data == NULL)
            return false;
        if (have > 0)
            memcpy(data, client->input.data + client->input.start, have);
        free(client->input.data);
        client->input.data = data;
        client->input.capacity = wanted;
    } else if (client->input.start > 0 &&
               (client->input.end == client->input.capacity ||
                client->need > client->input.capacity - client->input.start)) {
        memmove(client->input.data, client->input.data + client->input.start, have);
    } else {
        return true;
    }
    client->input.start = 0;
    client->input.end = have;
    return true;
}

static void wake_at(struct bd_worker *worker, uint64_t ns)
{
    if (ns != 0 && ns < worker->wake_ns)
        worker->wake_ns = ns;
}

/* One round of serving, and what follows from it. */
static void serve(struct bd_worker *worker, struct bd_client *client)
{
    enum bd_served served = BD_SERVED_ALL;
    bool was_due = client->due_ns != 0;
    client->due_ns = 0;
    if (client->input.start < client->input.end || client->direct.at != NULL || was_due)
        served = client->protocol->serve(client, worker);
    if (client->input.data != NULL && client->input.start == client->input.end)
        give_back_input(worker, client);
    bool held = client->held_until_ns != 0;
    wake_at(worker, client->held_until_ns);
    wake_at(worker, client->due_ns);
    pthread_mutex_lock(&client->lock);
    bool blocked = held || (served == BD_SERVED_BLOCKED && !bd_client_has_room(client));
    bd_worker_turned_to(worker, client);
    if (served == BD_SERVED_STOP)
        bd_client_stop(client);
    if (blocked != client->blocked) {
        client->blocked = blocked;
        bd_loop_watch(client);
    }
    pthread_mutex_unlock(&client->lock);
    if (!blocked && (served == BD_SERVED_SOME || served == BD_SERVED_BLOCKED))
        give_turn(worker, client);
}

/* Receive into the input, behind what the protocol wants elsewhere. */
static ssize_t receive_pieces(struct bd_client *client, size_t room)
{
    struct iovec pieces[2] = {{client->direct.at, client->direct.left},
                              {client->input.data + client->input.end, room}};
    bool direct = client->direct.at != NULL;
    struct msghdr message = {.msg_iov = direct ? pieces : pieces + 1, .msg_iovlen = direct ? 2 : 1};
    ssize_t count = recvmsg(client->fd, &message, MSG_DONTWAIT);
    if (count > 0) {
        size_t landed = (size_t)count < client->direct.left ? (size_t)count : client->direct.left;
        if (direct)
            client->direct.at += landed;
        client->direct.left -= landed;
        client->input.end += (size_t)count - landed;
        bd_client_arrived(client, (size_t)count - landed, bd_loop_monotonic_ns());
    }
    return count;
}

static void receive(struct bd_worker *worker, struct bd_client *client)
{
    ssize_t count = -1;
    if (make_room(worker, client)) {
        size_t room = client->input.capacity - client->input.end;
        if (room == 0)
            return; /* full of complete requests, which have their turns */
        size_t have = client->input.end - client->input.start;
        if (client->need > BD_INPUT_BYTES)
            room = client->need - have; /* nothing behind a long one: it would have to be moved */
        size_t wanted = client->need > have ? client->need - have : 0;
        if (client->most != 0 && client->most < room && wanted < room)
            room = client->most > wanted ? client->most : wanted;
        count = receive_pieces(client, room);
        if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
            if (have == 0)
                give_back_input(worker, client);
            return;
        }
    }
    if (count > 0) {
        if (client->direct.left == 0 && client->input.end - client->input.start >= client->need)
            serve(worker, client);
        return;
    }
    pthread_mutex_lock(&client->lock);
    if (count == 0)
        bd_client_stop(client); /* the end of the stream is Python's to find */
    else
        bd_client_cut(client);
    pthread_mutex_unlock(&client->lock);
}

static void handle(struct bd_worker *worker, struct bd_client *client, uint32_t events)
{
    pthread_mutex_lock(&client->lock);
    if (events & EPOLLOUT) {
        bd_client_flush(client);
        bd_loop_relieve(client);
    }
    bool wanted = !client->stopping && !client->blocked;
    if (!wanted && (events & (EPOLLERR | EPOLLHUP)) && !(events & EPOLLOUT)) {
        bd_client_cut(client);
        epoll_ctl(worker->epoll, EPOLL_CTL_DEL, client->fd, NULL); /* it would tell this for ever */
    }
    pthread_mutex_unlock(&client->lock);
    if (wanted && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
        receive(worker, client);
}

/* Coming and going. */

static void enter(struct bd_worker *worker, struct bd_client *client)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};
    client->events = event.events;
    client->next = worker->clients;
    if (worker->clients != NULL)
        worker->clients->previous = client;
    else
        bd_view_enter();
    worker->clients = client;
    client->registered = true;
    bd_client_arrived(client, client->input.end - client->input.start, bd_loop_monotonic_ns());
    if (epoll_ctl(worker->epoll, EPOLL_CTL_ADD, client->fd, &event) < 0)
        bd_client_cut(client);
}

/* Nobody is served here: what was kept for the next round goes. */
static void give_back_buffers(struct bd_worker *worker)
{
    free(worker->spare);
    worker->spare = NULL;
    worker->spare_capacity = 0;
    bd_arena_release(worker->arena);
    worker->arena = NULL;
    bd_view_leave();
}

/* The lock is held. The worker's reference is the caller's to release. */
static void leave(struct bd_worker *worker, struct bd_client *client)
{
    epoll_ctl(worker->epoll, EPOLL_CTL_DEL, client->fd, NULL);
    client->registered = false;
    client->stopped = true;
    forget_turn(worker, client);
    client->held_until_ns = client->due_ns = 0;
    bd_limit_give_up(client->limit, &client->reservation);
    if (client->previous != NULL)
        client->previous->next = client->next;
    else
        worker->clients = client->next;
    if (client->next != NULL)
        client->next->previous = client->previous;
    if (worker->clients == NULL)
        give_back_buffers(worker);
    bd_loop_left(worker);
    bd_loop_tell(client);
}

static void attend(struct bd_worker *worker, struct bd_client *client)
{
    pthread_mutex_lock(&client->lock);
    client->attention = false;
    bool go_on = false;
    bool gone = false;
    if (!client->stopped) {
        if (!client->registered)
            enter(worker, client);
        if (client->stopping && client->jobs == 0) {
            leave(worker, client);
            gone = true;
        } else {
            bd_loop_watch(client);
            go_on = !client->stopping && client->held_until_ns == 0;
        }
    }
    pthread_mutex_unlock(&client->lock);
    if (go_on)
        serve(worker, client);
    if (gone)
        bd_client_release(client); /* the worker's own reference */
    bd_client_release(client);     /* that of the list */
}

static void attend_all(struct bd_worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    struct bd_client *client = worker->attention;
    worker->attention = NULL;
    pthread_mutex_unlock(&worker->lock);
    while (client != NULL) {
        struct bd_client *next = client->next_attention;
        attend(worker, client);
        client = next;
    }
}

/* Let a client go on whose time has come. */
static void go_on(struct bd_worker *worker, struct bd_client *client)
{
    client->held_until_ns = 0;
    pthread_mutex_lock(&client->lock);
    bool stopping = client->stopping;
    pthread_mutex_unlock(&client->lock);
    if (!stopping)
        serve(worker, client);
}

/* The same for all of them, when that of any has come; the milliseconds until the next one's, or
 * -1. */
static int go_on_held(struct bd_worker *worker)
{
    if (worker->wake_ns == UINT64_MAX)
        return -1;
    uint64_t now = bd_loop_monotonic_ns();
    if (worker->wake_ns <= now) {
        worker->wake_ns = UINT64_MAX;
        struct bd_client *client = worker->clients;
        while (client != NULL) {
            struct bd_client *following = client->next;
            uint64_t held = client->held_until_ns;
            uint64_t due = client->due_ns;
            if (held != 0 ? held <= now : due != 0 && due <= now) {
                go_on(worker, client);
            } else {
                wake_at(worker, held);
                wake_at(worker, due);
            }
            client = following;
        }
    }
    if (worker->wake_ns == UINT64_MAX)
        return -1;
    return worker->wake_ns <= now ? 0 : (int)((worker->wake_ns - now) / 1000000 + 1);
}

static void take_turns(struct bd_worker *worker)
{
    struct bd_client *last = worker->last_turn;
    struct bd_client *client;
    while (worker->first_turn != NULL) {
        client = next_turn(worker);
        bool was_last = client == last;
        pthread_mutex_lock(&client->lock);
        bool stopping = client->stopping;
        pthread_mutex_unlock(&client->lock);
        if (!stopping && client->held_until_ns == 0)
            serve(worker, client);
        if (was_last)
            break;
    }
}

static void cut_all(struct bd_worker *worker)
{
    for (struct bd_client *client = worker->clients; client != NULL; client = client->next) {
        pthread_mutex_lock(&client->lock);
        bd_client_cut(client);
        pthread_mutex_unlock(&client->lock);
    }
}

void *bd_worker_run(void *argument)
{
    struct bd_worker *worker = argument;
    struct epoll_event events[EVENTS];
    bool ending = false;
    for (;;) {
        int timeout = go_on_held(worker);
        if (worker->first_turn != NULL)
            timeout = 0;
        int count = bd_worker_wait(worker, events, EVENTS, timeout);
        bool woken = false;
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == worker)
                woken = true;
            else
                handle(worker, events[i].data.ptr, events[i].events);
        }
        if (woken) {
            eventfd_t ignored;
            eventfd_read(worker->wake, &ignored);
            attend_all(worker);
            pthread_mutex_lock(&worker->lock);
            ending = worker->ending;
            pthread_mutex_unlock(&worker->lock);
        }
        take_turns(worker);
        if (ending) {
            cut_all(worker);
            pthread_mutex_lock(&worker->lock);
            bool expected = worker->attention != NULL;
            pthread_mutex_unlock(&worker->lock);
            if (worker->clients == NULL && !expected)
                return NULL;
        }
    }
}
