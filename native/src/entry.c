#include "entry.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "crc32c.h"

static const uint8_t entry_magic[4] = {'B', 'E', 'N', 'T'};

size_t bd_entry_table_bytes(uint32_t stored_length)
{
    return ((size_t)stored_length + BD_PAGE - 1) / BD_PAGE * 4;
}

/* Whether header and page table are those of the chunk at that place. */
static bool holds(const uint8_t *entry, const struct bd_chunk_place *place)
{
    size_t table_bytes = bd_entry_table_bytes(place->stored_length);
    return bd_get32(entry + 60) == bd_crc32c(0, entry, 60) &&
           memcmp(entry, entry_magic, sizeof entry_magic) == 0 &&
           entry[4] == place->payload[BD_CHUNK_ID] && entry[5] == place->codec &&
           bd_get16(entry + 6) == 0 && bd_get32(entry + 8) == place->pack->number &&
           bd_get32(entry + 12) == place->data_offset && bd_get32(entry + 16) == place->length &&
           bd_get32(entry + 20) == place->stored_length &&
           memcmp(entry + 24, place->payload, BD_CHUNK_ID) == 0 &&
           bd_get32(entry + 56) == bd_crc32c(0, entry + BD_ENTRY_HEADER, table_bytes);
}

int bd_entry_open(struct bd_place_table *table, struct bd_chunk_place *place, bool nowait,
                  struct bd_chunk_place **out)
{
    size_t bytes = BD_ENTRY_HEADER + bd_entry_table_bytes(place->stored_length);
    uint8_t *entry = malloc(bytes);
    if (entry == NULL)
        return -ENOMEM;
    int error = bd_file_read_exact(&place->pack->file, entry, bytes, place->data_offset, nowait);
    if (error == 0 && holds(entry, place)) {
        *out = bd_table_settle(table, place, entry + BD_ENTRY_HEADER, bytes - BD_ENTRY_HEADER);
        error = *out == NULL ? -ENOMEM : 0;
    } else if (error != -EAGAIN) {
        bd_table_drop(table, place);
        error = -EAGAIN;
    }
    free(entry);
    return error;
}
