/* The journal of a data directory: an ordered log of records over recycled segment files.
 *
 * What is durable when: an append returns when its records are in the page cache (they survive
 * kill -9); bd_journal_sync makes everything appended before it durable (power cut). Records are
 * chained by checksum and numbered by lsn, so a replay finds exactly a prefix of the log: the
 * first record that does not fit ends it.
 *
 * A failed write leaves the tail where it was: the next append overwrites what was half written.
 * Until then the log may not skip over it, as whole records of the failed write may be there.
 * A failed sync seals the journal: what the disk holds is unknown, nothing is written any more.
 *
 * Segments are made ready by the caller (written once with zeros, in the background) and handed
 * over by bd_journal_add_ready; bd_journal_release gives back those that hold nothing newer than
 * the checkpoint. When no segment is ready, appends return -EAGAIN; the last `reserve` ones are
 * kept for records without payload, so that trims go on when writes cannot.
 *
 * Locks, in this order: sync, journal, volume, place table. A segment is pinned while somebody
 * reads from it without a lock. */
#ifndef BLOCKD_JOURNAL_H
#define BLOCKD_JOURNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "file_io.h"
#include "record.h"
#include "ways.h"

struct bd_volume;

enum {
    BD_GROUP_RECORDS = 256, /* records written by one pwritev at the most */
    BD_LARGE_BYTES = 256
        << 10, /* payload of a group from which on it is padded to whole pages, ... */
    BD_LONG_BYTES = 64 << 10, /* ... if its records have as much on average */
    BD_PIECE_BLOCK = 4096,
    BD_PIECE_BLOCKS = 256, /* 2^20 pieces a segment, as a place can say */
    BD_MAX_SLOTS = 65536,
    BD_SECTOR = 512,
};

/* Checksum of the part of a record that lies in one page of the volume. */
struct bd_piece {
    uint32_t crc;
    uint16_t head;   /* where in the page it begins */
    uint16_t length; /* 1..4096 */
};

enum bd_segment_state {
    BD_SEGMENT_READY,
    BD_SEGMENT_CURRENT,
    BD_SEGMENT_FULL,
    BD_SEGMENT_FREE,
};

struct bd_segment {
    struct bd_file file;
    uint32_t slot;
    enum bd_segment_state state;
    bool dirty; /* appended to since its last sync */
    uint64_t sequence;
    uint64_t last_lsn;
    uint32_t piece_count;
    struct bd_piece *pieces[BD_PIECE_BLOCKS];
    atomic_uint pins;
};

struct bd_group_entry {
    struct bd_record record;
    const void *payload;
    uint32_t payload_offset; /* in the segment */
    uint32_t first_piece;
    int *status; /* of the request it belongs to; may be NULL */
};

struct bd_group {
    struct bd_volume *volume;
    int count;
    uint64_t position; /* where the next record goes */
    uint64_t start;    /* where the first one went */
    uint64_t lsn;
    uint64_t seq;
    uint32_t chain;
    uint32_t piece_count;
    uint64_t payload_bytes;
    struct bd_group_entry entries[BD_GROUP_RECORDS];
    uint8_t headers[BD_GROUP_RECORDS][BD_RECORD_HEADER];
};

struct bd_journal {
    pthread_mutex_t sync_lock; /* one sync at a time: a later one covers what an earlier one does */
    atomic_uint sync_waiters;  /* who wait for it */
    pthread_mutex_t lock;
    uint8_t store_uuid[16];
    uint64_t segment_bytes;
    uint64_t max_payload; /* of one record; longer writes become several */
    uint32_t node_epoch;
    int sealed; /* 0, or the errno that sealed it */

    struct bd_segment *segments[BD_MAX_SLOTS];
    uint32_t slot_limit;          /* slots from here on are unused */
    uint32_t ready[BD_MAX_SLOTS]; /* slots, first in first out */
    uint32_t ready_head;
    uint32_t ready_count;
    uint32_t reserve;
    bool midway;  /* of a write of several records: no site refuses the next one a segment */
    bool move_on; /* the next record begins a segment, if one is ready beyond the reserve */
    uint32_t full_count;

