/* Journal records, REFER payloads and segment headers: any bytes are decoded or refused, and
 *
 * - what is decoded says what the bytes say: encoding it gives the same bytes back;
 * - a record that is accepted has a payload, a footprint and a range within their bounds;
 * - the only errors are -EBADMSG and -EPROTO, and without the right checksum it is -EBADMSG.
 *
 * Input: a switch (1: make the checksums right first), then 64 bytes of record, 48 of REFER payload
 * and 128 of segment header; what is missing is zeros. */
#include <errno.h>

#include "bytes.h"
#include "crc32c.h"
#include "fuzz.h"
#include "record.h"

static const uint8_t uuid[16] = "0123456789abcdef";

static void check_record(uint8_t *bytes, bool seal)
{
    if (seal)
        bd_put32(bytes + 60, bd_crc32c(0, bytes, 60));
    struct bd_record record;
    int result = bd_record_decode(bytes, &record);
    CHECK(result == 0 || result == -EBADMSG || result == -EPROTO);
    if (result != -EBADMSG)
        CHECK_EQ(bd_crc32c(0, bytes, 60), bd_get32(bytes + 60));
    if (result != 0)
        return;
    uint8_t again[BD_RECORD_HEADER];
    bd_record_encode(&record, again);
    CHECK(memcmp(bytes, again, sizeof again) == 0);
    CHECK(bd_record_payload(&record) <= BD_RECORD_MAX_PAYLOAD);
    CHECK((bd_record_payload(&record) > 0) == bd_record_has_payload(record.op));
    uint64_t footprint = bd_record_footprint(&record);
    CHECK_EQ(footprint % BD_RECORD_ALIGN, 0);
    CHECK(footprint >= BD_RECORD_HEADER + bd_record_payload(&record));
    CHECK(footprint < BD_RECORD_HEADER + bd_record_payload(&record) + BD_RECORD_ALIGN);
    if (bd_record_has_range(record.op))
        CHECK(record.length > 0 && record.offset + record.length > record.offset);
    bd_record_sign(&record, uuid);
    CHECK(bd_record_is_signed(&record, uuid));
    record.volume ^= 1;
    CHECK(!bd_record_is_signed(&record, uuid));
}

static void check_refer(const uint8_t *bytes)
{
    struct bd_refer refer = {.start = 1, .seq = 2};
    int result = bd_refer_decode(bytes, &refer);
    CHECK(result == 0 || result == -EPROTO);
    CHECK(refer.start == 1 && refer.seq == 2);
    if (result != 0)
        return;
    CHECK(refer.height > 0 && refer.height <= BD_REFER_MAX_HEIGHT);
    uint8_t again[BD_REFER_PAYLOAD];
    bd_refer_encode(&refer, again);
    CHECK(memcmp(bytes, again, sizeof again) == 0);
}

static void check_segment_header(uint8_t *bytes, bool seal)
{
    const size_t checked = BD_SEGMENT_HEADER_USED - 4;
    if (seal)
        bd_put32(bytes + checked, bd_crc32c(0, bytes, checked));
    struct bd_segment_header header;
    int result = bd_segment_header_decode(bytes, &header);
    CHECK(result == 0 || result == -EBADMSG || result == -EPROTO);
    if (result != 0)
        return;
    uint8_t again[BD_SEGMENT_HEADER_USED];
    bd_segment_header_encode(&header, again);
    CHECK(memcmp(bytes, again, 72) == 0); /* what follows is kept free for later versions */
    struct bd_segment_header other;
    CHECK_EQ(bd_segment_header_decode(again, &other), 0);
    CHECK(other.sequence == header.sequence && other.segment_bytes == header.segment_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    bool seal = take(&input, 1) & 1;
    uint8_t bytes[BD_SEGMENT_HEADER_USED];
    const size_t lengths[] = {BD_RECORD_HEADER, BD_REFER_PAYLOAD, BD_SEGMENT_HEADER_USED};
    for (int part = 0; part < 3; part++) {
        size_t got;
        const uint8_t *from = take_bytes(&input, lengths[part], &got);
        memset(bytes, 0, sizeof bytes);
        if (got > 0)
            memcpy(bytes, from, got);
        if (part == 0)
            check_record(bytes, seal);
        else if (part == 1)
            check_refer(bytes);
        else
            check_segment_header(bytes, seal);
    }
    return 0;
}
