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
 * volume has), -EINVAL (past the volume's end), -EBUSY (a RESTORE, while a round is under way with
 * what is hot), -ESHUTDOWN (retired), -EAGAIN (no segment is ready), -ENOSPC, -EFBIG (segments are
 * too small here), -EIO. */
int bd_member_append(struct bd_volume *volume, uint32_t epoch, const uint8_t *bytes, size_t length,
                     uint64_t now_ns, bool notes, uint64_t *seq, struct bd_member_note *note);

/* What comes with every write: records `first` to `last`, written in the volume's epoch, in the
 * name of `epoch`. */
struct bd_member_plain {
    uint64_t epoch;
    uint64_t written;
    uint64_t first;
    uint64_t last;
};

/* Say in the name of which epoch records are taken by bd_member_append_plain; 0: none. When this
 * returns none is being taken in the name of another one. */
void bd_member_take_plain(struct bd_volume *volume, uint64_t epoch);

/* What the member has on its disk, to be told with the next records. */
void bd_member_tell_durable(struct bd_volume *volume, uint64_t seq);

/* When records were last taken, CLOCK_BOOTTIME; 0: never. */
uint64_t bd_member_answered_ns(struct bd_volume *volume);

/* Append records where nothing is to be decided: they are taken in that epoch's name, are the next
 * ones, are what `asked` says, none is a NOTE, and there is room for them. Then all of them are in
 * the journal file, `boot_ns` is noted as the time of the answer, and *durable is what was told
 * last. False: ask bd_member_append, and whoever decides; of these records none, or the first ones,
 * are in the journal. */
bool bd_member_append_plain(struct bd_volume *volume, const struct bd_member_plain *asked,
                            const uint8_t *bytes, size_t length, uint64_t now_ns, uint64_t boot_ns,
                            uint64_t *durable);

/* Records appended from here on, of this node's clients or another's, are of `epoch`, which is not
 * below that of the volume's newest record. */
void bd_member_begin(struct bd_volume *volume, uint32_t epoch);

#endif
