#include "record.h"

#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "crc32c.h"

static const uint8_t record_magic[4] = {'b', 'd', 'J', 'R'};
static const uint8_t segment_magic[8] = {'b', 'l', 'o', 'c', 'k', 'd', 'J', 'S'};

void bd_record_encode(struct bd_record *record, uint8_t *out)
{
    memcpy(out, record_magic, 4);
    out[4] = BD_FORMAT_VERSION;
    out[5] = record->op;
    bd_put16(out + 6, record->flags);
    bd_put32(out + 8, record->node_epoch);
    bd_put32(out + 12, record->volume_epoch);
    bd_put64(out + 16, record->lsn);
    bd_put64(out + 24, record->seq);
    bd_put64(out + 32, record->offset);
    bd_put64(out + 40, record->length);
    bd_put32(out + 48, record->volume);
    bd_put32(out + 52, record->payload_crc);
    bd_put32(out + 56, record->chain);
    record->header_crc = bd_crc32c(0, out, 60);
    bd_put32(out + 60, record->header_crc);
}

uint64_t bd_record_payload(const struct bd_record *record)
{
    if (record->op == BD_RECORD_REFER)
        return BD_REFER_PAYLOAD;
    return bd_record_has_payload(record->op) ? record->length : 0;
}

bool bd_record_has_payload(uint8_t op)
{
    return op == BD_RECORD_WRITE || op == BD_RECORD_HEAD || op == BD_RECORD_POINT ||
           op == BD_RECORD_REFER || op == BD_RECORD_NOTE;
}

bool bd_record_has_range(uint8_t op)
{
    return op == BD_RECORD_WRITE || op == BD_RECORD_UNMAP || op == BD_RECORD_ZERO ||
           op == BD_RECORD_REFER;
}

bool bd_record_has_seq(uint8_t op)
{
    return bd_record_has_range(op) || op == BD_RECORD_NOTE;
}

void bd_refer_encode(const struct bd_refer *refer, uint8_t out[BD_REFER_PAYLOAD])
{
    memset(out, 0, BD_REFER_PAYLOAD);
    memcpy(out, refer->root, sizeof refer->root);
    bd_put64(out + 32, refer->source);
    out[40] = BD_REFER_VERSION;
    out[41] = refer->height;
}

int bd_refer_decode(const uint8_t *payload, struct bd_refer *refer)
{
    memcpy(refer->root, payload, sizeof refer->root);
    refer->source = bd_get64(payload + 32);
    refer->height = payload[41];
    if (payload[40] != BD_REFER_VERSION || refer->height == 0 ||
        refer->height > BD_REFER_MAX_HEIGHT || bd_get16(payload + 42) != 0 ||
        bd_get32(payload + 44) != 0)
        return -EPROTO;
    return 0;
}

int bd_note_decode(const uint8_t *payload, uint64_t length, struct bd_note *note)
{
    if (length < BD_NOTE_HEADER || length > BD_NOTE_MAX_PAYLOAD || payload[0] != BD_NOTE_VERSION)
        return -EPROTO;
    note->kind = payload[1];
    note->size_before = bd_get64(payload + 8);
    note->size = bd_get64(payload + 16);
    if (bd_get16(payload + 2) != 0 || bd_get32(payload + 4) != 0 || note->size_before == 0 ||
        note->size == 0 || note->size_before > BD_MAX_VOLUME_BYTES ||
        note->size > BD_MAX_VOLUME_BYTES)
        return -EPROTO;
    return 0;
}

void bd_record_sign(struct bd_record *mark, const uint8_t store_uuid[16])
{
    mark->length = bd_get64(store_uuid);
    mark->volume = bd_get32(store_uuid + 8);
    mark->payload_crc = bd_get32(store_uuid + 12);
}

