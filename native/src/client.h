/* One client's socket while the C loop serves it.
 *
 * The handshake and everything rare are the Python engine's. Once a client asks for nothing but
 * reads and writes, its engine hands the socket over (loop.h): from then on a thread of the loop
 * receives, has the client's protocol serve all requests that are complete, and sends, without the
 * interpreter. What a protocol does not serve comes back to Python in one of two ways:
 *
 *   mail   the bytes of single requests, which the engine takes as if they came from the socket,
 *          while the loop goes on with the others; what the engine answers it sends through
 *          bd_client_send. For protocols whose replies may come in any order.
 *   stop   the socket, with the bytes that were received and not served, and those that were
 *          not sent yet. The engine may hand it over again later.
 *
 * Who may touch what: `input`, `need` and whatever the protocol keeps for parsing belong to the
 * client's loop thread; everything below `lock` is under it. Jobs (a sync, a read that waits for
 * the disk) end on other threads, which call the protocol's `finish` with the lock held.
 *
 * Memory of one client: its input, one request and a bit; its output, BD_OUTPUT_HIGH and what one
 * round of serving adds; its mail, BD_MAIL_HIGH and one request; its jobs, BD_JOB_BYTES. */
#ifndef BLOCKD_CLIENT_H
#define BLOCKD_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "account.h"
#include "limit.h"
#include "view.h"
#include "volume.h"

enum {
    BD_OUTPUT_HIGH = 4 << 20, /* unsent bytes beyond which a client's requests wait */
    BD_OUTPUT_LOW = 1 << 20,
    BD_MAIL_HIGH = 256 << 10, /* mail that Python has not taken, beyond which requests wait */
    BD_JOB_BYTES = 64 << 20,  /* of reads that wait for the disk */
    BD_MAX_JOBS = 1024,
    BD_INPUT_BYTES = 512 << 10, /* room for one receive */
    BD_SENT_PIECES = 1024,      /* of one call of bd_client_send */
    BD_ARRIVALS = 8,            /* receives that are told apart */
};

struct bd_client;
struct bd_job;
struct bd_loop;
struct bd_worker;

/* What is left to do for a client after a round of serving. */
enum bd_served {
    BD_SERVED_ALL,  /* what is left of the input is not complete: `need` bytes of it are wanted */
    BD_SERVED_SOME, /* there is more; others have their turn first */
    BD_SERVED_BLOCKED, /* output, mail or jobs have to become less first */
    BD_SERVED_STOP,    /* the next request is for Python, and so is the socket */
};

/* Memory that replies are made in, shared by a worker and the queues of unsent bytes. */
struct bd_arena {
    atomic_uint refs;
    size_t capacity;
    uint8_t data[];
};

struct bd_arena *bd_arena_new(size_t capacity);
void bd_arena_release(struct bd_arena *arena);

struct bd_protocol {
    /* Serve a bounded number of the complete requests at the start of the input, which is not
     * empty. On the loop's thread, without the lock. */
    enum bd_served (*serve)(struct bd_client *client, struct bd_worker *worker);
    /* A job has ended with job->status: answer it. On any thread, with the lock; not for a client
     * that is cut. The job and its data are freed afterwards, unless it took `job->data`. */
    void (*finish)(struct bd_client *client, struct bd_job *job);
    /* Free what the protocol keeps; the client itself is freed by who calls. */
    void (*destroy)(struct bd_client *client);
};

/* Bytes that wait to be sent. */
struct bd_unsent {
    struct bd_unsent *next;
    struct bd_arena *arena; /* that `data` lies in, ... */
    struct bd_view *view;   /* ... or this pins it; the next bytes of its pipes, unless `copied` */
    const uint8_t *data;
    size_t length;
};

enum bd_job_kind {
    BD_JOB_SYNC, /* make everything that is in the journal durable */
    BD_JOB_READ, /* read, waiting for the disk */
    BD_JOB_ACKS, /* done; wait until it may be answered (gate.h) */
};

/* What takes a while and is done on another thread. */
struct bd_job {
    struct bd_job *next;
    struct bd_client *client;   /* referenced */
    struct bd_volume *volume;   /* NULL: the client's */
    struct bd_account *account; /* where it is under way; or NULL */
    enum bd_job_kind kind;
    int status;
    uint64_t offset;
    uint64_t length;
    uint64_t wait_seq; /* of a volume with a gate: what other nodes have to have, ... */
    bool wait_durable; /* ... on their disks */
    uint64_t deadline_ns;
    struct bd_arena *data; /* of reads: `length` bytes at `data_at`; whoever takes it sets NULL */
    size_t data_at;        /* room before it for a header */
    /* The protocol's own: what it needs to answer, or to hand the request on. */
    uint64_t cookie;
    uint64_t arrived_ns;
    uint32_t flags;
    bool paid; /* limits have let it go on */
    uint8_t header[64];
};

struct bd_client {
    const struct bd_protocol *protocol;
    struct bd_volume *volume;
    struct bd_account *account; /* where requests count, for protocols with one volume; or NULL */
    struct bd_limit *limit;     /* what holds these back; or NULL */
    struct bd_loop *loop;
    struct bd_worker *worker;
    void *owner; /* the glue's */
    int fd;      /* ours: a duplicate */
    atomic_uint refs;

