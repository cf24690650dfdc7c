/* Tap: what a volume's journal records are read from, in their order, to be sent to other nodes.
 *
 * A commit that changes a tapped volume notes where its records lie; nothing is copied then. `take`
 * reads them back, out of the page cache as a rule, and gives them the form in which they cross the
 * wire: the record's header with everything that is this journal's own (node epoch, lsn, number of
 * the volume, chain) zero, its checksum made for that, the payload, and zeros to a multiple of
 * BD_RECORD_ALIGN. Segments with records that were not taken yet are pinned: nobody uses them
 * again.
 *
 * Bounded: when whoever takes is more than `limit` bytes of the journal or BD_TAP_SPANS commits
 * behind, the tap forgets all and is *lost*, until it is told to begin again at the volume's newest
 * record. What is missing between is in the window, or in the volume itself.
 *
 * Locks: note, begin and close under the journal's lock; take is for one thread at a time. */
#ifndef BLOCKD_TAP_H
#define BLOCKD_TAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "journal.h"

enum {
    BD_TAP_SPANS = 4096,
    BD_TAP_MIN_BUFFER = BD_RECORD_MAX_PAYLOAD + 2 * BD_RECORD_HEADER, /* the longest, and a MARK */
};

/* Records of one commit, or of several that lie behind each other. */
struct bd_tap_span {
    struct bd_segment *segment;
    uint64_t position;
    uint64_t end;
};

struct bd_tap {
    int event; /* eventfd(2): readable when there is something to take, or the tap is lost; told
                  once until it is taken */
    uint64_t limit;
    uint64_t bytes; /* of the journal, not taken yet */
    bool lost;
    bool taking;
    bool rung; /* the event was told since the last `take` */
    uint32_t head;
    uint32_t count;
    struct bd_tap_span spans[BD_TAP_SPANS];
};

struct bd_taken {
    size_t length;      /* bytes in the buffer, of whole records */
    uint64_t first_seq; /* of the first and last of them; 0 when there is none */
    uint64_t last_seq;
    bool lost;
};

/* Have the volume's later records noted. *seq: its newest record now, the one before the first that
 * `take` will give. 0, -EEXIST, -EINVAL for a limit below BD_TAP_MIN_BUFFER, -ENOMEM, -errno. */
int bd_tap_open(struct bd_volume *volume, uint64_t limit, uint64_t *seq);

/* Nothing is noted any more. 0, also where nothing was; -EBUSY when a thread is in `take`. */
int bd_tap_close(struct bd_volume *volume);

/* A lost tap notes again, from behind *seq on. -ENOENT: there is no tap; -EBUSY as above. */
int bd_tap_begin(struct bd_volume *volume, uint64_t *seq);

/* The next records, as many as there are or fit into `capacity`, which is BD_TAP_MIN_BUFFER or
 * more. Waits for the disk where they are not in memory, unless `nowait`: -EAGAIN then. 0; -ENOENT;
 * -EINVAL; -EBUSY when another thread is in here; -EIO when the journal does not hold what was
 * written. After an error nothing is taken. */
int bd_tap_take(struct bd_volume *volume, uint8_t *buffer, size_t capacity, bool nowait,
                struct bd_taken *taken);

/* A commit to `segment` wrote [position, end) of the volume's records, and MARKs. */
void bd_tap_note(struct bd_tap *tap, struct bd_segment *segment, uint64_t position, uint64_t end);

/* Give the record at `bytes` the form that crosses the wire. */
void bd_tap_strip(struct bd_record *record, uint8_t *bytes);

#endif