bool bd_record_is_signed(const struct bd_record *mark, const uint8_t store_uuid[16])
{
    return mark->length == bd_get64(store_uuid) && mark->volume == bd_get32(store_uuid + 8) &&
           mark->payload_crc == bd_get32(store_uuid + 12);
}

int bd_record_decode(const uint8_t *bytes, struct bd_record *record)
{
    if (memcmp(bytes, record_magic, 4) != 0 || bd_get32(bytes + 60) != bd_crc32c(0, bytes, 60))
        return -EBADMSG;
    record->op = bytes[5];
    record->flags = bd_get16(bytes + 6);
    record->node_epoch = bd_get32(bytes + 8);
    record->volume_epoch = bd_get32(bytes + 12);
    record->lsn = bd_get64(bytes + 16);
    record->seq = bd_get64(bytes + 24);
    record->offset = bd_get64(bytes + 32);
    record->length = bd_get64(bytes + 40);
    record->volume = bd_get32(bytes + 48);
    record->payload_crc = bd_get32(bytes + 52);
    record->chain = bd_get32(bytes + 56);
    record->header_crc = bd_get32(bytes + 60);
    if (bytes[4] != BD_FORMAT_VERSION || record->op < BD_RECORD_WRITE ||
        record->op > BD_RECORD_NOTE)
        return -EPROTO;
    if (bd_record_has_payload(record->op) && record->op != BD_RECORD_REFER &&
        (record->length == 0 || record->length > BD_RECORD_MAX_PAYLOAD))
        return -EPROTO;
    if (record->op == BD_RECORD_NOTE && (record->offset != 0 || record->length < BD_NOTE_HEADER ||
                                         record->length > BD_NOTE_MAX_PAYLOAD))
        return -EPROTO;
    if (bd_record_has_range(record->op) &&
        (record->length == 0 || record->offset + record->length < record->offset))
        return -EPROTO;
    return 0;
}

uint64_t bd_record_footprint(const struct bd_record *record)
{
    uint64_t size = BD_RECORD_HEADER + bd_record_payload(record);
    return (size + BD_RECORD_ALIGN - 1) & ~(uint64_t)(BD_RECORD_ALIGN - 1);
}

void bd_segment_header_encode(const struct bd_segment_header *header, uint8_t *out)
{
    memset(out, 0, BD_SEGMENT_HEADER_USED);
    memcpy(out, segment_magic, 8);
    bd_put32(out + 8, BD_FORMAT_VERSION);
    bd_put32(out + 12, header->slot);
    memcpy(out + 16, header->store_uuid, 16);
    bd_put64(out + 32, header->sequence);
    bd_put64(out + 40, header->first_lsn);
    bd_put32(out + 48, header->node_epoch);
    bd_put32(out + 52, header->chain);
    bd_put64(out + 56, header->segment_bytes);
    bd_put64(out + 64, header->synced_lsn);
    bd_put32(out + BD_SEGMENT_HEADER_USED - 4, bd_crc32c(0, out, BD_SEGMENT_HEADER_USED - 4));
}

int bd_segment_header_decode(const uint8_t *bytes, struct bd_segment_header *header)
{
    if (memcmp(bytes, segment_magic, 8) != 0 || bd_get32(bytes + BD_SEGMENT_HEADER_USED - 4) !=
                                                    bd_crc32c(0, bytes, BD_SEGMENT_HEADER_USED - 4))
        return -EBADMSG;
    if (bd_get32(bytes + 8) != BD_FORMAT_VERSION)
        return -EPROTO;
    header->slot = bd_get32(bytes + 12);
    memcpy(header->store_uuid, bytes + 16, 16);
    header->sequence = bd_get64(bytes + 32);
    header->first_lsn = bd_get64(bytes + 40);
    header->node_epoch = bd_get32(bytes + 48);
    header->chain = bd_get32(bytes + 52);
    header->segment_bytes = bd_get64(bytes + 56);
    header->synced_lsn = bd_get64(bytes + 64);
    return 0;
}
