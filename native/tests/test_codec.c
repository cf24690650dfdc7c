/* Codecs: round trips, prefixes, and stored bytes that are garbage. */
#include <errno.h>
#include <string.h>

#include "check.h"
#include "codec.h"

enum { MAX_LENGTH = 1 << 20 };

static const uint8_t codecs[] = {BD_CODEC_LZ4, BD_CODEC_ZSTD, BD_CODEC_IGZIP};
static uint64_t seed = 7;

/* Pieces of what came before, and some new bytes: what a codec is made for. */
static void fill_text(uint8_t *out, size_t length)
{
    size_t at = 0;
    while (at < length) {
        size_t piece = 1 + random_below(&seed, 60);
        if (piece > length - at)
            piece = length - at;
        if (at > 0 && random_below(&seed, 4) != 0) {
            size_t from = random_below(&seed, at);
            for (size_t i = 0; i < piece; i++)
                out[at + i] = out[from + i];
        } else {
            random_bytes(&seed, out + at, piece);
        }
        at += piece;
    }
}

/* `length` stored bytes in a piece of memory of just that size, so that a sanitizer sees every
 * access beyond its end. */
static uint8_t *exactly(const uint8_t *bytes, size_t length)
{
    uint8_t *copy = malloc(length > 0 ? length : 1);
    CHECK(copy != NULL);
    memcpy(copy, bytes, length);
    return copy;
}

static void check_round_trip(uint8_t codec, const uint8_t *raw, size_t length)
{
    size_t capacity = length + length / 8 + 1024;
    uint8_t *packed = malloc(capacity);
    CHECK(packed != NULL);
    ssize_t used = bd_codec_encode(codec, raw, length, packed, capacity);
    CHECK(used > 0);
    uint8_t *stored = exactly(packed, (size_t)used);
    size_t wanted[] = {length, 1, length / 2 + 1, length > 600 ? length - 600 : length, length - 1};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        uint8_t *got = malloc(length);
        CHECK(got != NULL);
        memset(got, 0x5a, length);
        CHECK_EQ(bd_codec_decode(codec, stored, (size_t)used, got, length, wanted[i]), 0);
        CHECK(memcmp(got, raw, wanted[i]) == 0);
        free(got);
    }
    if (used > 1) /* there is always less room than it needs */
        CHECK_EQ(bd_codec_encode(codec, raw, length, packed, (size_t)used - 1), 0);
    free(stored);
    free(packed);
}

static void test_round_trips(void)
{
    static uint8_t raw[MAX_LENGTH];
    static const size_t lengths[] = {2,     100,   512,    4096,   4608,      16384,
                                     65536, 65537, 131072, 262144, MAX_LENGTH};
    for (size_t codec = 0; codec < sizeof codecs; codec++) {
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            fill_text(raw, lengths[i]);
            check_round_trip(codecs[codec], raw, lengths[i]);
            memset(raw, 7, lengths[i]);
            check_round_trip(codecs[codec], raw, lengths[i]);
        }
    }
}

/* Random bytes do not get smaller: the encoder says so, and stays within its capacity. */
static void test_what_does_not_fit(void)
{
    enum { LENGTH = 65536, CAPACITY = LENGTH * 88 / 100 };
    static uint8_t raw[LENGTH];
    random_bytes(&seed, raw, LENGTH);
    for (size_t i = 0; i < sizeof codecs; i++) {
        for (size_t capacity = 0; capacity <= CAPACITY; capacity += capacity < 40 ? 1 : 9001) {
            uint8_t *stored = malloc(capacity + 1);
            CHECK(stored != NULL);
            stored[capacity] = 0xee;
            CHECK_EQ(bd_codec_encode(codecs[i], raw, LENGTH, stored, capacity), 0);
            CHECK_EQ(stored[capacity], 0xee);
            free(stored);
        }
    }
}

/* Decode bytes that came from anywhere: an error, or as many bytes as were asked for; never an
 * access that a sanitizer reports, and never another result for the same bytes. */
static void decode_anything(uint8_t codec, const uint8_t *bytes, size_t stored_length,
                            size_t raw_length)
{
    uint8_t *stored = exactly(bytes, stored_length);
    size_t wanted[] = {raw_length, 1 + random_below(&seed, raw_length)};
    int results[2];
    uint8_t *got[2];
    for (int i = 0; i < 2; i++) {
        got[i] = malloc(raw_length);
        CHECK(got[i] != NULL);
        results[i] = bd_codec_decode(codec, stored, stored_length, got[i], raw_length, wanted[i]);
        CHECK(results[i] == 0 || results[i] == -EBADMSG);
    }
    if (results[0] == 0) {
        CHECK_EQ(results[1], 0);
        CHECK(memcmp(got[0], got[1], wanted[1]) == 0);
    }
    free(got[0]);
    free(got[1]);
    free(stored);
}

