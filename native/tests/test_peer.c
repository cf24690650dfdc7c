/* APPEND and ACK as they cross the wire, and whatever else may lie there in their place. */
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "member.h"
#include "peer.h"
#include "record.h"
#include "rig.h"
#include "tap.h"

enum { SEGMENT = 1 << 20, VOLUME = 1 << 24, ROUNDS = 20000 };

static const struct bd_peer_session session = {.theirs = 0x1122334455667788, .mine = 42};

static void seal(uint8_t *head, size_t length)
{
    uint32_t crc = bd_crc32c(0, head, 36);
    bd_put32(head + 36, bd_crc32c(crc, head + 40, length - 40));
}

static void make_append(uint8_t head[BD_PEER_APPEND_BYTES])
{
    memset(head, 0, BD_PEER_APPEND_BYTES);
    memcpy(head, "BPER\1\22\1\0", 8);
    bd_put64(head + 8, session.theirs);
    bd_put64(head + 16, session.mine);
    bd_put64(head + 24, 7);
    bd_put32(head + 32, 49);
    memset(head + 40, 'v', 16);
    for (int i = 0; i < 4; i++)
        bd_put64(head + 56 + 8 * i, (uint64_t)i + 1);
    seal(head, BD_PEER_APPEND_BYTES);
}

/* As a buffer of exactly that length, for ASan to see what is read behind it. */
static bool is_append(const uint8_t *head, size_t length, struct bd_peer_append *append)
{
    uint8_t *copy = malloc(length > 0 ? length : 1);
    CHECK(copy != NULL);
    memcpy(copy, head, length);
    bool is = bd_peer_is_append(copy, length, &session, append);
    if (is)
        append->volume = head + (append->volume - copy);
    free(copy);
    return is;
}

static void test_an_append_is_read(void)
{
    uint8_t head[BD_PEER_APPEND_BYTES];
    make_append(head);
    struct bd_peer_append append;
    CHECK(is_append(head, sizeof head, &append));
    CHECK_EQ(append.request, 7);
    CHECK(append.volume == head + 40);
    CHECK_EQ(append.epoch, 1);
    CHECK_EQ(append.written, 2);
    CHECK_EQ(append.first_seq, 3);
    CHECK_EQ(append.last_seq, 4);
}

static void test_a_changed_byte_is_not_read(void)
{
    for (size_t at = 0; at < BD_PEER_APPEND_BYTES; at++) {
        for (int bit = 0; bit < 8; bit++) {
            uint8_t head[BD_PEER_APPEND_BYTES];
            make_append(head);
            head[at] ^= (uint8_t)(1 << bit);
            struct bd_peer_append append;
            CHECK(!is_append(head, sizeof head, &append));
            /* With the right checksum: numbers and ids may be what they are, the rest may not. */
            seal(head, sizeof head);
            bool number = (at >= 24 && at < 32) || (at >= 36 && at < 88);
            CHECK_EQ(is_append(head, sizeof head, &append), number);
        }
    }
    uint8_t head[BD_PEER_APPEND_BYTES];
    make_append(head);
    bd_put64(head + 24, 0); /* nothing is asked */
    seal(head, sizeof head);
    struct bd_peer_append append;
    CHECK(!is_append(head, sizeof head, &append));
}

static void test_other_lengths_and_random_bytes_are_not_read(void)
{
    uint8_t head[2 * BD_PEER_APPEND_BYTES] = {0};
    make_append(head);
    struct bd_peer_append append;
    for (size_t length = 0; length < sizeof head; length++)
        CHECK_EQ(is_append(head, length, &append), length == BD_PEER_APPEND_BYTES);
    srand(1);
    for (int i = 0; i < ROUNDS; i++) {
        for (size_t at = 0; at < sizeof head; at++)
            head[at] = (uint8_t)rand();
        CHECK(!is_append(head, (size_t)rand() % sizeof head, &append));
    }
}

static void test_an_ack_says_what_it_is_told(void)
{
    uint8_t *out = malloc(BD_PEER_ACK_BYTES);
    CHECK(out != NULL);
    bd_peer_ack(out, &session, 9, 3, 20, 10);
    CHECK(memcmp(out, "BPER\1\21\0\0", 8) == 0);
    CHECK_EQ(bd_get64(out + 8), session.mine);
    CHECK_EQ(bd_get64(out + 16), session.theirs);
    CHECK_EQ(bd_get64(out + 24), 9);
    CHECK_EQ(bd_get32(out + 32), 24);
    CHECK_EQ(bd_get64(out + 40), 3);
    CHECK_EQ(bd_get64(out + 48), 20);
    CHECK_EQ(bd_get64(out + 56), 10);
    uint32_t crc = bd_get32(out + 36);
    seal(out, BD_PEER_ACK_BYTES);
    CHECK_EQ(bd_get32(out + 36), crc);
    free(out);
}

