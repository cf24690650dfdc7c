/* Records of one volume, through a tap, into a member: the same bytes under the same seqs. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "member.h"
#include "rig.h"
#include "tap.h"

enum { SEGMENT = 4 << 20, VOLUME = 8 << 20, LIMIT = 16 << 20, BUFFER = 4 << 20 };

struct pair {
    struct rig from;
    struct rig to;
    uint8_t *buffer;
};

static void pair_init(struct pair *pair, uint64_t limit)
{
    uint64_t seq = 99;
    rig_init(&pair->from, SEGMENT, 8, VOLUME);
    rig_init(&pair->to, SEGMENT, 8, VOLUME);
    rig_holes(&pair->from, VOLUME / RIG_CHUNK);
    rig_holes(&pair->to, VOLUME / RIG_CHUNK);
    pair->buffer = malloc(BUFFER);
    CHECK(pair->buffer != NULL);
    CHECK_EQ(bd_tap_open(pair->from.volume, limit, &seq), 0);
    CHECK_EQ(seq, 0);
}

static void pair_destroy(struct pair *pair)
{
    free(pair->buffer);
    rig_destroy(&pair->from);
    rig_destroy(&pair->to);
}

static bool readable(const struct bd_tap *tap)
{
    struct pollfd one = {.fd = tap->event, .events = POLLIN};
    return poll(&one, 1, 0) == 1;
}

static struct bd_taken take(struct pair *pair, size_t capacity)
{
    struct bd_taken taken;
    CHECK_EQ(bd_tap_take(pair->from.volume, pair->buffer, capacity, false, &taken), 0);
    return taken;
}

static int append(struct pair *pair, const uint8_t *bytes, size_t length, uint64_t *seq)
{
    struct bd_member_note note = {0};
    return bd_member_append(pair->to.volume, 1, bytes, length, ++pair->to.now_ns, true, seq, &note);
}

/* Everything that there is, in pieces of `capacity`. */
static void carry_over(struct pair *pair, size_t capacity)
{
    while (true) {
        struct bd_taken taken = take(pair, capacity);
        uint64_t seq;
        CHECK(!taken.lost);
        if (taken.length == 0)
            break;
        CHECK_EQ(taken.first_seq, pair->to.volume->seq + 1);
        CHECK_EQ(append(pair, pair->buffer, taken.length, &seq), 0);
        CHECK_EQ(seq, taken.last_seq);
    }
    CHECK_EQ(pair->to.volume->seq, pair->from.volume->seq);
}

static void what_is_written_reaches_the_member(void)
{
    struct pair pair;
    pair_init(&pair, LIMIT);
    rig_write(&pair.from, 0, 4096, 1);
    rig_write(&pair.from, 3 * 512, 512, 2);
    rig_write(&pair.from, 1 << 20, (2 << 20) + 512, 3); /* several records, two segments */
    int status;
    CHECK_EQ(rig_do(&pair.from, BD_ACTION_ZERO, 1 << 20, 65536, NULL, &status), BD_ACTION_DONE);
    CHECK(readable(pair.from.volume->tap));
    carry_over(&pair, BUFFER);
    CHECK(!readable(pair.from.volume->tap));
    rig_expect(&pair.to, 0, 3 * 512, 1);
    rig_expect(&pair.to, 3 * 512, 512, 2);
    rig_expect(&pair.to, 1 << 20, 65536, 0);
    rig_expect(&pair.to, (1 << 20) + 65536, (2 << 20) + 512 - 65536, 3);
    rig_restart(&pair.to);
    rig_holes(&pair.to, VOLUME / RIG_CHUNK);
    CHECK_EQ(pair.to.volume->seq, pair.from.volume->seq);
    rig_expect(&pair.to, (1 << 20) + 65536, 4096, 3);
    pair_destroy(&pair);
}

static void a_small_buffer_takes_whole_records(void)
{
    struct pair pair;
    pair_init(&pair, LIMIT);
    for (int i = 0; i < 40; i++)
        rig_write(&pair.from, (uint64_t)i * 131072, 100 * 1024, (uint8_t)(i + 1));
    CHECK_EQ(bd_tap_take(pair.from.volume, pair.buffer, BD_TAP_MIN_BUFFER - 1, false,
                         &(struct bd_taken){0}),
             -EINVAL);
    carry_over(&pair, BD_TAP_MIN_BUFFER);
    for (int i = 0; i < 40; i++)
        rig_expect(&pair.to, (uint64_t)i * 131072, 100 * 1024, (uint8_t)(i + 1));
    pair_destroy(&pair);
}

