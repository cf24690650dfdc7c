#include "place_table.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "codec.h"
#include "entry.h"
#include "locks.h"
#include "sites.h"
#include "view.h"

enum {
    FIRST_BUCKETS = 1024,
    ENTRY_PAYLOAD = BD_CHUNK_ID + 1, /* and the kind */
    DECODED_SHARE = 4, /* decoded bytes get one such part of the budget: a lost place costs a walk
                          through manifest and index, lost decoded bytes only decoding again */
};

static size_t bucket_of(const struct bd_place_table *table, uint32_t volume, uint64_t index)
{
    uint64_t mixed = (index + ((uint64_t)volume << 40)) * UINT64_C(0x9e3779b97f4a7c15);
    return (size_t)(mixed >> 20) & (table->bucket_count - 1);
}

static size_t payload_size(const struct bd_chunk_place *place)
{
    switch (place->kind) {
    case BD_CHUNK_RAW:
    case BD_CHUNK_PACKED:
        return bd_entry_table_bytes(place->stored_length);
    case BD_CHUNK_DECODED:
        return place->length;
    case BD_CHUNK_ENTRY:
        return ENTRY_PAYLOAD;
    default:
        return 0;
    }
}

static size_t entry_size(const struct bd_chunk_place *place)
{
    return sizeof *place + payload_size(place) + 16; /* 16: the allocator's own */
}

static size_t decoded_size(const struct bd_decoded *decoded)
{
    return sizeof *decoded + decoded->length + 16;
}

struct bd_pack *bd_pack_new(struct bd_file file, uint32_t number)
{
    struct bd_pack *pack = malloc(sizeof *pack);
    if (pack == NULL)
        return NULL;
    pack->file = file;
    pack->number = number;
    atomic_init(&pack->references, 1);
    pack->mapping = NULL;
    return pack;
}

void bd_pack_release(struct bd_pack *pack)
{
    if (atomic_fetch_sub(&pack->references, 1) == 1) {
        bd_view_forget(pack);
        pack->file.ops->close(&pack->file);
        free(pack);
    }
}

void bd_chunk_place_release(struct bd_chunk_place *place)
{
    if (atomic_fetch_sub(&place->references, 1) == 1) {
        if (place->pack != NULL)
            bd_pack_release(place->pack);
        free(place);
    }
}

struct bd_place_table *bd_table_new(size_t limit)
{
    struct bd_place_table *table = calloc(1, sizeof *table);
    if (table == NULL)
        return NULL;
    table->buckets = calloc(FIRST_BUCKETS, sizeof(struct bd_chunk_place *));
    if (table->buckets == NULL) {
        free(table);
        return NULL;
    }
    table->bucket_count = FIRST_BUCKETS;
    table->limit = limit;
    pthread_mutex_init(&table->lock, NULL);
    return table;
}

struct bd_decoded *bd_decoded_new(uint32_t length)
{
    struct bd_decoded *decoded = malloc(sizeof *decoded + length);
    if (decoded != NULL) {
        *decoded = (struct bd_decoded){.length = length};
        atomic_init(&decoded->references, 1);
    }
    return decoded;
}

void bd_decoded_release(struct bd_decoded *decoded)
{
    if (atomic_fetch_sub(&decoded->references, 1) == 1)
        free(decoded);
}

static void list_remove(struct bd_place_table *table, struct bd_decoded *decoded)
{
    *(decoded->newer != NULL ? &decoded->newer->older : &table->newest) = decoded->older;
    *(decoded->older != NULL ? &decoded->older->newer : &table->oldest) = decoded->newer;
    decoded->newer = decoded->older = NULL;
}

static void list_push(struct bd_place_table *table, struct bd_decoded *decoded)
{
    decoded->older = table->newest;
    *(table->newest != NULL ? &table->newest->newer : &table->oldest) = decoded;
    table->newest = decoded;
}

static void drop_decoded(struct bd_place_table *table, struct bd_decoded *decoded)
{
    list_remove(table, decoded);
    table->bytes -= decoded_size(decoded);
    table->decoded_bytes -= decoded_size(decoded);
    decoded->owner->decoded = NULL;
    bd_decoded_release(decoded);
}

static void unlink_entry(struct bd_place_table *table, struct bd_chunk_place **link)
{
    struct bd_chunk_place *place = *link;
    *link = place->next;
    place->linked = 0;
    if (place->decoded != NULL)
        drop_decoded(table, place->decoded);
    table->bytes -= entry_size(place);
    table->entry_count--;
    bd_chunk_place_release(place);
}

