/* A client that asks for one thing at a time, and syncs: its flushes are synced by the thread that
 * serves it, instead of being handed over to the one that syncs for all. And one that reads like
 * that: what is not in memory is read by the thread that serves it, for the same reasons and with
 * the same bounds.
 *
 * A database's log is such a client: a write, a flush, and nothing until both are answered. Handing
 * over wakes two threads, each of which takes as long as a fast disk takes to sync, and the worker
 * has nothing else to do meanwhile. So, for a client that is the worker's only one:
 *
 *   here    a flush that came alone, after others like it (BD_LONE_ROW), is synced at once. Not
 *           while another sync is under way or waited for: those who wait are served by one more,
 *           all together (group commit).
 *   ahead   where each write was followed by a flush (BD_LONE_PAIRS times in a row), the next one
 *           is synced when it has been answered, before its flush has come: the client's way to it
 *           is the disk's time. The flush then finds nothing to do. When no flush follows, one sync
 *           was done in vain, and the row begins anew.
 *
 * What must not come of it:
 *   - A client with more under way would have it wait for the disk. Any request of another kind, or
 *     two that come together, end the row, and so does whatever has arrived before a flush was
 *     answered: who waits for that answer has sent nothing.
 *   - Who comes to the worker meanwhile waits for the disk. So after a sync that took long there is
 *     none here for BD_LONE_PAUSE times as long; and while one takes long, as when the disk is
 *     stuck, new clients go to other workers.
 *
 * A flush is answered when what was appended before it is durable, as ever: only who calls the sync
 * is different. This is only the decision; one client's, on its worker's thread. */
#ifndef BLOCKD_LONE_H
#define BLOCKD_LONE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    BD_LONE_ROW = 16,  /* single requests, before a flush is synced here, or a read waited for */
    BD_LONE_PAIRS = 8, /* writes with a flush behind each, before one is synced ahead */
    BD_LONE_SMALL = 64 << 10, /* bytes of a write that make it a long one */
    BD_LONE_LONG_NS = 2000000,
    BD_LONE_PAUSE = 50, /* times what a long sync took */
};

struct bd_lone {
    unsigned row;   /* single writes and flushes */
    unsigned reads; /* single reads */
    unsigned pairs;
    bool wrote; /* the last request was a write */
};

enum bd_lone_kind {
    BD_LONE_WRITE, /* to be durable with a later flush */
    BD_LONE_FLUSH, /* or a write that is to be durable by itself */
    BD_LONE_READ,
    BD_LONE_OTHER,
};

/* A round was received: so many requests, the first of a kind, with so many bytes. */
void bd_lone_served(struct bd_lone *lone, unsigned requests, enum bd_lone_kind kind,
                    uint64_t payload);

/* More has come before the flush, or the read, was answered. */
void bd_lone_interrupted(struct bd_lone *lone);

/* Whether what has just been received may be synced here, if it is a flush. */
bool bd_lone_syncs_here(const struct bd_lone *lone);

/* Whether what has just been received may wait for the disk here, if it is a read. */
bool bd_lone_reads_here(const struct bd_lone *lone);

/* Whether what has just been served is to be synced ahead. */
bool bd_lone_syncs_ahead(const struct bd_lone *lone);

/* A sync or a read here took so long, until now: when the next one may be, monotonic; 0: at once.
 * Longer than `long_ns` is long. */
uint64_t bd_lone_again_ns(uint64_t took_ns, uint64_t long_ns, uint64_t now_ns);

#endif
