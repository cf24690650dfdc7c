/* Member: a volume that takes records which another node's journal has, with their epoch and seq.
 *
 * The bytes are those that a tap gives (tap.h), and hostile: nothing is appended unless all of them
 * hold. What is appended is a record of this journal like any other; when this returns it is in the
 * page cache, and durable with the next sync. */
#ifndef BLOCKD_MEMBER_H
#define BLOCKD_MEMBER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "volume.h"

/* The NOTE that it stopped at. */
struct bd_member_note {
    bool found;
    uint64_t lsn; /* 0: it was not appended */
    size_t at;    /* of its record, in the bytes */
};

/* Append records of `epoch`, which has to be the volume's own, those that it has already left out.
 * Whoever appends a NOTE has to do more, before anything follows: without `notes` this stops before
 * the first one that the volume does not have, with -ENOMSG; with it, behind the first one. *note
 * is that one.
 *
 * *seq: the volume's newest record on return, also after an error: records before the one that
 * could not be appended are in. 0; -EBADMSG (malformed, or a checksum fails), -EPROTO (of a kind
 * that members do not take, as REFER), -ESTALE (another epoch), -ERANGE (a gap: *seq says what the
 * volume has), -EINVAL (past the volume's end), -ESHUTDOWN (retired), -EAGAIN (no segment is
 * ready), -ENOSPC, -EFBIG (segments are too small here), -EIO. */
int bd_member_append(struct bd_volume *volume, uint32_t epoch, const uint8_t *bytes, size_t length,
                     uint64_t now_ns, bool notes, uint64_t *seq, struct bd_member_note *note);

/* Records appended from here on, of this node's clients or another's, are of `epoch`, which is not
 * below that of the volume's newest record. */
void bd_member_begin(struct bd_volume *volume, uint32_t epoch);

#endif
