/* A journal over memory files, a place table and a volume: what most C tests start from. */
#ifndef BLOCKD_RIG_H
#define BLOCKD_RIG_H

#include "batch.h"
#include "journal.h"
#include "memory_file.h"
#include "place_table.h"
#include "volume.h"

enum { RIG_SEGMENTS = 16, RIG_CHUNK = 65536 };

struct rig {
    uint64_t segment_bytes;
    struct memory_file files[RIG_SEGMENTS];
    struct bd_journal *journal;
    struct bd_place_table *table;
    struct bd_volume *volume;
    uint64_t now_ns;
    uint64_t last_ns; /* what time the log says that it was last, as of the last restart */
};

/* Segments 0 to ready - 1 are ready for use. */
void rig_init(struct rig *rig, uint64_t segment_bytes, uint32_t ready, uint64_t volume_bytes);
void rig_destroy(struct rig *rig);

/* Forget what is in memory, keep the files, and replay all segments in the order of their headers,
 * as volume/recovery.py does. The volume is new, of the same size. Returns the records found. */
uint64_t rig_restart(struct rig *rig);

/* One action, executed alone; its state, and its status in *status where that is not NULL. */
int rig_do(struct rig *rig, enum bd_action_kind kind, uint64_t offset, uint64_t length,
           uint8_t *data, int *status);
/* Write `length` times `byte`; it has to be done at once. */
void rig_write(struct rig *rig, uint64_t offset, uint64_t length, uint8_t byte);
/* Read, and demand that every byte is `byte`. */
void rig_expect(struct rig *rig, uint64_t offset, uint64_t length, uint8_t byte);

/* Say that chunks [0, count) are holes, so that reads of them need no place. */
void rig_holes(struct rig *rig, uint64_t count);

/* freeze, commit (into holes), release, recycle: what a destage round does to the core. */
void rig_round(struct rig *rig);

#endif