static void what_is_not_taken_pins_its_segment_until_the_tap_is_lost(void)
{
    struct pair pair;
    pair_init(&pair, SEGMENT + (1 << 20));
    uint32_t slots[RIG_SEGMENTS];
    rig_write(&pair.from, 0, 1 << 20, 1);
    struct bd_segment *first = pair.from.journal->current;
    for (int i = 0; i < 4; i++)
        rig_write(&pair.from, 0, 900 * 1024, 2); /* the last is in the next segment */
    CHECK(pair.from.journal->current != first);
    CHECK_EQ(bd_journal_release(pair.from.journal, 1000, slots, RIG_SEGMENTS), 0);
    rig_write(&pair.from, 0, 1 << 20, 3); /* above the limit */
    struct bd_taken taken = take(&pair, BUFFER);
    CHECK(taken.lost);
    CHECK_EQ(taken.length, 0);
    CHECK_EQ(bd_journal_release(pair.from.journal, 1000, slots, RIG_SEGMENTS), 1);
    rig_write(&pair.from, 0, 4096, 4);
    CHECK(take(&pair, BUFFER).lost);
    uint64_t seq;
    CHECK_EQ(bd_tap_begin(pair.from.volume, &seq), 0);
    CHECK_EQ(seq, pair.from.volume->seq);
    rig_write(&pair.from, 0, 4096, 5);
    taken = take(&pair, BUFFER);
    CHECK(!taken.lost);
    CHECK_EQ(taken.first_seq, seq + 1);
    uint64_t had;
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &had), -ERANGE);
    CHECK_EQ(had, 0);
    CHECK_EQ(bd_tap_close(pair.from.volume), 0);
    CHECK_EQ(bd_tap_take(pair.from.volume, pair.buffer, BUFFER, false, &taken), -ENOENT);
    pair_destroy(&pair);
}

static void records_that_are_there_are_left_out(void)
{
    struct pair pair;
    pair_init(&pair, LIMIT);
    rig_write(&pair.from, 0, 4096, 1);
    rig_write(&pair.from, 4096, 4096, 2);
    struct bd_taken taken = take(&pair, BUFFER);
    uint64_t seq;
    CHECK_EQ(append(&pair, pair.buffer, taken.length / 2, &seq), 0);
    CHECK_EQ(seq, 1);
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), 0);
    CHECK_EQ(seq, 2);
    uint64_t lsn = pair.to.journal->next_lsn;
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), 0);
    CHECK_EQ(pair.to.journal->next_lsn, lsn);
    rig_expect(&pair.to, 0, 4096, 1);
    rig_expect(&pair.to, 4096, 4096, 2);
    pair_destroy(&pair);
}

static void hostile_bytes_are_refused_as_a_whole(void)
{
    struct pair pair;
    pair_init(&pair, LIMIT);
    rig_write(&pair.from, 0, 512, 1);
    rig_write(&pair.from, 512, 512, 2);
    struct bd_taken taken = take(&pair, BUFFER);
    uint64_t seq;
    for (size_t bit = 0; bit < taken.length * 8; bit++) {
        /* exactly as long as it is said to be, for the sanitizer */
        uint8_t *copy = malloc(taken.length);
        CHECK(copy != NULL);
        memcpy(copy, pair.buffer, taken.length);
        copy[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(append(&pair, copy, taken.length, &seq) < 0);
        CHECK_EQ(seq, 0);
        free(copy);
    }
    for (size_t length = 1; length < taken.length; length++) {
        uint8_t *copy = malloc(length);
        CHECK(copy != NULL);
        memcpy(copy, pair.buffer, length);
        int error = append(&pair, copy, length, &seq);
        CHECK(error == -EBADMSG || (error == 0 && length == taken.length / 2));
        free(copy);
    }
    pair_destroy(&pair);
}

/* A record as a peer that means harm would make it, its checksums right. */
static size_t forge(uint8_t *bytes, struct bd_record record)
{
    memset(bytes, 0, 2048);
    uint8_t payload[512];
    memset(payload, 7, sizeof payload);
    if (bd_record_has_payload(record.op)) {
        memcpy(bytes + BD_RECORD_HEADER, payload, sizeof payload);
        record.payload_crc = record.payload_crc ? record.payload_crc
                                                : bd_crc32c(0, payload, bd_record_payload(&record));
    }
    bd_record_encode(&record, bytes);
    return BD_RECORD_HEADER + (bd_record_has_payload(record.op) ? 512 : 0);
}

static void forged_records_are_refused(void)
{
    static const struct {
        struct bd_record record;
        int error;
    } cases[] = {
        {{.op = BD_RECORD_WRITE, .volume_epoch = 2, .seq = 1, .length = 512}, -ESTALE},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 0, .seq = 1, .length = 512}, -ESTALE},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 2, .length = 512}, -ERANGE},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 0, .length = 512}, -EBADMSG},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 1, .offset = VOLUME, .length = 512},
         -EINVAL},
        {{.op = BD_RECORD_UNMAP, .volume_epoch = 1, .seq = 1, .offset = 512, .length = VOLUME},
         -EINVAL},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 1, .length = 512, .lsn = 1}, -EBADMSG},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 1, .length = 512, .volume = 1},
         -EBADMSG},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 1, .length = 512, .flags = 1}, -EBADMSG},
        {{.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 1, .length = 512, .payload_crc = 1},
         -EBADMSG},
        {{.op = BD_RECORD_MARK, .volume_epoch = 1, .seq = 1, .length = 512}, -EPROTO},
        {{.op = BD_RECORD_HEAD, .volume_epoch = 1, .seq = 1, .length = 512}, -EPROTO},
        {{.op = BD_RECORD_POINT, .volume_epoch = 1, .seq = 1, .length = 512}, -EPROTO},
        {{.op = BD_RECORD_REFER, .volume_epoch = 1, .seq = 1, .length = 65536}, -EPROTO},
    };
    struct pair pair;
    pair_init(&pair, LIMIT);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint64_t seq;
        size_t length = forge(pair.buffer, cases[i].record);
        CHECK_EQ(append(&pair, pair.buffer, length, &seq), cases[i].error);
        CHECK_EQ(seq, 0);
    }
    uint64_t seq;
    bd_volume_retire(pair.to.volume, true);
    size_t length = forge(
        pair.buffer,
        (struct bd_record){.op = BD_RECORD_WRITE, .volume_epoch = 1, .seq = 1, .length = 512});
    CHECK_EQ(append(&pair, pair.buffer, length, &seq), -ESHUTDOWN);
    bd_volume_retire(pair.to.volume, false);
    CHECK_EQ(append(&pair, pair.buffer, length, &seq), 0);
    rig_expect(&pair.to, 0, 512, 7);
    pair_destroy(&pair);
}

