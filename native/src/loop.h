/* The request loop: a few threads that serve clients' sockets without the interpreter.
 *
 * Each client belongs to one thread (a worker), which waits for its socket with epoll; all clients
 * of a worker have their turns in a circle, a bounded piece of work each. Beside the workers there
 * are threads for what takes a while: one that syncs (one fdatasync for all who wait, on any
 * connection), and some that read what is not in memory.
 *
 * Python hears of its clients through a file descriptor (bd_loop_fd) that becomes readable when any
 * of them has mail, has stopped, or has begun or ceased to be behind with its output. */
#ifndef BLOCKD_LOOP_H
#define BLOCKD_LOOP_H

#include "client.h"
#include "polling.h"

enum {
    BD_BATCH = 128,           /* requests of one round */
    BD_ROUND_BYTES = 1 << 20, /* that one round reads; a longer request is a round of its own */
    BD_ARENA_BYTES = BD_ROUND_BYTES + (64 << 10),
    BD_SPARE_BYTES = 4 << 20, /* the largest input buffer that is kept for the next client */
    BD_MAX_WORKERS = 64,
    BD_MAX_READERS = 64,
};

struct bd_action;
struct epoll_event;

struct bd_worker {
    struct bd_loop *loop;
    pthread_t thread;
    int epoll;
    int wake; /* eventfd */

    /* The thread's own. */
    struct bd_arena *arena; /* replies are made here */
    uint8_t *spare;         /* an input buffer that nobody uses, or NULL */
    size_t spare_capacity;
    struct bd_client *clients;
    struct bd_client *first_turn;
    struct bd_client *last_turn;
    uint64_t wake_ns; /* the earliest held_until_ns and due_ns of any client, or earlier */
    struct bd_poll poll;
    bool awake;             /* counted in loop->awake */
    uint64_t wait_again_ns; /* monotonic: this thread waits for no disk before */
    struct {
        unsigned requests;
        uint64_t payload;
        bool jobs;
        bool others;                     /* more than one client, or another than the last time */
    } served;                            /* since it woke up */
    const struct bd_client *last_served; /* compared only: it may be gone */

    pthread_mutex_t lock; /* after a client's */
    struct bd_client *attention;
    bool ending;
    /* Under the loop's lock: */
    unsigned count;      /* clients */
    uint64_t waiting_ns; /* monotonic: since then it waits for the disk, on its own thread; or 0 */
};

struct bd_loop {
    struct bd_worker workers[BD_MAX_WORKERS];
    unsigned worker_count;
    struct bd_jobs *jobs;
    int event; /* readable: there is news */
    unsigned pollers;
    atomic_uint awake;     /* workers that do not sleep */
    uint64_t long_wait_ns; /* that no worker waits for again; only tests change it */

    pthread_mutex_t lock; /* after a client's */
    struct bd_client *first_told;
    struct bd_client *last_told;
};

/* `workers` threads serve, `readers` wait for the disk. While at most `pollers` workers are awake,
 * each may keep its core busy for a moment where that saves sleeping. NULL with errno. */
struct bd_loop *bd_loop_new(unsigned workers, unsigned readers, unsigned pollers);

/* Cut all clients and end all threads. What there is of news stays; adding is over. */
void bd_loop_end(struct bd_loop *loop);

/* After bd_loop_end. */
void bd_loop_free(struct bd_loop *loop);

/* Readable when bd_loop_news has something. */
int bd_loop_fd(const struct bd_loop *loop);

/* The next client that has news, with a reference for the caller; NULL when there is none. */
struct bd_client *bd_loop_news(struct bd_loop *loop);

/* Serve a client from now on, on the worker with the fewest of those that have not been waiting for
 * the disk for long. 0 or -errno, and then it is not served. */
int bd_loop_add(struct bd_loop *loop, struct bd_client *client);

/* For protocols. */

/* Between the loop's own files. */
void *bd_worker_run(void *worker);
/* epoll_wait, perhaps without sleeping. */
int bd_worker_wait(struct bd_worker *worker, struct epoll_event *events, int room, int timeout);
/* The client's lock is held: it has had a round. */
void bd_worker_turned_to(struct bd_worker *worker, const struct bd_client *client);
struct bd_jobs *bd_loop_jobs(struct bd_loop *loop);
void bd_loop_left(struct bd_worker *worker);
/* On the worker's thread, which is about to wait for the disk. False when it has more than one
 * client, those included that it has not heard of yet. Else bd_loop_waited has to follow. */
bool bd_loop_may_wait(struct bd_worker *worker, uint64_t now_ns);
void bd_loop_waited(struct bd_worker *worker);

/* The client's lock is held: what it waited for may have come. */
void bd_loop_relieve(struct bd_client *client);

/* An arena for a round whose replies take `bytes`: the worker's own, which nobody else refers to,
 * or a larger one. The caller releases it. NULL when memory runs out. */
struct bd_arena *bd_worker_arena(struct bd_worker *worker, size_t bytes);

/* A round served so many requests, with so many bytes read and written. On the loop's thread. */
void bd_worker_served(struct bd_worker *worker, unsigned requests, uint64_t payload);

/* Make durable what was appended to the client's volume, on the loop's thread. False: another sync
 * is under way, others are served here, or it did not work; then a job is to see to it, and tells
 * what is wrong. */
bool bd_worker_sync(struct bd_worker *worker, struct bd_client *client);

/* Read what the action could not have without the disk, on the loop's thread. False: others are
 * served here, or it did not work, and a job is to see to it. */
bool bd_worker_read(struct bd_worker *worker, struct bd_client *client,
                    const struct bd_action *action);

/* Something was written: when the journal is nearly full, the client's next round has to wait. On
 * the loop's thread, without the lock. */
void bd_worker_slow_down(struct bd_client *client);

/* Have a job done on another thread: it refers to the client, and counts in client->jobs. It is
 * freed after `finish`. The client's lock is held. False when memory or the bounds refuse it; then
 * nothing has happened. READ gets its buffer here, `data_at` bytes before its data. */
bool bd_loop_begin(struct bd_client *client, const struct bd_job *job);

enum bd_waited {
    BD_WAITED_BEGUN,
    BD_WAITED_PASSED,  /* it may be answered now */
    BD_WAITED_REFUSED, /* memory, the bounds, or the gate is shut; nothing has happened */
};

/* Have a job that is done wait for its volume's gate, with a copy of `data`, which a read returns
 * (else NULL). It is freed after `finish`. The client's lock is held. */
enum bd_waited bd_loop_wait(struct bd_client *client, const struct bd_job *job,
                            const uint8_t *data);

/* The clients' lock is held: Python is to look at the client. */
void bd_loop_tell(struct bd_client *client);

/* The client's lock is held: its worker is to look at it. */
void bd_loop_attend(struct bd_client *client);

/* The client's lock is held: what epoll is to watch its socket for may have changed. */
void bd_loop_watch(struct bd_client *client);

/* CLOCK_REALTIME, for records of the journal. */
uint64_t bd_loop_now_ns(void);

/* CLOCK_MONOTONIC, for everything else. */
uint64_t bd_loop_monotonic_ns(void);

/* The client's lock is held. Requests that took equally long have been answered, here. */
void bd_loop_served(struct bd_client *client, struct bd_account *account,
                    const struct bd_tally *tally, uint64_t elapsed_ns);

#endif
