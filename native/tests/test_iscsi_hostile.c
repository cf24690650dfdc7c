/* iSCSI PDUs that are not in order: the loop leaves each to Python as it came, and has changed
 * nothing; and streams that arrive in any pieces. */
#include <string.h>

#include "big_endian.h"
#include "check.h"
#include "iscsi_rig.h"

enum { SPACE = 1 << 20, ITT = 30 };

static uint8_t stream[SPACE];
static uint8_t payload[SPACE];
static uint8_t received[SPACE];

/* Spoil one byte range of a good PDU, feed it, and expect that it is left over. */
static void expect_left(struct iscsi_rig *rig, const uint8_t *pdu, size_t length)
{
    struct bd_iscsi_numbers before = bd_iscsi_client_numbers(rig->client);
    uint64_t lsn = rig->store.journal->next_lsn;
    CHECK_EQ(iscsi_rig_feed(rig, pdu, length), BD_SERVED_STOP);
    CHECK_EQ(iscsi_rig_left(rig), length);
    CHECK(memcmp(rig->client->input.data + rig->client->input.start, pdu, length) == 0);
    struct bd_iscsi_numbers after = bd_iscsi_client_numbers(rig->client);
    CHECK(memcmp(&before, &after, sizeof before) == 0);
    CHECK_EQ(rig->store.journal->next_lsn, lsn);
    iscsi_rig_silent(rig);
    rig->client->input.start = rig->client->input.end; /* Python has taken it */
}

static uint8_t *spoil32(uint8_t *pdu, size_t at, uint32_t value)
{
    bd_put_be32(pdu + at, value);
    return pdu;
}

static uint8_t *spoil8(uint8_t *pdu, size_t at, uint8_t value)
{
    pdu[at] = value;
    return pdu;
}

/* A good WRITE of 4 KiB, all of whose data comes with it; its number is not used up. */
static size_t good_write(struct iscsi_rig *rig, uint8_t *out)
{
    size_t length =
        iscsi_rig_command(rig, out, BD_SCSI_WRITE_10, ITT, 0, 4096, payload, 4096, true);
    rig->cmd_sn--;
    return length;
}

static size_t good_read(struct iscsi_rig *rig, uint8_t *out)
{
    size_t length = iscsi_rig_command(rig, out, BD_SCSI_READ_10, ITT, 0, 4096, NULL, 0, true);
    rig->cmd_sn--;
    return length;
}

static void test_commands_that_are_not_in_order(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    const struct {
        size_t at;
        uint32_t value;
    } words[] = {
        {BD_ISCSI_AT_CMD_SN, rig.cmd_sn + 1},               /* a gap */
        {BD_ISCSI_AT_CMD_SN, rig.cmd_sn - 1},               /* before the window */
        {BD_ISCSI_AT_CMD_SN, rig.cmd_sn + BD_ISCSI_WINDOW}, /* behind it */
        {BD_ISCSI_AT_ITT, BD_ISCSI_NO_TAG},                 /* reserved */
        {BD_ISCSI_AT_EDTL, 4608},                           /* residuals are the engine's */
        {BD_ISCSI_AT_EDTL, 0},                              /* */
        {BD_ISCSI_AT_LUN, 0x00020000},                      /* no such unit */
        {BD_ISCSI_AT_LUN, 0x00010000},                      /* a read-only one */
        {BD_ISCSI_AT_LUN, 0x40000000},                      /* another way to address it */
        {BD_ISCSI_AT_LUN, 0x00000001},                      /* a level below */
        {BD_ISCSI_AT_LUN + 4, 1},                           /* */
        {BD_ISCSI_AT_CDB + 2,
         ISCSI_VOLUME / ISCSI_BLOCK - 7},                  /* its end is beyond the last block */
        {BD_ISCSI_AT_CDB + 2, ISCSI_VOLUME / ISCSI_BLOCK}, /* all of it is */
        {BD_ISCSI_AT_CDB + 2, UINT32_MAX},                 /* */
        {BD_ISCSI_AT_CDB + 6, 0x00000900},                 /* another count than announced */
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        size_t length = good_write(&rig, stream);
        expect_left(&rig, spoil32(stream, words[i].at, words[i].value), length);
    }
    static const struct {
        size_t at;
        uint8_t value;
    } bytes[] = {
        {0, BD_ISCSI_SCSI_COMMAND | BD_ISCSI_IMMEDIATE},
        {1, BD_ISCSI_FINAL | BD_ISCSI_WRITE | BD_ISCSI_READ},
        {1, BD_ISCSI_FINAL},
        {1, BD_ISCSI_WRITE}, /* more is announced, and there is none */
        {1, BD_ISCSI_FINAL | BD_ISCSI_WRITE | 4},
        {4, 1}, /* an AHS */
        {BD_ISCSI_AT_CDB, 0x2e},
        {BD_ISCSI_AT_CDB, BD_SCSI_READ_10},
        {BD_ISCSI_AT_CDB + 1, 0x20}, /* WRPROTECT */
        {BD_ISCSI_AT_CDB + 6, 1},
        {BD_ISCSI_AT_CDB + 9, 4}, /* NACA */
        {0, 0x02},
        {0, 0x03},
        {0, 0x04},
        {0, 0x06},
        {0, 0x10},
        {0, 0x3f},
    };
    for (size_t i = 0; i < sizeof bytes / sizeof *bytes; i++) {
        size_t length = good_write(&rig, stream);
        expect_left(&rig, spoil8(stream, bytes[i].at, bytes[i].value), length);
    }
    size_t length = good_read(&rig, stream);
    expect_left(&rig, spoil8(stream, 1, BD_ISCSI_READ), length);
    length = good_read(&rig, stream);
    expect_left(&rig, spoil8(stream, BD_ISCSI_AT_CDB + 1, BD_SCSI_FUA), length);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, good_write(&rig, stream)), BD_SERVED_ALL);
    iscsi_rig_good(&rig, ITT);
    iscsi_rig_destroy(&rig);
}

