/* Batch: all requests that arrived in one wake-up of a socket, executed in their order.
 *
 * This is the interface of the hot path: no Python, no allocation per request. Writes are gathered
 * into groups, one pwritev each; a read that overlaps a gathered write makes it go first. */
#ifndef BLOCKD_BATCH_H
#define BLOCKD_BATCH_H

#include <stdint.h>

#include "volume.h"

enum bd_action_state {
    BD_ACTION_DONE,       /* status is 0 or -errno */
    BD_ACTION_WAIT_READ,  /* needs the disk, or a chunk's place: read it on another thread */
    BD_ACTION_WAIT_SYNC,  /* in the journal; done with the next sync */
    BD_ACTION_WAIT_SPACE, /* no journal segment was ready: submit it again later */
    BD_ACTION_WAIT_ACKS,  /* done here, and to be answered when other nodes have it; see gate.h */
};

enum bd_action_kind {
    BD_ACTION_READ,
    BD_ACTION_WRITE,
    BD_ACTION_UNMAP,
    BD_ACTION_ZERO,
    BD_ACTION_FLUSH,
    BD_ACTION_NONE, /* nothing to do: done at once */
};

struct bd_action {
    uint8_t kind;
    uint8_t state;
    bool sync;   /* WRITE, UNMAP, ZERO: durable before it is done (FUA) */
    bool if_seq; /* WRITE, UNMAP, ZERO: -ECANCELED when the volume is past `seq` */
    int status;
    uint64_t offset;
    uint64_t length;
    uint64_t seq;
    uint64_t wait_seq;    /* WAIT_ACKS: what has to be there */
    bool wait_durable;    /* WAIT_ACKS: on disks */
    uint8_t *data;        /* WRITE: the payload; READ: where the bytes go */
    bool may_view;        /* READ of BD_VIEW_LEAST to BD_VIEW_MOST bytes: pages of packs will do */
    struct bd_view *view; /* READ: not NULL: it has the bytes, not `data`; the caller's reference */
};

/* Execute; every action ends in one of the states. The caller checked ranges and buffers; -EINVAL
 * for what is beyond the end of a volume that has shrunk since. */
void bd_batch_execute(struct bd_volume *volume, struct bd_action *actions, int count,
                      uint64_t now_ns);

#endif
