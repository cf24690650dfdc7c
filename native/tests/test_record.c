/* Record and segment header codecs. */
#include <errno.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "record.h"

static struct bd_record sample(uint8_t op)
{
    return (struct bd_record){.op = op,
                              .flags = 0,
                              .node_epoch = 0x01020304,
                              .volume_epoch = 0x11121314,
                              .volume = 0x21222324,
                              .lsn = UINT64_C(0x3132333435363738),
                              .seq = UINT64_C(0x4142434445464748),
                              .offset = op == BD_RECORD_NOTE ? 0 : UINT64_C(0x5152535455565758),
                              .length = 4096,
                              .payload_crc = 0x61626364,
                              .chain = 0x71727374};
}

/* Make the checksum right again after a change. */
static void seal(uint8_t *bytes)
{
    bd_put32(bytes + 60, bd_crc32c(0, bytes, 60));
}

static void test_round_trip(void)
{
    for (uint8_t op = BD_RECORD_WRITE; op <= BD_RECORD_NOTE; op++) {
        struct bd_record in = sample(op);
        struct bd_record out;
        uint8_t bytes[BD_RECORD_HEADER];
        bd_record_encode(&in, bytes);
        CHECK_EQ(bd_record_decode(bytes, &out), 0);
        CHECK_EQ(out.op, in.op);
        CHECK_EQ(out.flags, in.flags);
        CHECK_EQ(out.node_epoch, in.node_epoch);
        CHECK_EQ(out.volume_epoch, in.volume_epoch);
        CHECK_EQ(out.volume, in.volume);
        CHECK_EQ(out.lsn, in.lsn);
        CHECK_EQ(out.seq, in.seq);
        CHECK_EQ(out.offset, in.offset);
        CHECK_EQ(out.length, in.length);
        CHECK_EQ(out.payload_crc, in.payload_crc);
        CHECK_EQ(out.chain, in.chain);
        CHECK_EQ(out.header_crc, in.header_crc);
    }
}

static void test_every_single_bit_flip_is_refused(void)
{
    struct bd_record record = sample(BD_RECORD_WRITE);
    uint8_t bytes[BD_RECORD_HEADER];
    bd_record_encode(&record, bytes);
    for (int bit = 0; bit < BD_RECORD_HEADER * 8; bit++) {
        struct bd_record out;
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK_EQ(bd_record_decode(bytes, &out), -EBADMSG);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
}

static int decode_with(uint8_t op, uint64_t offset, uint64_t length)
{
    struct bd_record record = sample(op);
    record.offset = offset;
    record.length = length;
    uint8_t bytes[BD_RECORD_HEADER];
    bd_record_encode(&record, bytes);
    return bd_record_decode(bytes, &record);
}

static void test_hostile_sizes(void)
{
    for (uint8_t op = BD_RECORD_WRITE; op <= BD_RECORD_ZERO; op++) {
        CHECK_EQ(decode_with(op, 0, 0), -EPROTO);
        CHECK_EQ(decode_with(op, UINT64_MAX, 1), -EPROTO);
        CHECK_EQ(decode_with(op, UINT64_MAX - 511, 512), -EPROTO);
        CHECK_EQ(decode_with(op, UINT64_MAX - 512, 512), 0);
        CHECK_EQ(decode_with(op, 1, UINT64_MAX), -EPROTO);
    }
    CHECK_EQ(decode_with(BD_RECORD_UNMAP, 0, UINT64_MAX), 0);
    CHECK_EQ(decode_with(BD_RECORD_WRITE, 0, BD_RECORD_MAX_PAYLOAD), 0);
    CHECK_EQ(decode_with(BD_RECORD_WRITE, 0, BD_RECORD_MAX_PAYLOAD + 1), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_WRITE, 0, UINT64_MAX), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_HEAD, 0, 0), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_HEAD, 0, BD_RECORD_MAX_PAYLOAD + 1), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_POINT, 0, 0), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_POINT, 0, BD_RECORD_MAX_PAYLOAD + 1), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_NOTE, 0, BD_NOTE_HEADER), 0);
    CHECK_EQ(decode_with(BD_RECORD_NOTE, 0, BD_NOTE_HEADER - 1), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_NOTE, 0, BD_NOTE_MAX_PAYLOAD + 1), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_NOTE, 512, BD_NOTE_HEADER), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_REFER, 0, 0), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_REFER, UINT64_MAX - 4095, 4096), -EPROTO);
    CHECK_EQ(decode_with(BD_RECORD_REFER, 0, UINT64_C(1) << 60), 0);  /* its payload is short */
    CHECK_EQ(decode_with(BD_RECORD_MARK, UINT64_MAX, UINT64_MAX), 0); /* no range: a time */
}

static void test_unknown_versions_and_ops(void)
{
    for (int version = 0; version < 256; version++) {
        struct bd_record record = sample(BD_RECORD_WRITE);
        struct bd_record out = {0};
        uint8_t bytes[BD_RECORD_HEADER];
        bd_record_encode(&record, bytes);
        bytes[4] = (uint8_t)version;
        seal(bytes);
        CHECK_EQ(bd_record_decode(bytes, &out), version == BD_FORMAT_VERSION ? 0 : -EPROTO);
        CHECK_EQ(out.lsn, record.lsn); /* filled in all the same: is it the one that comes next? */
        CHECK_EQ(out.chain, record.chain);
    }
    for (int op = 0; op < 256; op++) {
        bool known = op >= BD_RECORD_WRITE && op <= BD_RECORD_NOTE;
        CHECK_EQ(decode_with((uint8_t)op, 0, 512), known ? 0 : -EPROTO);
    }
}