static void test_lengths_beyond_what_was_agreed(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.first_burst = 2048;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    expect_left(&rig, stream, good_write(&rig, stream)); /* FirstBurstLength */
    good_write(&rig, stream);
    spoil32(stream, BD_ISCSI_AT_LENGTHS, rig.terms.our_max_recv + 1);
    expect_left(&rig, stream, BD_ISCSI_BHS); /* at once: nobody waits for so much */
    spoil32(stream, BD_ISCSI_AT_LENGTHS, BD_ISCSI_MAX_SEGMENT);
    expect_left(&rig, stream, BD_ISCSI_BHS);
    iscsi_rig_destroy(&rig);

    terms = iscsi_rig_terms();
    terms.immediate_data = false;
    iscsi_rig_init(&rig, &terms);
    expect_left(&rig, stream, good_write(&rig, stream));
    iscsi_rig_destroy(&rig);

    terms = iscsi_rig_terms();
    terms.their_max_recv = 512;
    iscsi_rig_init(&rig, &terms);
    size_t length = iscsi_rig_command(&rig, stream, BD_SCSI_READ_10, ITT, 0,
                                      512 * (BD_ISCSI_MAX_SEGMENTS + 1), NULL, 0, true);
    expect_left(&rig, stream, length);
    iscsi_rig_destroy(&rig);
}

static void test_damage_that_digests_show(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.header_digest = terms.data_digest = true;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    size_t length = good_write(&rig, stream);
    for (size_t at = 8; at < length; at += 61) {
        length = good_write(&rig, stream);
        stream[at] ^= 0x10;
        expect_left(&rig, stream, length);
    }
    iscsi_rig_destroy(&rig);
}

/* Begin a WRITE of 16 KiB that has asked for its first 8 KiB, 4 KiB of which are there. */
static uint32_t begin_collecting(struct iscsi_rig *rig)
{
    uint8_t bhs[BD_ISCSI_BHS];
    size_t length = iscsi_rig_command(rig, stream, BD_SCSI_WRITE_10, ITT, 0, 16384, NULL, 0, true);
    CHECK_EQ(iscsi_rig_feed(rig, stream, length), BD_SERVED_ALL);
    CHECK_EQ(iscsi_rig_receive(rig, bhs, NULL), 0);
    uint32_t ttt = bd_get_be32(bhs + BD_ISCSI_AT_TTT);
    length = iscsi_rig_data_out(rig, stream, ITT, ttt, 0, 0, payload, 4096, false);
    CHECK_EQ(iscsi_rig_feed(rig, stream, length), BD_SERVED_ALL);
    return ttt;
}

static void test_data_out_that_is_not_in_order(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.max_bursts = 1;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    uint32_t ttt = begin_collecting(&rig);
    const struct {
        uint32_t itt;
        uint32_t ttt;
        uint32_t data_sn;
        size_t offset;
        size_t length;
        bool final;
    } wrong[] = {
        {ITT + 1, ttt, 1, 4096, 4096, true},         /* of nothing */
        {ITT, ttt + 1, 1, 4096, 4096, true},         /* a tag that nobody gave */
        {ITT, BD_ISCSI_NO_TAG, 0, 4096, 4096, true}, /* not asked for */
        {ITT, ttt, 0, 4096, 4096, true},             /* DataSN */
        {ITT, ttt, 2, 4096, 4096, true},             /* */
        {ITT, ttt, 1, 0, 4096, true},                /* again */
        {ITT, ttt, 1, 4608, 3584, true},             /* a gap */
        {ITT, ttt, 1, UINT32_MAX - 511, 4096, true}, /* */
        {ITT, ttt, 1, 4096, 4608, true},             /* more than asked for */
        {ITT, ttt, 1, 4096, 8192, false},            /* */
        {ITT, ttt, 1, 4096, 2048, true},             /* an early end */
        {ITT, ttt, 1, 4096, 4096, false},            /* a late one */
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        size_t length =
            iscsi_rig_data_out(&rig, stream, wrong[i].itt, wrong[i].ttt, wrong[i].data_sn,
                               wrong[i].offset, payload, wrong[i].length, wrong[i].final);
        expect_left(&rig, stream, length);
        const struct bd_iscsi_command *command = bd_iscsi_client_commands(rig.client);
        CHECK_EQ(command->got, 4096);
    }
    /* A second command with the tag of one that collects. */
    expect_left(&rig, stream, good_write(&rig, stream));
    iscsi_rig_destroy(&rig);
}