static void test_garbage(void)
{
    static uint8_t bytes[8192];
    for (int round = 0; round < 3000; round++) {
        size_t length = random_below(&seed, round % 2 ? 64 : sizeof bytes);
        random_bytes(&seed, bytes, length);
        for (size_t i = 0; i < sizeof codecs; i++)
            decode_anything(codecs[i], bytes, length, 1 + random_below(&seed, 20000));
    }
}

/* Real stored bytes with bits flipped, cut, lengthened, or of another raw length. */
static void test_damaged(void)
{
    enum { LENGTH = 8192 };
    static uint8_t raw[LENGTH];
    static uint8_t packed[2 * LENGTH];
    for (int round = 0; round < 1500; round++) {
        fill_text(raw, LENGTH);
        for (size_t i = 0; i < sizeof codecs; i++) {
            ssize_t used = bd_codec_encode(codecs[i], raw, LENGTH, packed, LENGTH + 1024);
            CHECK(used > 0);
            random_bytes(&seed, packed + used, 16);
            size_t length = (size_t)used;
            size_t raw_length = LENGTH;
            switch (round % 4) {
            case 0:
                for (uint64_t flips = 1 + random_below(&seed, 4); flips > 0; flips--)
                    packed[random_below(&seed, length)] ^= (uint8_t)(1 << random_below(&seed, 8));
                break;
            case 1:
                length = random_below(&seed, length);
                break;
            case 2:
                length += 1 + random_below(&seed, 16);
                break;
            default:
                raw_length = 1 + random_below(&seed, 2 * LENGTH);
                break;
            }
            decode_anything(codecs[i], packed, length, raw_length);
        }
    }
}

/* More or less than the raw length is an error whenever all of it is asked for. */
static void test_the_raw_length_is_exact(void)
{
    enum { LENGTH = 16384 };
    static uint8_t raw[LENGTH];
    static uint8_t packed[2 * LENGTH];
    static uint8_t got[2 * LENGTH];
    fill_text(raw, LENGTH);
    for (size_t i = 0; i < sizeof codecs; i++) {
        uint8_t codec = codecs[i];
        size_t used = (size_t)bd_codec_encode(codec, raw, LENGTH, packed, sizeof packed);
        CHECK_EQ(bd_codec_decode(codec, packed, used, got, LENGTH, LENGTH), 0);
        CHECK_EQ(bd_codec_decode(codec, packed, used, got, LENGTH - 1, LENGTH - 1), -EBADMSG);
        CHECK_EQ(bd_codec_decode(codec, packed, used, got, LENGTH + 1, LENGTH + 1), -EBADMSG);
        CHECK_EQ(bd_codec_decode(codec, packed, used, got, LENGTH + 9, LENGTH + 1), -EBADMSG);
        CHECK_EQ(bd_codec_decode(codec, packed, used - 1, got, LENGTH, LENGTH), -EBADMSG);
    }
}

static void test_arguments(void)
{
    uint8_t bytes[16] = {0};
    uint8_t out[16] = {0};
    for (uint8_t codec = 0; codec < BD_CODEC_COUNT; codec++) {
        CHECK_EQ(bd_codec_decode(codec, bytes, 16, out, 0, 0), -EBADMSG);
        CHECK_EQ(bd_codec_decode(codec, bytes, 0, out, 16, 16), -EBADMSG);
        CHECK_EQ(bd_codec_decode(codec, bytes, 16, out, 16, 17), -EBADMSG);
        CHECK_EQ(bd_codec_decode(codec, bytes, 16, out, (size_t)BD_CODEC_MAX_RAW + 1, 1), -EBADMSG);
        CHECK_EQ(bd_codec_encode(codec, bytes, 0, out, 16), -EINVAL);
    }
    CHECK_EQ(bd_codec_decode(BD_CODEC_COUNT, bytes, 16, out, 16, 16), -EINVAL);
    CHECK_EQ(bd_codec_encode(BD_CODEC_COUNT, bytes, 16, out, 16), -EINVAL);
    memset(bytes, 3, sizeof bytes);
    CHECK_EQ(bd_codec_encode(BD_CODEC_NONE, bytes, 16, out, 15), 0);
    CHECK_EQ(bd_codec_encode(BD_CODEC_NONE, bytes, 16, out, 16), 16);
    CHECK(memcmp(bytes, out, 16) == 0);
    CHECK_EQ(bd_codec_decode(BD_CODEC_NONE, bytes, 15, out, 16, 16), -EBADMSG);
    CHECK_EQ(bd_codec_decode(BD_CODEC_NONE, bytes, 16, out, 16, 16), 0);
}

static void test_scratch(void)
{
    uint8_t *first = bd_codec_scratch(1000);
    CHECK(first != NULL);
    memset(first, 1, 1000);
    CHECK(bd_codec_scratch(500) == first);
    uint8_t *larger = bd_codec_scratch(100000);
    CHECK(larger != NULL);
    memset(larger, 1, 100000);
}

int main(void)
{
    test_round_trips();
    test_what_does_not_fit();
    test_garbage();
    test_damaged();
    test_the_raw_length_is_exact();
    test_arguments();
    test_scratch();
    return 0;
}