static void unlink_all(struct bd_place_table *table)
{
    for (size_t i = 0; i < table->bucket_count; i++)
        while (table->buckets[i] != NULL)
            unlink_entry(table, &table->buckets[i]);
}

void bd_table_clear(struct bd_place_table *table)
{
    bd_lock(&table->lock);
    unlink_all(table);
    table->hand = 0;
    if (table->bucket_count > FIRST_BUCKETS) {
        struct bd_chunk_place **buckets = calloc(FIRST_BUCKETS, sizeof(struct bd_chunk_place *));
        if (buckets != NULL) { /* else the long ones stay: they are empty, and good */
            free(table->buckets);
            table->buckets = buckets;
            table->bucket_count = FIRST_BUCKETS;
        }
    }
    pthread_mutex_unlock(&table->lock);
}

void bd_table_free(struct bd_place_table *table)
{
    unlink_all(table);
    free(table->buckets);
    pthread_mutex_destroy(&table->lock);
    free(table);
}

static struct bd_chunk_place **find(struct bd_place_table *table, uint32_t volume, uint64_t index)
{
    struct bd_chunk_place **link = &table->buckets[bucket_of(table, volume, index)];
    while (*link != NULL && ((*link)->index != index || (*link)->volume != volume))
        link = &(*link)->next;
    return link;
}

struct bd_chunk_place *bd_table_get(struct bd_place_table *table, uint32_t volume, uint64_t index)
{
    bd_lock(&table->lock);
    struct bd_chunk_place *place = *find(table, volume, index);
    if (place != NULL) {
        place->used = 1;
        atomic_fetch_add(&place->references, 1);
        table->hits++;
        if (place->pack != NULL && place->pack->number < BD_SHOWN_PACKS) {
            uint32_t bit = place->pack->number % BD_READ_PACKS;
            table->read_packs[bit / 8] |= (uint8_t)(1 << bit % 8);
        }
    } else {
        table->misses++;
    }
    pthread_mutex_unlock(&table->lock);
    return place;
}

void bd_table_take_read_packs(struct bd_place_table *table, uint8_t bits[BD_READ_PACKS / 8])
{
    bd_lock(&table->lock);
    memcpy(bits, table->read_packs, sizeof table->read_packs);
    memset(table->read_packs, 0, sizeof table->read_packs);
    pthread_mutex_unlock(&table->lock);
}

/* A failed growth is no fault: the chains only get longer. */
static void grow(struct bd_place_table *table)
{
    size_t count = table->bucket_count * 2;
    struct bd_chunk_place **buckets = calloc(count, sizeof(struct bd_chunk_place *));
    if (buckets == NULL)
        return;
    struct bd_chunk_place **old = table->buckets;
    size_t old_count = table->bucket_count;
    table->buckets = buckets;
    table->bucket_count = count;
    table->hand = 0;
    for (size_t i = 0; i < old_count; i++) {
        while (old[i] != NULL) {
            struct bd_chunk_place *place = old[i];
            old[i] = place->next;
            struct bd_chunk_place **link = &buckets[bucket_of(table, place->volume, place->index)];
            place->next = *link;
            *link = place;
        }
    }
    free(old);
}

/* Clock: pass over the buckets, spare once what was used since the last pass. */
static void evict(struct bd_place_table *table)
{
    size_t passed = 0;
    while (table->bytes > table->limit && passed < 2 * table->bucket_count) {
        struct bd_chunk_place **link = &table->buckets[table->hand];
        while (*link != NULL) {
            if ((*link)->used) {
                (*link)->used = 0;
                link = &(*link)->next;
            } else {
                unlink_entry(table, link);
            }
        }
        table->hand = (table->hand + 1) & (table->bucket_count - 1);
        passed++;
    }
}

/* Forget a few entries, as if others had taken their memory; not `kept`. */
static void forget_some(struct bd_place_table *table, const struct bd_chunk_place *kept)
{
    struct bd_chunk_place **link = &table->buckets[table->hand];
    while (*link != NULL) {
        if (*link == kept)
            link = &(*link)->next;
        else
            unlink_entry(table, link);
    }
    table->hand = (table->hand + 1) & (table->bucket_count - 1);
}