static void test_the_window_is_held(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.max_held = 1;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    uint8_t bhs[BD_ISCSI_BHS];
    for (uint32_t itt = 0; itt < BD_ISCSI_WINDOW; itt++) {
        size_t length =
            iscsi_rig_command(&rig, stream, BD_SCSI_WRITE_10, itt, 0, 1024, NULL, 0, true);
        CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    }
    CHECK_EQ(iscsi_rig_receive(&rig, bhs, NULL), 0); /* the one R2T that there is room for */
    CHECK_EQ(bd_iscsi_client_open(rig.client, -1), BD_ISCSI_WINDOW);
    size_t length = iscsi_rig_command(&rig, stream, BD_SCSI_READ_10, 999, 0, 512, NULL, 0, true);
    expect_left(&rig, stream, length);
    iscsi_rig_destroy(&rig);
}

/* One stream of everything that is served, in pieces of any length: the replies are the same, and
 * no byte beyond what came is looked at (the rig's input is as long as what came). */
static size_t make_stream(struct iscsi_rig *rig, uint64_t seed, int commands)
{
    size_t length = 0;
    for (int i = 0; i < commands; i++) {
        uint64_t offset = random_below(&seed, 256) * 512;
        size_t bytes = (size_t)(1 + random_below(&seed, 16)) * 512;
        bool reads = random_below(&seed, 2) != 0;
        uint8_t *at = stream + length;
        uint32_t itt = (uint32_t)(1000 + i);
        if (reads) {
            length +=
                iscsi_rig_command(rig, at, BD_SCSI_READ_10, itt, offset, bytes, NULL, 0, true);
            continue;
        }
        size_t immediate = (size_t)random_below(&seed, bytes / 512 + 1) * 512;
        const uint8_t *data = payload + random_below(&seed, SPACE - 16384);
        bool whole = immediate == bytes;
        length += iscsi_rig_command(rig, at, BD_SCSI_WRITE_10, itt, offset, bytes, data, immediate,
                                    whole);
        if (!whole)
            length += iscsi_rig_data_out(rig, stream + length, itt, BD_ISCSI_NO_TAG, 0, immediate,
                                         data + immediate, bytes - immediate, true);
    }
    return length;
}

static size_t play(const struct bd_iscsi_terms *terms, uint64_t seed, bool split, uint8_t *replies)
{
    enum { COMMANDS = 60 };
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, terms);
    size_t length = make_stream(&rig, seed, COMMANDS);
    size_t taken = 0;
    uint64_t pieces = seed;
    while (taken < length) {
        size_t piece = split ? (size_t)(1 + random_below(&pieces, 3000)) : length;
        if (piece > length - taken)
            piece = length - taken;
        CHECK_EQ(iscsi_rig_feed(&rig, stream + taken, piece), BD_SERVED_ALL);
        taken += piece;
    }
    size_t used = 0;
    for (int i = 0; i < COMMANDS; i++) {
        uint8_t bhs[BD_ISCSI_BHS];
        uint8_t opcode;
        do {
            size_t bytes = iscsi_rig_receive(&rig, bhs, replies + used + 8);
            opcode = bhs[0];
            memcpy(replies + used, bhs + BD_ISCSI_AT_ITT, 4);
            memcpy(replies + used + 4, bhs, 4);
            used += 8 + bytes;
        } while (opcode == BD_ISCSI_DATA_IN && (bhs[1] & BD_ISCSI_STATUS) == 0);
    }
    iscsi_rig_silent(&rig);
    CHECK_EQ(bd_iscsi_client_open(rig.client, -1), 0);
    iscsi_rig_destroy(&rig);
    return used;
}

static void test_any_pieces_of_a_stream_have_the_same_replies(void)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        struct bd_iscsi_terms terms = iscsi_rig_terms();
        terms.header_digest = (seed & 1) != 0;
        terms.data_digest = (seed & 2) != 0;
        terms.their_max_recv = (seed & 4) != 0 ? 1000 : 8192;
        random_bytes(&(uint64_t){seed}, payload, sizeof payload);
        size_t length = play(&terms, seed, false, received);
        static uint8_t again[SPACE];
        CHECK_EQ(play(&terms, seed, true, again), length);
        CHECK(memcmp(received, again, length) == 0);
    }
}

int main(void)
{
    test_commands_that_are_not_in_order();
    test_lengths_beyond_what_was_agreed();
    test_damage_that_digests_show();
    test_data_out_that_is_not_in_order();
    test_the_window_is_held();
    test_any_pieces_of_a_stream_have_the_same_replies();
    return 0;
}
