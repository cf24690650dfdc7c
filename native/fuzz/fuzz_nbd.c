/* A stream of an NBD client in transmission, in any pieces, served as the loop does:
 *
 * - every request, and nothing else, is answered once: by a reply, or by mail for the engine, which
 *   is the request itself (or the empty WRITE that a failed sync leaves of it); which of them,
 *   says the protocol;
 * - replies are whole and have the cookie of their request; a READ's chunks are in order, without
 *   gaps, and have the bytes that the writes before it left;
 * - the loop's part ends at DISC, at what is no request, at a payload longer than agreed, nowhere
 *   else, and leaves the input from there on;
 * - what it wants to receive next is bounded.
 *
 * Input: switches (1; see below), a seed for the lengths of the pieces (1; 0: one piece), the
 * stream. The cookie of each request becomes its number. */
#include <errno.h>

#include "big_endian.h"
#include "crc32c.h"
#include "nbd_serve.h"
#include "nbd_wire.h"
#include "rig.h"
#include "served.h"

enum {
    KIND = 3, /* of replies */
    READ_ONLY = 4,
    BLOCKS = 8, /* of 512 bytes */
    LAZY = 16,  /* the peer takes replies at the end, or when it has to */
    SYNCS_FAIL = 32,

    SEGMENT = 64 << 10,
    READY = 8,
    VOLUME = 256 << 10,
    KNOWN = 128 << 10, /* bytes whose chunks have places */
    MAX_PAYLOAD = 64 << 10,
    MAX_REQUESTS = 4096,
    MAX_INPUT = 64 << 10,
};

struct expected {
    size_t at; /* of the request, in the stream */
    size_t bytes;
    uint64_t offset;
    uint64_t length;
    uint16_t command;
    bool mailed; /* else there is a reply */
    bool syncs;
    bool waits;   /* a READ that another thread does: it may see writes that came after it */
    uint32_t crc; /* of what a READ has to bring */
    bool answered;
};

static struct rig rig;
static struct served served;
static struct bd_nbd_terms terms;
static struct expected expected[MAX_REQUESTS];
static size_t expected_count;
static uint8_t stream[MAX_INPUT];
static uint8_t model[VOLUME];
static bool known[VOLUME];
static bool syncs_fail; /* and then writes do, after the first: what reads bring is not checked */
static uint8_t read_back[MAX_PAYLOAD];

static size_t header_bytes(void)
{
    return terms.replies == BD_NBD_EXTENDED ? 32 : 28;
}

static bool in_volume(const struct expected *request)
{
    uint64_t mask = terms.minimum_block - 1;
    return request->length > 0 && request->offset < VOLUME &&
           request->length <= VOLUME - request->offset && (request->offset & mask) == 0 &&
           (request->length & mask) == 0;
}

/* Whether the loop is to serve it, by what nbd_serve.h says. */
static bool is_ours(const struct expected *request, uint16_t flags)
{
    bool extended = terms.replies == BD_NBD_EXTENDED;
    uint16_t allowed = BD_NBD_CMD_FLAG_FUA;
    switch (request->command) {
    case BD_NBD_CMD_FLUSH:
        return flags == 0 && request->offset == 0 && request->length == 0;
    case BD_NBD_CMD_READ:
        return flags == 0 && in_volume(request) && request->length <= MAX_PAYLOAD;
    case BD_NBD_CMD_WRITE:
        if (extended != ((flags & BD_NBD_CMD_FLAG_PAYLOAD_LEN) != 0))
            return false;
        allowed |= BD_NBD_CMD_FLAG_PAYLOAD_LEN;
        break;
    case BD_NBD_CMD_WRITE_ZEROES:
        allowed |= BD_NBD_CMD_FLAG_NO_HOLE | BD_NBD_CMD_FLAG_FAST_ZERO;
        break;
    case BD_NBD_CMD_TRIM:
        break;
    default:
        return false;
    }
    return (flags & ~allowed) == 0 && !terms.read_only && in_volume(request);
}

/* What becomes of the volume, and what a READ of it has to bring. */
static void apply(struct expected *request, const uint8_t *payload)
{
    size_t length = (size_t)request->length;
    uint8_t *at = model + request->offset;
    switch (request->command) {
    case BD_NBD_CMD_READ:
        request->waits = memchr(known + request->offset, 0, length) != NULL;
        request->crc = bd_crc32c(0, at, length);
        return;
    case BD_NBD_CMD_FLUSH:
        return;
    case BD_NBD_CMD_WRITE:
        memcpy(at, payload, length);
        break;
    default:
        memset(at, 0, length);
    }
    memset(known + request->offset, 1, length);
}

