/* Sender: what a primary does with every write, as long as there is nothing to be decided: records
 * that the tap has go to the members in step, and what these answer lets replies of clients go.
 *
 * Whoever decides (transport/group/primary.py) lends it all that this needs, bd_sender_begin, and
 * takes it back, bd_sender_end, before it does anything itself. So of every record, request and
 * count one of the two is the owner, never both:
 *
 *   lent      `on`: the tap is taken from here. A member has one request under way at most: of this
 *             one, `tag`, or one that was asked before, `busy`, which gets nothing meanwhile.
 *   not lent  nothing here changes, and nothing is sent or counted.
 *
 * Anything that is not plain is left to who lent: -EAGAIN, or -ENOENT for an answer, of which
 * nothing was counted then. Records that were taken from the tap are in `batches` until all members
 * in step have them; who takes back finds them there.
 *
 * Bounded: BD_SENDER_BATCHES and `room` bytes are kept; then who lent decides who is too slow.
 *
 * For one thread, which has no lock: tap and gate take their own. */
#ifndef BLOCKD_SENDER_H
#define BLOCKD_SENDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bd_volume;

enum {
    BD_SENDER_MEMBERS = 16,
    BD_SENDER_BATCHES = 64,
    BD_SENDER_JOINED = 256 << 10, /* of batches that go in one frame; BD_PEER_AT_ONCE */
};

struct bd_sender_member {
    bool counts;   /* among those of whom W have to have what is acknowledged */
    bool in_step;  /* gets records */
    bool busy;     /* who lent has asked it something, and has the answer */
    uint64_t tag;  /* of what was sent from here and is not answered; 0: nothing is */
    uint64_t sent; /* seq of the newest record under way or there */
    uint64_t received;
    uint64_t durable;
    uint64_t sent_ns;     /* when it was last sent records from here; 0: it was not */
    uint64_t answered_ns; /* when that was sent which it answered last; 0: nothing from here */
};

/* Records that the tap gave at once. */
struct bd_sender_batch {
    uint64_t first;
    uint64_t last;
    size_t length;
    uint8_t *bytes;
};

/* Records for one member: batches [from, from + count) of those that are kept. */
struct bd_sender_send {
    int member;
    uint64_t tag;
    uint64_t first;
    uint64_t last;
    uint32_t from;
    uint32_t count;
};

struct bd_sender {
    struct bd_volume *volume;
    uint64_t epoch;
    uint8_t *buffer; /* what the tap gives: BD_TAP_MIN_BUFFER */
    bool on;
    int wanted;           /* W, 2 or more; who lends is one */
    uint64_t own_durable; /* of the journal here */
    uint64_t taken;       /* seq of the newest record that came from the tap... */
    uint64_t newest;      /* ...and, when it is taken back, of the volume */
    uint64_t acked;
    uint64_t durable;
    uint64_t next_tag;
    size_t room;
    size_t bytes;         /* kept */
    uint64_t taken_bytes; /* since it was lent */
    int member_count;
    struct bd_sender_member members[BD_SENDER_MEMBERS];
    uint32_t batch_count; /* oldest first */
    struct bd_sender_batch batches[BD_SENDER_BATCHES];
    int send_count;
    struct bd_sender_send sends[BD_SENDER_MEMBERS];
};

/* Of a volume that has a gate and outlives it; it is not lent yet. NULL: no memory. */
struct bd_sender *bd_sender_new(struct bd_volume *volume, uint64_t epoch);
void bd_sender_free(struct bd_sender *sender);

/* It is lent: who lends has set wanted, own_durable, taken, acked, durable, next_tag, room, and the
 * members, of whom those in step have been sent everything up to `taken`. False: that is not so. */
bool bd_sender_begin(struct bd_sender *sender);

/* It is taken back: members, counts and batches are as they are, until the next begin. */
void bd_sender_end(struct bd_sender *sender);

/* The tap has something, perhaps. What has to be sent now is in `sends`, also where the rest is for
 * who lent: -EAGAIN. 0 else. */
int bd_sender_turn(struct bd_sender *sender, uint64_t now_ns);

/* A member has answered by an ACK what was sent with `tag`: counts that, lets go who waited for it,
 * and goes on as bd_sender_turn. -ENOENT: that is for who lent, and nothing was counted. */
int bd_sender_acked(struct bd_sender *sender, uint64_t tag, uint64_t epoch, uint64_t received,
                    uint64_t durable, uint64_t now_ns);

#endif