    /* The loop thread's. */
    struct {
        uint8_t *data; /* NULL: nothing is kept */
        size_t capacity;
        size_t start; /* not served yet: [start, end) */
        size_t end;
    } input;
    struct {
        struct {
            uint64_t until;   /* bytes that had come to the input, ever */
            uint64_t ns;      /* monotonic */
        } times[BD_ARRIVALS]; /* a ring, oldest first */
        unsigned first;
        unsigned count;
        uint64_t total; /* bytes that have come to the input, ever */
    } arrivals;
    size_t need; /* bytes of input that the next request takes in all; 0: not known */
    struct {
        uint8_t *at; /* not NULL: what comes next lands here, and what is behind it in `input` */
        size_t left; /* 0: it is there, and the protocol is to set `at` to NULL */
    } direct;
    size_t most; /* bytes of the next request that a receive takes at the most; 0: what fits in */
    /* Both monotonic; 0: not so. */
    uint64_t held_until_ns; /* nothing is received or served: the journal is nearly full, or the
                               volume's limits are reached */
    uint64_t due_ns;        /* when to serve again, whether or not more has come until then */
    struct bd_client *next; /* of its worker's clients */
    struct bd_client *previous;
    struct bd_client *next_turn; /* of those with complete requests left */
    bool has_turn;
    struct bd_reservation reservation; /* with `limit`, of the request at the start of the input */

    pthread_mutex_t lock;
    bool blocked;   /* the last round ended BD_SERVED_BLOCKED, or the client is held */
    bool stopping;  /* nothing is received or served any more; jobs end */
    bool cut;       /* nothing is sent either */
    bool stopped;   /* out of the loop: no thread of it knows the client */
    bool asked;     /* Python asked for the stop */
    bool stalled;   /* output went above HIGH and has not come below LOW since */
    bool told;      /* on the list of those that have news for Python */
    bool attention; /* on the worker's list of those to look at */
    bool registered;
    bool gathering;  /* what is to be sent waits for more: bd_client_gather */
    uint32_t events; /* that epoll watches for */
    struct bd_unsent *first_unsent;
    struct bd_unsent *last_unsent;
    size_t unsent;
    uint8_t *mail;
    size_t mail_length;
    size_t mail_capacity;
    struct bd_tally paid; /* of the mail: requests that limits have let go on */
    unsigned jobs;
    uint64_t job_bytes;
    struct bd_tally counters; /* of what was served here, since the hand-over */
    struct bd_client *next_told;
    struct bd_client *next_attention;
};

/* Fill in what the loop needs; `fd` belongs to the client on success. `input` (copied): bytes that
 * were received before. 0 or -ENOMEM. */
int bd_client_init(struct bd_client *client, const struct bd_protocol *protocol,
                   struct bd_volume *volume, int fd, const uint8_t *input, size_t input_length);
void bd_client_retain(struct bd_client *client);
void bd_client_release(struct bd_client *client);

/* On the loop's thread: `bytes` more are in the input, or as many as none where data landed past it
 * (`direct`). When a receive is one too many to be told apart, it counts as the one before. */
void bd_client_arrived(struct bd_client *client, size_t bytes, uint64_t now_ns);

/* When the request that ends at `end` of the input was whole; those before it are forgotten. On the
 * loop's thread. */
uint64_t bd_client_arrival_ns(struct bd_client *client, size_t end);

/* All with the lock held: */

/* Send, or keep what the socket does not take now. Pieces that lie in `arena` (may be NULL) are
 * kept there, with a reference, when they are long; others are copied. At most BD_SENT_PIECES. A
 * socket that fails, and memory that runs out, cut the client. */
void bd_client_send(struct bd_client *client, struct iovec *pieces, int count,
                    struct bd_arena *arena);

/* The same, and then what is in `view`, pages of which go as they are: it keeps references to the
 * view for as long as any are unsent. */
void bd_client_send_view(struct bd_client *client, struct iovec *pieces, int count,
                         struct bd_arena *arena, struct bd_view *view);

/* Until bd_client_send_gathered nothing is sent, and what is to be sent is kept, as long as that is
 * called with the lock still held: several replies go by one system call. */
void bd_client_gather(struct bd_client *client);
void bd_client_send_gathered(struct bd_client *client);

/* Add a request's bytes to the mail for Python. Memory that runs out cuts the client. */
void bd_client_mail(struct bd_client *client, const uint8_t *data, size_t length);

/* Of the mail that was added last, a request has been let go on by the limits: whoever gets it does
 * not ask again. */
void bd_client_paid(struct bd_client *client, enum bd_op op, uint64_t length);

/* Whether output, mail and jobs leave room for another round. */
bool bd_client_has_room(const struct bd_client *client);

/* Receive and serve nothing more; when all jobs have ended, the client leaves the loop. */
void bd_client_stop(struct bd_client *client);

/* The same, and what is unsent is thrown away. */
void bd_client_cut(struct bd_client *client);

/* Send what is kept, as far as the socket takes it. */
void bd_client_flush(struct bd_client *client);

#endif