/* Note what has to come of the stream, and number its cookies; where it is served up to. */
static size_t read_stream(size_t length, bool *stops)
{
    bool extended = terms.replies == BD_NBD_EXTENDED;
    size_t at = 0;
    *stops = false;
    expected_count = 0;
    while (length - at >= header_bytes()) {
        uint8_t *header = stream + at;
        struct expected *request = &expected[expected_count];
        memset(request, 0, sizeof *request);
        uint16_t flags = bd_get_be16(header + 4);
        request->at = at;
        request->command = bd_get_be16(header + 6);
        request->offset = bd_get_be64(header + 16);
        request->length = extended ? bd_get_be64(header + 24) : bd_get_be32(header + 24);
        bool follows = extended ? (flags & BD_NBD_CMD_FLAG_PAYLOAD_LEN) != 0
                                : request->command == BD_NBD_CMD_WRITE;
        uint32_t magic = extended ? BD_NBD_EXTENDED_REQUEST_MAGIC : BD_NBD_REQUEST_MAGIC;
        if (bd_get_be32(header) != magic || request->command == BD_NBD_CMD_DISC ||
            (follows && request->length > MAX_PAYLOAD)) {
            *stops = true;
            return at;
        }
        bd_put_be64(header + 8, expected_count);
        request->bytes = header_bytes() + (follows ? (size_t)request->length : 0);
        if (length - at < request->bytes)
            return at;
        request->mailed = !is_ours(request, flags);
        request->syncs = !request->mailed && (request->command == BD_NBD_CMD_FLUSH ||
                                              (flags & BD_NBD_CMD_FLAG_FUA) != 0);
        if (!request->mailed)
            apply(request, header + header_bytes());
        at += request->bytes;
        expected_count++;
    }
    return at;
}

/* The request that an answer is for, once. */
static struct expected *answered(uint64_t cookie)
{
    CHECK(cookie < expected_count);
    struct expected *request = &expected[cookie];
    CHECK(!request->answered);
    request->answered = true;
    return request;
}

static void check_mail(void)
{
    size_t at = 0;
    while (at < served.mail_length) {
        const uint8_t *mail = served.mail + at;
        CHECK(served.mail_length - at >= header_bytes());
        struct expected *request = answered(bd_get_be64(mail + 8));
        const uint8_t *asked = stream + request->at;
        CHECK(request->mailed || request->waits || syncs_fail);
        CHECK_EQ(bd_get_be32(mail), bd_get_be32(asked));
        /* What is the loop's own has a length. */
        bool empty = !request->mailed && request->command != BD_NBD_CMD_FLUSH &&
                     bd_get_be32(mail + 24) == 0 && bd_get_be32(mail + header_bytes() - 4) == 0;
        if (empty) {
            CHECK(request->syncs);
            CHECK_EQ(bd_get_be16(mail + 4), BD_NBD_CMD_FLAG_FUA);
            CHECK_EQ(bd_get_be16(mail + 6), BD_NBD_CMD_WRITE);
            CHECK_EQ(bd_get_be64(mail + 16), request->offset);
            at += header_bytes();
            continue;
        }
        CHECK(request->bytes <= served.mail_length - at);
        CHECK(memcmp(mail, asked, request->bytes) == 0);
        at += request->bytes;
    }
}

static void expect_data(const struct expected *request, const uint8_t *data)
{
    if (!request->waits && !syncs_fail)
        CHECK_EQ(bd_crc32c(0, data, (size_t)request->length), request->crc);
}

/* The rest of a READ's chunks, the first of which is at `at`; behind the last. */
static size_t check_chunks(const struct expected *request, uint64_t cookie, size_t at)
{
    bool extended = terms.replies == BD_NBD_EXTENDED;
    size_t header = extended ? BD_NBD_EXTENDED_REPLY : BD_NBD_STRUCTURED_REPLY;
    size_t done = 0;
    bool last = false;
    CHECK_EQ(request->command, BD_NBD_CMD_READ);
    while (!last) {
        const uint8_t *chunk = served.sent + at;
        CHECK(served.sent_length - at >= header);
        CHECK_EQ(bd_get_be32(chunk),
                 extended ? BD_NBD_EXTENDED_REPLY_MAGIC : BD_NBD_STRUCTURED_REPLY_MAGIC);
        CHECK(bd_get_be64(chunk + 8) == cookie);
        last = bd_get_be16(chunk + 4) == BD_NBD_REPLY_FLAG_DONE;
        CHECK(last || bd_get_be16(chunk + 4) == 0);
        uint64_t length = extended ? bd_get_be64(chunk + 24) : bd_get_be32(chunk + 16);
        if (extended)
            CHECK_EQ(bd_get_be64(chunk + 16), request->offset);
        CHECK(length >= BD_NBD_CHUNK_OFFSET && length <= served.sent_length - at - header);
        CHECK_EQ(bd_get_be64(chunk + header), request->offset + done);
        bool hole = bd_get_be16(chunk + 6) == BD_NBD_REPLY_OFFSET_HOLE;
        size_t bytes = (size_t)length - BD_NBD_CHUNK_OFFSET;
        if (hole) {
            CHECK_EQ(length, 12);
            bytes = bd_get_be32(chunk + header + 8);
        } else {
            CHECK_EQ(bd_get_be16(chunk + 6), BD_NBD_REPLY_OFFSET_DATA);
        }
        CHECK(bytes > 0 && bytes <= request->length - done);
        if (hole)
            memset(read_back + done, 0, bytes);
        else
            memcpy(read_back + done, chunk + header + BD_NBD_CHUNK_OFFSET, bytes);
        done += bytes;
        at += header + (size_t)length;
    }
    CHECK_EQ(done, request->length);
    expect_data(request, read_back);
    return at;
}