static void test_random_bytes_are_refused(void)
{
    uint64_t random = 1;
    uint8_t bytes[BD_SEGMENT_HEADER_USED];
    for (int i = 0; i < 2000; i++) {
        struct bd_record record;
        struct bd_segment_header header;
        random_bytes(&random, bytes, sizeof bytes);
        CHECK_EQ(bd_record_decode(bytes, &record), -EBADMSG);
        CHECK_EQ(bd_segment_header_decode(bytes, &header), -EBADMSG);
    }
    memset(bytes, 0, sizeof bytes); /* a segment as it is made */
    struct bd_record record;
    CHECK_EQ(bd_record_decode(bytes, &record), -EBADMSG);
}

static void test_footprint(void)
{
    struct bd_record record = sample(BD_RECORD_WRITE);
    for (uint64_t length = 1; length < 1000; length++) {
        record.length = length;
        uint64_t footprint = bd_record_footprint(&record);
        CHECK_EQ(footprint % BD_RECORD_ALIGN, 0);
        CHECK(footprint >= BD_RECORD_HEADER + length);
        CHECK(footprint < BD_RECORD_HEADER + length + BD_RECORD_ALIGN);
    }
    record.op = BD_RECORD_UNMAP;
    record.length = UINT64_MAX;
    CHECK_EQ(bd_record_footprint(&record), BD_RECORD_HEADER);
    record.op = BD_RECORD_REFER;
    CHECK_EQ(bd_record_payload(&record), BD_REFER_PAYLOAD);
    CHECK_EQ(bd_record_footprint(&record), 128);
}

static void test_what_a_record_refers_to(void)
{
    struct bd_refer in = {.height = 3, .source = UINT64_C(0x0102030405060708)};
    memset(in.root, 0xab, sizeof in.root);
    uint8_t bytes[BD_REFER_PAYLOAD];
    bd_refer_encode(&in, bytes);
    struct bd_refer out = {.start = 7, .seq = 9};
    CHECK_EQ(bd_refer_decode(bytes, &out), 0);
    CHECK(memcmp(out.root, in.root, sizeof in.root) == 0);
    CHECK_EQ(out.height, 3);
    CHECK_EQ(out.source, in.source);
    CHECK_EQ(out.start, 7);
    CHECK_EQ(out.seq, 9);
    for (int at = 40; at < BD_REFER_PAYLOAD; at++) { /* version, height, and what is reserved */
        uint8_t good = bytes[at];
        bytes[at] = at == 41 ? BD_REFER_MAX_HEIGHT + 1 : (uint8_t)(good + 1);
        CHECK_EQ(bd_refer_decode(bytes, &out), -EPROTO);
        bytes[at] = good;
    }
    bytes[41] = 0;
    CHECK_EQ(bd_refer_decode(bytes, &out), -EPROTO);
}

static void test_marks_are_of_one_store(void)
{
    const uint8_t store[16] = "store number one";
    const uint8_t other[16] = "store number two";
    struct bd_record mark = sample(BD_RECORD_MARK);
    CHECK(!bd_record_is_signed(&mark, store));
    bd_record_sign(&mark, store);
    uint8_t bytes[BD_RECORD_HEADER];
    bd_record_encode(&mark, bytes);
    CHECK(memcmp(bytes + 40, store, 16) == 0);
    struct bd_record out;
    CHECK_EQ(bd_record_decode(bytes, &out), 0);
    CHECK(bd_record_is_signed(&out, store));
    CHECK(!bd_record_is_signed(&out, other));
}

static void test_segment_header(void)
{
    struct bd_segment_header in = {.store_uuid = "0123456789abcde",
                                   .slot = 65535,
                                   .node_epoch = 3,
                                   .sequence = UINT64_MAX,
                                   .first_lsn = 1,
                                   .synced_lsn = UINT64_MAX - 1,
                                   .chain = 0xffffffff,
                                   .segment_bytes = 1 << 26};
    struct bd_segment_header out;
    uint8_t bytes[BD_SEGMENT_HEADER_USED];
    bd_segment_header_encode(&in, bytes);
    CHECK_EQ(bd_segment_header_decode(bytes, &out), 0);
    CHECK(memcmp(in.store_uuid, out.store_uuid, 16) == 0);
    CHECK_EQ(out.slot, in.slot);
    CHECK_EQ(out.node_epoch, in.node_epoch);
    CHECK_EQ(out.sequence, in.sequence);
    CHECK_EQ(out.first_lsn, in.first_lsn);
    CHECK_EQ(out.synced_lsn, in.synced_lsn);
    CHECK_EQ(out.chain, in.chain);
    CHECK_EQ(out.segment_bytes, in.segment_bytes);
    for (int bit = 0; bit < BD_SEGMENT_HEADER_USED * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK_EQ(bd_segment_header_decode(bytes, &out), -EBADMSG);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    bd_put32(bytes + 8, BD_FORMAT_VERSION + 1);
    bd_put32(bytes + 124, bd_crc32c(0, bytes, 124));
    CHECK_EQ(bd_segment_header_decode(bytes, &out), -EPROTO);
}

int main(void)
{
    test_round_trip();
    test_every_single_bit_flip_is_refused();
    test_hostile_sizes();
    test_unknown_versions_and_ops();
    test_random_bytes_are_refused();
    test_footprint();
    test_what_a_record_refers_to();
    test_marks_are_of_one_store();
    test_segment_header();
    return 0;
}
