/* Gate: when clients of a volume that other nodes have as well are answered.
 *
 * A write is in this node's journal before W nodes have it. Its answer waits here until they have;
 * so does that of a read that returns its bytes, or a takeover could lose what a client has read.
 * A flush waits until W have what is before it on their disks. Whoever counts them (the sender,
 * transport/group/primary.py) says how far they are: bd_gate_advance.
 *
 *   shut   no request is let in: this node is not the volume's primary, or not yet
 *   open   it is, and answers wait
 *
 * Reads wait for time as well: past `reads_until` this node may have a successor that it has not
 * heard of, until its lease is renewed. Answers that wait longer than the timeout are EIO.
 *
 * Volumes of one node have no gate, and pay a branch for it. Locks: the gate's own is the last,
 * after a client's and the journal's; jobs end without it. */
#ifndef BLOCKD_GATE_H
#define BLOCKD_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "batch.h"

struct bd_job;

enum { BD_GATE_WRITES = 1024 }; /* that are told apart; a read waits for older ones as for one */

struct bd_gate_write {
    uint64_t seq; /* of its last record */
    uint64_t offset;
    uint64_t end;
};

struct bd_gate {
    pthread_mutex_t lock;
    int wake;         /* eventfd(2): readable when somebody begins to wait for a sync */
    atomic_bool shut; /* changed under the journal's lock as well: appends look at it there */
    bool strict;      /* writes wait for the disks of W */
    uint64_t acked;   /* seqs: what is in W journals, ... */
    uint64_t durable; /* ... and on W disks */
    uint64_t wanted;  /* somebody waits for `durable` to get there */
    uint64_t reads_until_ns; /* CLOCK_BOOTTIME */
    uint64_t timeout_ns;
    uint64_t forgotten; /* seq of the newest write that is not told apart any more */
    uint32_t first;
    uint32_t count;
    struct bd_gate_write writes[BD_GATE_WRITES]; /* a ring, oldest first */
    struct bd_job *first_job;
    struct bd_job *last_job;
    uint32_t waiting; /* jobs */
};

/* Give a volume a gate, which is shut. 0, -EEXIST, -ENOMEM, -errno. */
int bd_gate_new(struct bd_volume *volume);
void bd_gate_free(struct bd_gate *gate);

/* Let requests in. `start`: the volume's newest record, which W nodes have on their disks. No read
 * is answered before the first bd_gate_lease. */
void bd_gate_open(struct bd_volume *volume, uint64_t start, bool strict, uint64_t timeout_ns);

/* Let none in any more: when this returns nothing of a client is appended. Who waits fails with
 * ESHUTDOWN. */
void bd_gate_shut(struct bd_volume *volume);

/* W nodes have this much; answers that waited for it go out. Neither ever goes back. */
void bd_gate_advance(struct bd_gate *gate, uint64_t acked, uint64_t durable);

/* Reads may be answered until then, CLOCK_BOOTTIME; those that waited for it go out. */
void bd_gate_lease(struct bd_gate *gate, uint64_t until_ns);

/* Fail with EIO who has waited too long. */
void bd_gate_expire(struct bd_gate *gate);

/* A write is gathered. The journal's lock is held. */
void bd_gate_note(struct bd_gate *gate, uint64_t seq, uint64_t offset, uint64_t length);

/* After a batch: actions that are done become BD_ACTION_WAIT_ACKS where they have to wait. */
void bd_gate_judge(struct bd_gate *gate, struct bd_action *actions, int count);

/* Somebody waits until `seq` is on W disks. */
void bd_gate_want(struct bd_gate *gate, uint64_t seq);

/* Seq of the newest write, not in W journals yet, that touches the range; 0: there is none. */
uint64_t bd_gate_seen(struct bd_gate *gate, uint64_t offset, uint64_t length);

/* Keep a job that is done until it may be answered. False: it may be now, or has failed. */
bool bd_gate_hold(struct bd_gate *gate, struct bd_job *job);

uint64_t bd_gate_now_ns(void);

#endif