/* As the one who has asked reads it: the other side of the same session. */
static bool is_ack(const uint8_t *head, size_t length, struct bd_peer_acked *ack)
{
    struct bd_peer_session other = {.theirs = session.mine, .mine = session.theirs};
    uint8_t *copy = malloc(length > 0 ? length : 1);
    CHECK(copy != NULL);
    memcpy(copy, head, length);
    bool is = bd_peer_is_ack(copy, length, &other, ack);
    free(copy);
    return is;
}

static void test_an_ack_is_read_and_nothing_else(void)
{
    uint8_t head[2 * BD_PEER_ACK_BYTES] = {0};
    bd_peer_ack(head, &session, 9, 3, 20, 10);
    struct bd_peer_acked ack;
    for (size_t length = 0; length < sizeof head; length++)
        CHECK_EQ(is_ack(head, length, &ack), length == BD_PEER_ACK_BYTES);
    CHECK_EQ(ack.request, 9);
    CHECK_EQ(ack.epoch, 3);
    CHECK_EQ(ack.received, 20);
    CHECK_EQ(ack.durable, 10);
    for (size_t at = 0; at < BD_PEER_ACK_BYTES; at++) {
        for (int bit = 0; bit < 8; bit++) {
            bd_peer_ack(head, &session, 9, 3, 20, 10);
            head[at] ^= (uint8_t)(1 << bit);
            CHECK(!is_ack(head, BD_PEER_ACK_BYTES, &ack));
            seal(head, BD_PEER_ACK_BYTES);
            bool top = at >= 40 && at % 8 == 7 && bit == 7; /* of a number below 2^63 */
            bool fits = bd_get64(head + 56) <= bd_get64(head + 48);
            bool number = (at >= 24 && at < 32) || (at >= 36 && !top && fits);
            CHECK_EQ(is_ack(head, BD_PEER_ACK_BYTES, &ack), number);
        }
    }
    bd_peer_ack(head, &session, 9, 0, 20, 10); /* no epoch */
    CHECK(!is_ack(head, BD_PEER_ACK_BYTES, &ack));
}

/* Records of one node, appended by another: changed in one byte nothing of them is, and the next
 * ones go on as if nothing had been. */
static void test_changed_records_are_not_appended(void)
{
    struct rig from, to;
    rig_init(&from, SEGMENT, 8, VOLUME);
    rig_init(&to, SEGMENT, 8, VOLUME);
    uint64_t start;
    CHECK_EQ(bd_tap_open(from.volume, 4 << 20, &start), 0);
    bd_member_take_plain(to.volume, 5);
    uint8_t *room = malloc(BD_TAP_MIN_BUFFER);
    CHECK(room != NULL);
    srand(2);
    uint64_t durable;
    uint64_t have = 0;
    for (int i = 0; i < 60; i++) {
        for (int each = 0; each <= i % 3; each++)
            rig_write(&from, (uint64_t)(rand() % 1000) * 4096, 512, (uint8_t)i);
        struct bd_taken taken;
        CHECK_EQ(bd_tap_take(from.volume, room, BD_TAP_MIN_BUFFER, false, &taken), 0);
        uint8_t *bytes = malloc(taken.length);
        CHECK(bytes != NULL);
        memcpy(bytes, room, taken.length);
        struct bd_member_plain asked = {5, from.volume->epoch, taken.first_seq, taken.last_seq};
        for (int each = 0; each < 40; each++) {
            size_t at = (size_t)rand() % taken.length;
            uint8_t bit = (uint8_t)(1 << rand() % 8);
            bytes[at] ^= bit;
            if (bd_member_append_plain(to.volume, &asked, bytes, taken.length, 1, 1, &durable)) {
                CHECK_EQ(memcmp(bytes, room, taken.length), 0); /* never: each bit is checked */
            }
            bytes[at] ^= bit;
            size_t cut = (size_t)rand() % taken.length;
            uint8_t *part = malloc(cut > 0 ? cut : 1);
            CHECK(part != NULL);
            memcpy(part, room, cut);
            CHECK(!bd_member_append_plain(to.volume, &asked, part, cut, 1, 1, &durable));
            free(part);
        }
        CHECK_EQ(to.volume->seq, have);
        CHECK(bd_member_append_plain(to.volume, &asked, bytes, taken.length, 1, 77, &durable));
        CHECK_EQ(to.volume->seq, taken.last_seq);
        have = taken.last_seq;
        free(bytes);
    }
    CHECK_EQ(bd_member_answered_ns(to.volume), 77);
    CHECK_EQ(bd_tap_close(from.volume), 0);
    free(room);
    rig_destroy(&from);
    rig_destroy(&to);
}

int main(void)
{
    test_an_append_is_read();
    test_a_changed_byte_is_not_read();
    test_other_lengths_and_random_bytes_are_not_read();
    test_an_ack_says_what_it_is_told();
    test_an_ack_is_read_and_nothing_else();
    test_changed_records_are_not_appended();
    return 0;
}
