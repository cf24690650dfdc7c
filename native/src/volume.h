/* One volume's head as the hot path sees it: hot maps over a table of chunk places.
 *
 * `active` takes new writes. A destage round freezes it (bd_volume_freeze), writes the frozen
 * extents into chunks, and drops it when the new head is durable (bd_volume_commit); until then
 * reads look into active, frozen, chunks, in this order. */
#ifndef BLOCKD_VOLUME_H
#define BLOCKD_VOLUME_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "extent_map.h"
#include "journal.h"
#include "place_table.h"

/* In the place table, chunk `index | BD_REFERRED` of a volume is what the newest REFER record that
 * is hot lets chunk `index` read as. Such a record covers whole chunks, so of all those that are in
 * the hot maps only the newest can be seen. */
#define BD_REFERRED (UINT64_C(1) << 62)

struct bd_gate;
struct bd_tap;
struct bd_view;

/* What a member's next records need nobody's leave for, see bd_member_append_plain. */
struct bd_plain {
    uint64_t epoch;       /* in whose name they are taken; 0: none are */
    uint64_t durable;     /* seq that the member says it has on its disk */
    uint64_t answered_ns; /* when such records were taken last, CLOCK_BOOTTIME */
};

struct bd_volume {
    pthread_mutex_t lock;
    struct bd_journal *journal;
    struct bd_place_table *table;
    uint32_t number;
    uint32_t epoch;
    uint32_t chunk_size;
    uint64_t size;
    uint64_t seq;
    uint64_t generation; /* raised whenever chunk places change */
    bool retired;        /* the journal may give away what its maps point at; both locks to set */
    struct bd_extent_map *active;
    struct bd_extent_map *frozen; /* NULL when no destage round is under way */
    struct bd_gate *gate;         /* NULL: no other node has it; set once, before clients come */
    struct bd_tap *tap;           /* NULL when nobody wants its records; the journal's lock */
    struct bd_plain plain;        /* of a member (member.h); the journal's lock */
};

/* Why a read failed. */
struct bd_read_fault {
    uint64_t offset; /* in the volume */
    uint32_t slot;   /* journal slot or pack number */
    uint64_t place;  /* offset in that file */
    bool in_pack;
};

/* The volume is deleted, or another head takes its place: from here on no destage round saves what
 * is hot in it, so the journal's segments may be used again under it. Reads that have begun end
 * well, later ones are refused; so is every write that is not in the journal when this returns.
 * `retired` false takes it back, before any segment was used again. */
void bd_volume_retire(struct bd_volume *volume, bool retired);

struct bd_volume *bd_volume_new(struct bd_journal *journal, struct bd_place_table *table,
                                uint32_t number, uint32_t epoch, uint32_t chunk_size, uint64_t size,
                                uint64_t seq, uint64_t generation);
void bd_volume_free(struct bd_volume *volume);

/* Apply a record that is in the journal (append or replay). Aborts when memory runs out: the record
 * is in the journal already, and a restart replays it. */
void bd_volume_apply(struct bd_volume *volume, const struct bd_record *record, uint32_t slot,
                     uint32_t first_piece, uint32_t payload_offset, const uint8_t *payload);

/* Whether a REFER record is one for this volume: whole chunks, of a known payload. */
bool bd_volume_can_refer(const struct bd_volume *volume, const struct bd_record *record,
                         const uint8_t *payload);

/* What the newest REFER lets chunk `index` read as, where any of it can still be seen in `map`, one
 * of the volume's; NULL when nothing can. The lock is held, or the map is frozen. */
const struct bd_refer *bd_volume_refer(const struct bd_volume *volume,
                                       const struct bd_extent_map *map, uint64_t index);

/* Read [offset, offset + length), within the volume's size, into `data`. 0; -EAGAIN when the disk
 * would have to be waited for (nowait) or a chunk's place is not in the table; -EIO with *fault;
 * -ESHUTDOWN when the volume is retired. */
int bd_volume_read(struct bd_volume *volume, uint64_t offset, uint64_t length, uint8_t *data,
                   bool nowait, struct bd_read_fault *fault);

/* The same with nowait, of BD_VIEW_LEAST to BD_VIEW_MOST bytes; and where there are long runs of
 * raw chunks, no byte of these is copied, but *view has all bytes, verified, in order: pages of
 * packs, and for the rest what lies in `data`. *view NULL: all of it is in `data`. */
int bd_volume_view(struct bd_volume *volume, uint64_t offset, uint64_t length, uint8_t *data,
                   struct bd_view **view, struct bd_read_fault *fault);

/* Chunks whose places a read of the range would miss: up to `capacity` indexes, with BD_REFERRED
 * where that is what is missing; their count. */
int bd_volume_missing(struct bd_volume *volume, uint64_t offset, uint64_t length, uint64_t *indexes,
                      int capacity);

/* Only the bytes and zeros that the frozen map holds of the range, for the destager. 0, or -EIO
 * with *fault. */
int bd_volume_read_frozen(struct bd_volume *volume, uint64_t offset, uint64_t length, uint8_t *data,
                          struct bd_read_fault *fault);

/* The locks of journal and volume are held. -EBUSY when something is frozen already. */
int bd_volume_freeze(struct bd_volume *volume);

/* Take a freeze back before the locks it was done under are released. */
void bd_volume_thaw(struct bd_volume *volume);

/* The frozen extents are in chunks and the head that has them is durable. Drops the frozen map and
 * the places of the chunks it touched. */
void bd_volume_commit(struct bd_volume *volume, uint64_t generation);

#endif