/* A NOTE of the primary, which gives the volume another size. */
static void resize(struct pair *pair, uint64_t before, uint64_t size)
{
    uint8_t payload[BD_NOTE_HEADER + 5] = {BD_NOTE_VERSION, 5};
    bd_put64(payload + 8, before);
    bd_put64(payload + 16, size);
    struct bd_record record = {.op = BD_RECORD_NOTE, .length = sizeof payload};
    struct bd_journal *journal = pair->from.journal;
    CHECK_EQ(bd_journal_add(journal, pair->from.volume, record, payload, 1, NULL), 0);
    CHECK_EQ(bd_journal_commit(journal), 0);
}

static void a_note_has_its_place_between_writes(void)
{
    struct pair pair;
    pair_init(&pair, LIMIT);
    rig_write(&pair.from, 0, 4096, 1);
    resize(&pair, VOLUME, VOLUME / 2);
    resize(&pair, VOLUME / 2, 2 * VOLUME);
    rig_write(&pair.from, 2 * VOLUME - 4096, 4096, 2);
    CHECK_EQ(pair.from.volume->seq, 4);
    struct bd_taken taken = take(&pair, BUFFER);
    CHECK_EQ(taken.last_seq, 4);
    uint64_t seq;
    struct bd_member_note note = {0};
    CHECK_EQ(bd_member_append(pair.to.volume, 1, pair.buffer, taken.length, 1, false, &seq, &note),
             -ENOMSG);
    CHECK(note.found);
    CHECK_EQ(note.lsn, 0);
    CHECK_EQ(seq, 1);
    for (uint64_t at = 2; at <= 3; at++) {
        CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), 0);
        CHECK_EQ(seq, at);
        CHECK_EQ(pair.to.volume->size, at == 2 ? VOLUME / 2 : 2 * VOLUME);
    }
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), 0);
    CHECK_EQ(seq, 4);
    rig_expect(&pair.to, 2 * VOLUME - 4096, 4096, 2);
    rig_expect(&pair.to, VOLUME - 4096, 4096, 0);
    resize(&pair, VOLUME, VOLUME / 2); /* of a size that it has not */
    taken = take(&pair, BUFFER);
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), -EINVAL);
    CHECK_EQ(seq, 4);
    pair_destroy(&pair);
}

static void a_full_member_says_how_far_it_came(void)
{
    struct pair pair;
    pair_init(&pair, LIMIT);
    for (int i = 0; i < 3; i++)
        rig_write(&pair.from, (uint64_t)i << 20, 1 << 20, (uint8_t)(i + 1));
    struct bd_taken taken = take(&pair, BUFFER);
    CHECK_EQ(taken.last_seq, 3);
    pair.to.journal->reserve = 7; /* one segment for payload */
    uint8_t *more = malloc(1 << 20);
    CHECK(more != NULL);
    memset(more, 9, 1 << 20);
    uint64_t seq;
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), 0);
    CHECK_EQ(seq, 3);
    rig_write(&pair.from, 0, 1 << 20, 4);
    taken = take(&pair, BUFFER);
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), -EAGAIN);
    CHECK_EQ(seq, 3);
    pair.to.journal->reserve = 0;
    CHECK_EQ(append(&pair, pair.buffer, taken.length, &seq), 0);
    CHECK_EQ(seq, 4);
    free(more);
    pair_destroy(&pair);
}

int main(void)
{
    what_is_written_reaches_the_member();
    a_small_buffer_takes_whole_records();
    what_is_not_taken_pins_its_segment_until_the_tap_is_lost();
    records_that_are_there_are_left_out();
    hostile_bytes_are_refused_as_a_whole();
    forged_records_are_refused();
    a_note_has_its_place_between_writes();
    a_full_member_says_how_far_it_came();
    return 0;
}
