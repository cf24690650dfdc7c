/* Reading chunks that a codec has packed. */
#ifndef BLOCKD_PACKED_H
#define BLOCKD_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include "place_table.h"

/* Bytes that one read decodes without `nowait` giving up: beyond it the thread of an event loop
 * would be away for too long (64 KiB take 20 to 90 us, by codec). */
enum { BD_PACKED_NOWAIT_MAX = 256 << 10 };

/* Read [at, at + length) of a PACKED chunk, within its length, into `data`. All stored bytes are
 * verified before they are decoded. 0; -EAGAIN when the disk would have to be waited for, or too
 * much decoded (nowait); -EIO with the place in the pack, *fault_place, of stored bytes that are
 * damaged or cannot be read; -ENOMEM. */
int bd_packed_read(struct bd_place_table *table, struct bd_chunk_place *chunk, uint64_t at,
                   uint64_t length, uint8_t *data, bool nowait, uint64_t *fault_place);

#endif