static void check_replies(void)
{
    size_t at = 0;
    while (at < served.sent_length) {
        const uint8_t *reply = served.sent + at;
        CHECK(served.sent_length - at >= BD_NBD_SIMPLE_REPLY);
        uint64_t cookie = bd_get_be64(reply + 8);
        struct expected *request = answered(cookie);
        CHECK(!request->mailed);
        bool reads = request->command == BD_NBD_CMD_READ;
        if (reads && terms.replies != BD_NBD_SIMPLE) {
            at = check_chunks(request, cookie, at);
        } else if (terms.replies == BD_NBD_EXTENDED) {
            CHECK(served.sent_length - at >= BD_NBD_EXTENDED_REPLY);
            CHECK_EQ(bd_get_be32(reply), BD_NBD_EXTENDED_REPLY_MAGIC);
            CHECK_EQ(bd_get_be16(reply + 4), BD_NBD_REPLY_FLAG_DONE);
            CHECK_EQ(bd_get_be16(reply + 6), BD_NBD_REPLY_NONE);
            CHECK_EQ(bd_get_be64(reply + 16), request->offset);
            CHECK_EQ(bd_get_be64(reply + 24), 0);
            at += BD_NBD_EXTENDED_REPLY;
        } else {
            CHECK_EQ(bd_get_be32(reply), BD_NBD_SIMPLE_REPLY_MAGIC);
            CHECK_EQ(bd_get_be32(reply + 4), 0);
            at += BD_NBD_SIMPLE_REPLY;
            size_t length = reads ? (size_t)request->length : 0;
            CHECK(length <= served.sent_length - at);
            if (reads)
                expect_data(request, served.sent + at);
            at += length;
        }
    }
}

/* Feed all of it, or up to a stop; bytes that were not served. */
static size_t feed(size_t length, uint32_t seed, bool lazy, enum bd_served *said)
{
    size_t fed = 0;
    *said = BD_SERVED_ALL;
    while (fed < length && *said == BD_SERVED_ALL) {
        size_t piece = served_piece(&seed, length - fed);
        *said = served_feed(&served, stream + fed, piece);
        fed += piece;
        served_settle(&served); /* so that what is read then is known here */
        if (!lazy)
            served_drain(&served);
        CHECK(served.client->need <= header_bytes() + MAX_PAYLOAD);
        CHECK(!served.client->cut);
    }
    return length - fed + (served.client->input.end - served.client->input.start);
}

static void begin(uint8_t switches)
{
    static const enum bd_nbd_replies kinds[] = {BD_NBD_SIMPLE, BD_NBD_STRUCTURED, BD_NBD_EXTENDED,
                                                BD_NBD_STRUCTURED};
    terms = (struct bd_nbd_terms){.replies = kinds[switches & KIND],
                                  .read_only = (switches & READ_ONLY) != 0,
                                  .size = VOLUME,
                                  .minimum_block = (switches & BLOCKS) != 0 ? 512 : 1,
                                  .max_payload = MAX_PAYLOAD};
    rig_init(&rig, SEGMENT, READY, VOLUME);
    rig_holes(&rig, KNOWN / RIG_CHUNK);
    syncs_fail = (switches & SYNCS_FAIL) != 0;
    for (int i = 0; i < READY && syncs_fail; i++)
        rig.files[i].fail_sync = -EIO;
    memset(model, 0, sizeof model);
    memset(known, 0, sizeof known);
    memset(known, 1, KNOWN);
    int fd = served_begin(&served);
    served.client = bd_nbd_client_new(rig.volume, fd, &terms, NULL, 0);
    CHECK(served.client != NULL);
    served.client->loop = served.loop;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t switches = (uint8_t)take(&input, 1);
    uint32_t seed = (uint32_t)take(&input, 1);
    size_t length;
    const uint8_t *bytes = take_bytes(&input, MAX_INPUT, &length);
    if (length > 0)
        memcpy(stream, bytes, length);
    begin(switches);
    bool stops;
    size_t until = read_stream(length, &stops);
    enum bd_served said;
    size_t left = feed(length, seed, (switches & LAZY) != 0, &said);
    CHECK_EQ(left, length - until);
    CHECK_EQ(said == BD_SERVED_STOP, stops);
    served_settle(&served);
    served_drain(&served);
    check_mail();
    check_replies();
    for (size_t i = 0; i < expected_count; i++)
        CHECK(expected[i].answered);
    served_end(&served);
    rig_destroy(&rig);
    return 0;
}