    struct bd_segment *current;
    uint64_t position;  /* in current */
    uint64_t behind;    /* in current; before it the kernel has been told to write to the disk */
    uint64_t stale_end; /* in current; up to here records of a failed write may lie */
    uint64_t next_lsn;
    uint32_t chain;
    uint64_t next_sequence;
    uint64_t synced_lsn;
    uint64_t marked_lsn; /* synced_lsn as told by the last MARK */
    uint64_t marked_ns;
    atomic_uint_fast64_t delay_ns; /* how long whoever has written is to wait: it is nearly full */
    int64_t space_left;            /* payload bytes that the disk can still take after destaging */

    struct bd_ways ways;     /* of large groups */
    atomic_bool whole_pages; /* the last group of a volume was large: absent pages are not read */

    struct bd_group group;
};

/* A position in the log: everything before it is in chunks. */
struct bd_cut {
    uint64_t lsn; /* next record */
    uint64_t sequence;
    uint64_t position;
    uint32_t chain;
};

/* One record as a person sees it. */
struct bd_log_row {
    uint64_t lsn;
    uint64_t seq;
    uint64_t time_ns; /* of the last MARK before it */
    uint64_t offset;
    uint64_t length;
    uint32_t epoch;
    uint8_t op;
};

/* A HEAD record, without its payload. */
struct bd_log_head {
    uint64_t lsn;
    uint64_t seq;
    uint32_t volume;
    uint32_t epoch;
    uint32_t node_epoch;
};

/* Before the payload of each: lsn (8), length (4), volume (4; 0 of a POINT), seq (8). */
enum { BD_REPLAY_POINT_HEAD = 24 };

struct bd_replay {
    struct bd_journal *journal;
    struct bd_volume **volumes; /* by number; NULL where unknown */
    uint32_t volume_count;
    uint64_t next_lsn;
    uint32_t chain;
    uint32_t node_epoch;
    uint64_t position;
    uint64_t records;
    uint64_t skipped; /* records of volumes that are gone, or that their heads have already */
    uint64_t last_ns; /* wall clock of the last MARK */

    /* Where to stop although the log goes on; 0 for none. `ended` says that it did. */
    uint64_t end_lsn; /* before the first record after it */
    uint64_t end_ns;  /* before the first MARK of a later time */
    uint32_t end_volume;
    uint64_t end_seq; /* with end_volume: before the first record of that volume after it */
    bool ended;

    /* POINT records in their order, each as lsn (8), length (4) and payload, little-endian. */
    bool want_points; /* and NOTEs of `volumes` */
    uint8_t *points;  /* malloc'ed; the caller frees it */
    size_t points_length;
    size_t points_capacity;

    /* With want_points as well: the HEAD records. */
    struct bd_log_head *heads; /* malloc'ed; the caller frees it */
    size_t head_count;
    size_t head_capacity;

    /* The newest records of volume `rows_volume`, as a ring: row i is rows[i % row_capacity]. */
    struct bd_log_row *rows; /* NULL: none are wanted */
    uint32_t rows_volume;
    uint64_t row_capacity;
    uint64_t row_count;

    /* Records of volume `copy_volume` written in `copy_epoch`, from the one behind `copy_seq` up to
     * `copy_end`, in the form that crosses the wire (tap.h); 0: none are wanted. `ended` says that
     * all are there, or that the buffer is full. */
    uint32_t copy_volume;
    uint32_t copy_epoch;
    uint64_t copy_seq; /* of the last one that is in the buffer */
    uint64_t copy_end;
    uint8_t *copy; /* the caller's */
    size_t copy_capacity;
    size_t copy_length;
};

struct bd_journal *bd_journal_new(const uint8_t store_uuid[16], uint64_t segment_bytes,
                                  uint32_t node_epoch);
void bd_journal_free(struct bd_journal *journal);

/* Hand over a file of segment_bytes, made of zeros or of old records. -EEXIST: the slot is used. */
int bd_journal_add_ready(struct bd_journal *journal, uint32_t slot, struct bd_file file);

/* At a start: hand over a segment that holds records to be replayed. */
int bd_journal_adopt(struct bd_journal *journal, uint32_t slot, struct bd_file file,
                     uint64_t sequence);

/* A free segment is fit for use again. -ENOENT when it is not free. */
int bd_journal_recycle(struct bd_journal *journal, uint32_t slot);

/* Take a ready segment back, to write it before `recycle` makes it ready again: the next record
 * cannot begin it meanwhile. -ENOENT: it is not ready (any more); -EAGAIN: no other one is, beyond
 * the reserve. */
int bd_journal_withdraw(struct bd_journal *journal, uint32_t slot);

/* Leave the rest of the current segment unused: what comes next begins another one, unless none is
 * ready beyond the reserve then. */
