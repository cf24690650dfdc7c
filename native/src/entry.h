/* Entries of packs: a chunk's header and page table (docs/disk-format.md), and places in the table
 * of which only these are known so far.
 *
 * The index says in which pack a chunk's entry is, and how long it is; the checksums of its pages
 * are in the entry. To put the places of a whole volume into the table ahead takes the index alone:
 * reading an entry each would be a disk read for every chunk, of which few may be asked for soon.
 * So such a place is of kind ENTRY, and the first read of the chunk reads its entry, verifies it
 * (it says whose it is, and has checksums of its own), and makes a RAW or PACKED place of it. */
#ifndef BLOCKD_ENTRY_H
#define BLOCKD_ENTRY_H

#include <stdbool.h>

#include "place_table.h"

enum { BD_ENTRY_HEADER = 64 };

/* Bytes of the page table behind the header. */
size_t bd_entry_table_bytes(uint32_t stored_length);

/* Make a place of an ENTRY, which is put into the table in its stead unless it has gone from there,
 * with a reference for the caller. 0; -EAGAIN when the disk would have to be waited for (nowait),
 * or when the entry is not what the index says, and then the table has no place for the chunk any
 * more: whoever can say what is wrong looks it up. -ENOMEM. */
int bd_entry_open(struct bd_place_table *table, struct bd_chunk_place *place, bool nowait,
                  struct bd_chunk_place **out);

#endif