/* A copy of `like`, with one reference; NULL without memory. */
static struct bd_chunk_place *new_place(struct bd_place_table *table,
                                        const struct bd_chunk_place *like, const uint8_t *payload,
                                        size_t payload_bytes)
{
    struct bd_chunk_place *place = malloc(sizeof *place + payload_bytes);
    if (place == NULL)
        return NULL;
    *place = *like;
    place->used = 1;
    atomic_init(&place->references, 1);
    atomic_init(&place->part_read, atomic_load(&table->part_reads) - UINT32_MAX / 2); /* long ago */
    if (payload_bytes > 0)
        memcpy(place->payload, payload, payload_bytes);
    if (place->pack != NULL)
        atomic_fetch_add(&place->pack->references, 1);
    return place;
}

/* The reference is the table's from now on. What it had of the chunk goes. The lock is held. */
static void link_place(struct bd_place_table *table, struct bd_chunk_place *place)
{
    place->linked = 1;
    struct bd_chunk_place **link = find(table, place->volume, place->index);
    if (*link != NULL)
        unlink_entry(table, link);
    if (table->entry_count >= table->bucket_count)
        grow(table);
    link = &table->buckets[bucket_of(table, place->volume, place->index)];
    place->next = *link;
    *link = place;
    table->bytes += entry_size(place);
    table->entry_count++;
    if (table->bytes > table->limit)
        evict(table);
}

/* Put in a copy of `like`. */
static int put_place(struct bd_place_table *table, const struct bd_chunk_place *like,
                     const uint8_t *payload, size_t payload_bytes)
{
    if (payload_size(like) != payload_bytes)
        return -EINVAL;
    struct bd_chunk_place *place = new_place(table, like, payload, payload_bytes);
    if (place == NULL)
        return -ENOMEM;
    bd_lock(&table->lock);
    link_place(table, place);
    if (bd_site_fires(BD_SITE_TABLE_FORGETS))
        forget_some(table, place);
    pthread_mutex_unlock(&table->lock);
    return 0;
}

int bd_table_put(struct bd_place_table *table, uint32_t volume, uint64_t index, uint8_t kind,
                 struct bd_pack *pack, uint64_t data_offset, uint32_t length,
                 const uint8_t *payload, size_t payload_bytes)
{
    if (kind > BD_CHUNK_DECODED)
        return -EINVAL;
    struct bd_chunk_place like = {.index = index,
                                  .volume = volume,
                                  .kind = kind,
                                  .pack = pack,
                                  .data_offset = data_offset,
                                  .length = length,
                                  .stored_length = kind == BD_CHUNK_RAW ? length : 0};
    return put_place(table, &like, payload, payload_bytes);
}

int bd_table_put_packed(struct bd_place_table *table, uint32_t volume, uint64_t index,
                        struct bd_pack *pack, uint64_t data_offset, uint32_t length, uint8_t codec,
                        uint32_t stored_length, const uint8_t *checks, size_t check_bytes)
{
    if (pack == NULL || codec == BD_CODEC_NONE || codec >= BD_CODEC_COUNT || stored_length == 0 ||
        stored_length >= length || length > BD_CODEC_MAX_RAW)
        return -EINVAL;
    struct bd_chunk_place like = {.index = index,
                                  .volume = volume,
                                  .kind = BD_CHUNK_PACKED,
                                  .codec = codec,
                                  .pack = pack,
                                  .data_offset = data_offset,
                                  .length = length,
                                  .stored_length = stored_length};
    return put_place(table, &like, checks, check_bytes);
}

int bd_table_put_entry(struct bd_place_table *table, uint32_t volume, uint64_t index,
                       struct bd_pack *pack, uint64_t offset, uint32_t length, uint8_t codec,
                       uint32_t stored_length, const uint8_t *id, uint8_t entry_kind)
{
    bool packed = codec != BD_CODEC_NONE;
    if (pack == NULL || codec >= BD_CODEC_COUNT || stored_length == 0 || stored_length > length ||
        packed != (stored_length < length) || (packed && length > BD_CODEC_MAX_RAW))
        return -EINVAL;
    struct bd_chunk_place like = {.index = index,
                                  .volume = volume,
                                  .kind = BD_CHUNK_ENTRY,
                                  .codec = codec,
                                  .pack = pack,
                                  .data_offset = offset,
                                  .length = length,
                                  .stored_length = stored_length};
    uint8_t payload[ENTRY_PAYLOAD];
    memcpy(payload, id, BD_CHUNK_ID);
    payload[BD_CHUNK_ID] = entry_kind;
    return put_place(table, &like, payload, sizeof payload);
}