void bd_journal_move_on(struct bd_journal *journal);

/* Append one record to the group that the next commit writes. The journal's lock is held; `payload`
 * stays valid until the commit. *status (if given) is set to -errno when the commit fails.
 * 0; -EAGAIN (no segment is ready), -ENOSPC (the disk could not take the payload), -EFBIG (no
 * segment could take the record), -errno. */
int bd_journal_add(struct bd_journal *journal, struct bd_volume *volume, struct bd_record record,
                   const void *payload, uint64_t now_ns, int *status);
int bd_journal_commit(struct bd_journal *journal);

/* The seq of the volume's last record, gathered ones included. The lock is held. */
uint64_t bd_journal_seq(const struct bd_journal *journal, const struct bd_volume *volume);

/* Of a write of `length` bytes: so many are its first record's. Writes are cut where the volume's
 * pages are, so that no page is in two records. */
uint64_t bd_journal_part(const struct bd_journal *journal, uint64_t offset, uint64_t length);

/* Whether all records of a write find room now, with one more segment at the most. The lock is
 * held. */
bool bd_journal_has_room(const struct bd_journal *journal, uint64_t offset, uint64_t length,
                         uint64_t now_ns);

/* Whether the disk can take so many bytes of payload beside what is gathered. The lock is held. */
bool bd_journal_has_space(const struct bd_journal *journal, uint64_t payload_bytes);

/* Make durable whatever was appended before the call. Blocks; takes the lock only at both ends, so
 * appends go on. 0, or -errno, which has sealed the journal. */
int bd_journal_sync(struct bd_journal *journal, uint64_t *synced_lsn);

/* The same, unless another sync is under way, or somebody waits to begin one: -EBUSY. A mutex is
 * had by who asks for it at the right moment: one who syncs without a pause would have it again and
 * again, while those who sleep until it is free wake up too late each time. */
int bd_journal_try_sync(struct bd_journal *journal);

/* Have the kernel begin to write what was appended, when there is much of it: a sync that comes
 * later has less to wait for. Without the lock while it waits for the disk. Whether it did. */
bool bd_journal_write_behind(struct bd_journal *journal);

void bd_journal_seal(struct bd_journal *journal, int error);

/* Where the log is now. The lock is held. */
struct bd_cut bd_journal_cut(const struct bd_journal *journal);

/* Free each full segment that a replay from a checkpoint at `lsn` does not need and that nobody
 * reads: those that end before record lsn - 1. Its slot goes to `slots`. Returns how many. */
uint32_t bd_journal_release(struct bd_journal *journal, uint64_t lsn, uint32_t *slots,
                            uint32_t capacity);

/* Sequence of the oldest segment that was not freed yet; 0 when there is none. */
uint64_t bd_journal_oldest(struct bd_journal *journal);

/* Give up a free or ready slot and close its file. */
int bd_journal_remove(struct bd_journal *journal, uint32_t slot);

/* Replay: continue in the segment at `slot` from replay->position, applying records to volumes'
 * hot maps, up to the first one that does not fit, or that is beyond the end asked for. A record is
 * skipped when the volume has its seq already, or is of a later epoch. 0; -EPROTO when the record
 * that ends it is of a later version; -errno on a read error. */
int bd_replay_segment(struct bd_replay *replay, uint32_t slot);

/* Whether a MARK in this segment, from `position` on, proves that `lsn` was durable: 1, 0, -errno.
 */
int bd_replay_proves(struct bd_journal *journal, uint32_t slot, uint64_t position, uint64_t lsn);

/* After the replay: appends go on in `slot`, where the replay ended. -ENOENT for a wrong slot. */
int bd_journal_resume(struct bd_journal *journal, uint32_t slot, uint64_t position,
                      uint64_t next_lsn, uint32_t chain);

/* Checksum `payload` page by page into the segment's pieces, from `number` on, and all of it into
 * `payload_crc` (may be NULL), in one pass. 0 or -errno. */
int bd_segment_set_pieces(struct bd_segment *segment, uint32_t number, uint64_t offset,
                          const uint8_t *payload, uint64_t length, uint32_t *payload_crc);
uint32_t bd_pieces_of(uint64_t offset, uint64_t length);

static inline struct bd_piece *bd_segment_piece(struct bd_segment *segment, uint32_t number)
{
    return &segment->pieces[number / BD_PIECE_BLOCK][number % BD_PIECE_BLOCK];
}

#endif