struct bd_chunk_place *bd_table_settle(struct bd_place_table *table, struct bd_chunk_place *entry,
                                       const uint8_t *checks, size_t check_bytes)
{
    bool packed = entry->codec != BD_CODEC_NONE;
    struct bd_chunk_place like = {.index = entry->index,
                                  .volume = entry->volume,
                                  .kind = packed ? BD_CHUNK_PACKED : BD_CHUNK_RAW,
                                  .codec = entry->codec,
                                  .pack = entry->pack,
                                  .data_offset = entry->data_offset + BD_ENTRY_HEADER + check_bytes,
                                  .length = entry->length,
                                  .stored_length = entry->stored_length};
    assert(payload_size(&like) == check_bytes);
    struct bd_chunk_place *place = new_place(table, &like, checks, check_bytes);
    if (place == NULL)
        return NULL;
    bd_lock(&table->lock);
    if (entry->linked) {
        atomic_fetch_add(&place->references, 1);
        link_place(table, place);
    }
    pthread_mutex_unlock(&table->lock);
    return place;
}

void bd_table_drop(struct bd_place_table *table, struct bd_chunk_place *place)
{
    bd_lock(&table->lock);
    if (place->linked)
        unlink_entry(table, find(table, place->volume, place->index));
    pthread_mutex_unlock(&table->lock);
}

struct bd_decoded *bd_table_decoded(struct bd_place_table *table, struct bd_chunk_place *place)
{
    bd_lock(&table->lock);
    struct bd_decoded *decoded = place->decoded;
    if (decoded != NULL) {
        list_remove(table, decoded);
        list_push(table, decoded);
        atomic_fetch_add(&decoded->references, 1);
    }
    pthread_mutex_unlock(&table->lock);
    return decoded;
}

bool bd_table_read_lately(struct bd_place_table *table, struct bd_chunk_place *place)
{
    unsigned since = atomic_load(&table->part_reads) - atomic_load(&place->part_read);
    return since <= table->limit / DECODED_SHARE / place->length;
}

void bd_table_note_part_read(struct bd_place_table *table, struct bd_chunk_place *place)
{
    atomic_store(&place->part_read, atomic_fetch_add(&table->part_reads, 1));
}

void bd_table_keep_decoded(struct bd_place_table *table, struct bd_chunk_place *place,
                           struct bd_decoded *decoded)
{
    size_t limit = table->limit / DECODED_SHARE;
    size_t size = decoded_size(decoded);
    bd_lock(&table->lock);
    if (place->linked && place->decoded == NULL && size <= limit) {
        while (table->decoded_bytes + size > limit)
            drop_decoded(table, table->oldest);
        atomic_fetch_add(&decoded->references, 1);
        decoded->owner = place;
        place->decoded = decoded;
        list_push(table, decoded);
        table->bytes += size;
        table->decoded_bytes += size;
        if (table->bytes > table->limit)
            evict(table);
    }
    pthread_mutex_unlock(&table->lock);
}

void bd_table_drop_range(struct bd_place_table *table, uint32_t volume, uint64_t first,
                         uint64_t end)
{
    bd_lock(&table->lock);
    if (end - first < table->bucket_count) {
        for (uint64_t index = first; index < end; index++) {
            struct bd_chunk_place **link = find(table, volume, index);
            if (*link != NULL)
                unlink_entry(table, link);
        }
    } else { /* a wide range: looking at every entry is the shorter way */
        for (size_t i = 0; i < table->bucket_count; i++) {
            struct bd_chunk_place **link = &table->buckets[i];
            while (*link != NULL) {
                if ((*link)->volume == volume && (*link)->index >= first && (*link)->index < end)
                    unlink_entry(table, link);
                else
                    link = &(*link)->next;
            }
        }
    }
    pthread_mutex_unlock(&table->lock);
}

void bd_table_drop_pack(struct bd_place_table *table, uint32_t number)
{
    bd_lock(&table->lock);
    for (size_t i = 0; i < table->bucket_count; i++) {
        struct bd_chunk_place **link = &table->buckets[i];
        while (*link != NULL) {
            if ((*link)->pack != NULL && (*link)->pack->number == number)
                unlink_entry(table, link);
            else
                link = &(*link)->next;
        }
    }
    pthread_mutex_unlock(&table->lock);
}
