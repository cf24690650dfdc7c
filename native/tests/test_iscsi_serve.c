/* iSCSI requests that the loop serves: replies, numbers, data-out; and what it leaves to Python. */
#include <string.h>
#include <unistd.h>

#include "big_endian.h"
#include "check.h"
#include "iscsi_rig.h"

enum { SPACE = 1 << 20 };

static uint8_t stream[SPACE];
static uint8_t payload[SPACE];
static uint8_t got[SPACE];

static void fill_payload(uint64_t seed)
{
    random_bytes(&seed, payload, sizeof payload);
}

static size_t put_read(struct iscsi_rig *rig, uint8_t *out, uint32_t itt, uint64_t offset,
                       size_t length)
{
    return iscsi_rig_command(rig, out, BD_SCSI_READ_10, itt, offset, length, NULL, 0, true);
}

static size_t put_write(struct iscsi_rig *rig, uint8_t *out, uint32_t itt, uint64_t offset,
                        size_t length, size_t immediate, bool final)
{
    return iscsi_rig_command(rig, out, BD_SCSI_WRITE_10, itt, offset, length, payload, immediate,
                             final);
}

/* The Data-In of a whole READ in one PDU. */
static void expect_data(struct iscsi_rig *rig, uint32_t itt, const uint8_t *want, size_t length)
{
    uint8_t bhs[BD_ISCSI_BHS];
    CHECK_EQ(iscsi_rig_receive(rig, bhs, got), length);
    CHECK_EQ(bhs[0], BD_ISCSI_DATA_IN);
    CHECK_EQ(bhs[1], BD_ISCSI_FINAL | BD_ISCSI_STATUS);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_ITT), itt);
    CHECK(memcmp(got, want, length) == 0);
}

/* What the volume holds, by the core. */
static void expect_volume(struct iscsi_rig *rig, uint64_t offset, const uint8_t *want,
                          size_t length)
{
    struct bd_read_fault fault;
    CHECK_EQ(bd_volume_read(rig->store.volume, offset, length, got, true, &fault), 0);
    CHECK(memcmp(got, want, length) == 0);
}

static void test_a_read_sees_the_write_before_it(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(1);
    size_t length = put_write(&rig, stream, 1, 4096, 4096, 4096, true);
    length += put_read(&rig, stream + length, 2, 4096, 4096);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    CHECK_EQ(iscsi_rig_left(&rig), 0);
    uint8_t bhs[BD_ISCSI_BHS];
    CHECK_EQ(iscsi_rig_receive(&rig, bhs, NULL), 0);
    CHECK_EQ(bhs[0], BD_ISCSI_SCSI_RESPONSE);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_STAT_SN), 7);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_EXP_CMD_SN), 102);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_MAX_CMD_SN), 100 + BD_ISCSI_WINDOW);
    expect_data(&rig, 2, payload, 4096);
    struct bd_iscsi_numbers numbers = bd_iscsi_client_numbers(rig.client);
    CHECK_EQ(numbers.stat_sn, 9);
    CHECK_EQ(numbers.max_cmd_sn, 101 + BD_ISCSI_WINDOW);
    CHECK_EQ(rig.client->counters.requests[BD_OP_READ], 1);
    CHECK_EQ(rig.client->counters.bytes[BD_OP_WRITE], 4096);
    iscsi_rig_destroy(&rig);
}

/* Sequences of MaxBurstLength, PDUs of MaxRecvDataSegmentLength, neither a multiple of the other.
 */
static void test_a_long_read_goes_in_sequences_of_data_ins(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.their_max_recv = 3001;
    terms.max_burst = 8000;
    terms.header_digest = terms.data_digest = true;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(2);
    struct bd_action write = {
        .kind = BD_ACTION_WRITE, .offset = 512, .length = 16384, .data = payload};
    bd_batch_execute(rig.store.volume, &write, 1, 1);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, put_read(&rig, stream, 5, 512, 16384)), BD_SERVED_ALL);
    static const uint32_t ends[] = {3001, 6002, 8000, 11001, 14002, 16000, 16384};
    uint32_t start = 0;
    for (uint32_t i = 0; i < 7; i++) {
        uint8_t bhs[BD_ISCSI_BHS];
        CHECK_EQ(iscsi_rig_receive(&rig, bhs, got + start), ends[i] - start);
        CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_DATA_SN), i);
        CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_OFFSET), start);
        bool last = i == 6;
        bool ends_burst = i == 2 || i == 5 || last;
        CHECK_EQ(bhs[1], (ends_burst ? BD_ISCSI_FINAL : 0) | (last ? BD_ISCSI_STATUS : 0));
        CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_STAT_SN), last ? 7 : 0);
        start = ends[i];
    }
    CHECK(memcmp(got, payload, 16384) == 0);
    iscsi_rig_silent(&rig);
    iscsi_rig_destroy(&rig);
}

static void expect_r2t(struct iscsi_rig *rig, uint32_t itt, uint32_t r2t_sn, uint32_t offset,
                       uint32_t length, uint32_t *ttt)
{
    uint8_t bhs[BD_ISCSI_BHS];
    CHECK_EQ(iscsi_rig_receive(rig, bhs, NULL), 0);
    CHECK_EQ(bhs[0], BD_ISCSI_R2T);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_ITT), itt);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_DATA_SN), r2t_sn);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_OFFSET), offset);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_DESIRED), length);
    *ttt = bd_get_be32(bhs + BD_ISCSI_AT_TTT);
}

/* Immediate, unsolicited, and two bursts at a time; with and without digests. */
static void collect_a_write(bool digests)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.header_digest = terms.data_digest = digests;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(3);
    size_t length = put_write(&rig, stream, 9, 65536, 32768, 2048, false);
    length += iscsi_rig_data_out(&rig, stream + length, 9, BD_ISCSI_NO_TAG, 0, 2048, payload + 2048,
                                 1024, false);
    length += iscsi_rig_data_out(&rig, stream + length, 9, BD_ISCSI_NO_TAG, 1, 3072, payload + 3072,
                                 5120, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    uint32_t ttts[3];
    expect_r2t(&rig, 9, 0, 8192, 8192, &ttts[0]);
    expect_r2t(&rig, 9, 1, 16384, 8192, &ttts[1]);
    iscsi_rig_silent(&rig); /* MaxOutstandingR2T */
    CHECK_EQ(bd_iscsi_client_open(rig.client, 0), 1);
    CHECK_EQ(bd_iscsi_client_open(rig.client, 1), 0);
    length = iscsi_rig_data_out(&rig, stream, 9, ttts[0], 0, 8192, payload + 8192, 4096, false);
    length += iscsi_rig_data_out(&rig, stream + length, 9, ttts[0], 1, 12288, payload + 12288, 4096,
                                 true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    expect_r2t(&rig, 9, 2, 24576, 8192, &ttts[2]);
    length = iscsi_rig_data_out(&rig, stream, 9, ttts[1], 0, 16384, payload + 16384, 8192, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    CHECK_EQ(rig.client->counters.requests[BD_OP_WRITE], 0); /* never in part */
    rig_expect(&rig.store, 65536, 32768, 0);
    length = iscsi_rig_data_out(&rig, stream, 9, ttts[2], 0, 24576, payload + 24576, 8192, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    uint8_t bhs[BD_ISCSI_BHS];
    CHECK_EQ(iscsi_rig_receive(&rig, bhs, NULL), 0);
    CHECK_EQ(bhs[0], BD_ISCSI_SCSI_RESPONSE);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_DATA_SN), 3); /* ExpDataSN: R2Ts */
    CHECK_EQ(bd_iscsi_client_open(rig.client, -1), 0);
    expect_volume(&rig, 65536, payload, 32768);
    iscsi_rig_destroy(&rig);
}

static void test_a_write_is_collected(void)
{
    collect_a_write(false);
    collect_a_write(true);
}

static void test_writes_wait_for_room_in_their_order(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.immediate_data = false;
    terms.initial_r2t = true;
    terms.max_held = 1; /* one command may always go beyond */
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(4);
    size_t length = 0;
    for (uint32_t itt = 0; itt < 3; itt++)
        length += put_write(&rig, stream + length, itt, itt * 8192, 8192, 0, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    for (uint32_t itt = 0; itt < 3; itt++) {
        uint32_t ttt;
        expect_r2t(&rig, itt, 0, 0, 8192, &ttt);
        iscsi_rig_silent(&rig);
        length = iscsi_rig_data_out(&rig, stream, itt, ttt, 0, 0, payload, 8192, true);
        CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
        iscsi_rig_good(&rig, itt);
    }
    iscsi_rig_silent(&rig);
    iscsi_rig_destroy(&rig);
}

/* A command that waits for room does not keep those that hold it from being completed. */
static void test_who_holds_the_room_goes_on_before_who_waits_for_it(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.immediate_data = false;
    terms.first_burst = 4096;
    terms.max_bursts = 1;
    terms.max_held = 1;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(13);
    size_t length = put_write(&rig, stream, 1, 0, 8192, 0, false); /* more comes unasked */
    length += put_write(&rig, stream + length, 2, 8192, 16384, 0, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    uint32_t ttt;
    expect_r2t(&rig, 2, 0, 0, 8192, &ttt);
    length = iscsi_rig_data_out(&rig, stream, 1, BD_ISCSI_NO_TAG, 0, 0, payload, 4096, true);
    length += iscsi_rig_data_out(&rig, stream + length, 2, ttt, 0, 0, payload, 8192, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    expect_r2t(&rig, 2, 1, 8192, 8192, &ttt);
    length = iscsi_rig_data_out(&rig, stream, 2, ttt, 0, 8192, payload + 8192, 8192, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    iscsi_rig_good(&rig, 2);
    expect_r2t(&rig, 1, 0, 4096, 4096, &ttt);
    iscsi_rig_silent(&rig);
    iscsi_rig_destroy(&rig);
}

static void test_fua_and_synchronize_cache_are_answered_when_all_is_durable(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(5);
    uint8_t bhs[BD_ISCSI_BHS];
    size_t length = put_write(&rig, stream, 1, 0, 4096, 4096, true);
    stream[BD_ISCSI_AT_CDB + 1] = BD_SCSI_FUA;
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    iscsi_rig_good(&rig, 1);
    CHECK_EQ(rig.store.journal->synced_lsn + 1, rig.store.journal->next_lsn);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, put_write(&rig, stream, 2, 0, 512, 512, true)),
             BD_SERVED_ALL);
    iscsi_rig_good(&rig, 2);
    memset(bhs, 0, sizeof bhs);
    bhs[0] = BD_ISCSI_SCSI_COMMAND;
    bhs[1] = BD_ISCSI_FINAL;
    bd_put_be32(bhs + BD_ISCSI_AT_ITT, 3);
    bd_put_be32(bhs + BD_ISCSI_AT_CMD_SN, rig.cmd_sn++);
    bhs[BD_ISCSI_AT_CDB] = BD_SCSI_SYNCHRONIZE_CACHE_10;
    CHECK_EQ(iscsi_rig_feed(&rig, bhs, sizeof bhs), BD_SERVED_ALL);
    iscsi_rig_good(&rig, 3);
    CHECK_EQ(rig.store.journal->synced_lsn + 1, rig.store.journal->next_lsn);
    iscsi_rig_destroy(&rig);
}

static void test_pings_are_echoed(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.data_digest = true;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(6);
    uint8_t bhs[BD_ISCSI_BHS] = {BD_ISCSI_NOP_OUT | BD_ISCSI_IMMEDIATE, BD_ISCSI_FINAL};
    bd_put_be32(bhs + BD_ISCSI_AT_ITT, 77);
    bd_put_be32(bhs + BD_ISCSI_AT_TTT, BD_ISCSI_NO_TAG);
    bd_put_be32(bhs + BD_ISCSI_AT_CMD_SN, rig.cmd_sn);
    size_t length = iscsi_rig_pdu(&rig, stream, bhs, payload, 13);
    bhs[0] = BD_ISCSI_NOP_OUT;
    rig.cmd_sn++;
    length += iscsi_rig_pdu(&rig, stream + length, bhs, NULL, 0);
    length += put_read(&rig, stream + length, 78, 0, 512);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(iscsi_rig_receive(&rig, bhs, got), i == 0 ? 13 : 0);
        CHECK_EQ(bhs[0], BD_ISCSI_NOP_IN);
        CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_ITT), 77);
        CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_TTT), BD_ISCSI_NO_TAG);
        if (i == 0)
            CHECK(memcmp(got, payload, 13) == 0);
    }
    memset(payload, 0, 512);
    expect_data(&rig, 78, payload, 512);
    CHECK_EQ(bd_iscsi_client_numbers(rig.client).max_cmd_sn, rig.cmd_sn + BD_ISCSI_WINDOW - 1);
    iscsi_rig_destroy(&rig);
}

/* A read of a chunk that nobody knows the place of. */
static struct bd_client *mailed(struct iscsi_rig *rig, uint8_t *out)
{
    CHECK_EQ(iscsi_rig_feed(rig, stream, put_read(rig, stream, 4, ISCSI_KNOWN, 4096)),
             BD_SERVED_ALL);
    struct bd_client *told;
    while ((told = bd_loop_news(rig->loop)) == NULL)
        usleep(1000);
    pthread_mutex_lock(&told->lock);
    CHECK_EQ(told->mail_length, BD_ISCSI_BHS);
    memcpy(out, told->mail, BD_ISCSI_BHS);
    told->mail_length = 0;
    pthread_mutex_unlock(&told->lock);
    bd_client_release(told);
    return told;
}

static void test_what_python_reads_is_answered(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(7);
    uint8_t bhs[BD_ISCSI_BHS];
    struct bd_client *client = mailed(&rig, bhs);
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_ITT), 4);
    CHECK(!bd_iscsi_client_give(client, 5, payload, 4096)); /* nobody asked */
    CHECK(!bd_iscsi_client_give(client, 4, payload, 2048));
    CHECK(bd_iscsi_client_give(client, 4, payload, 4096));
    expect_data(&rig, 4, payload, 4096);
    CHECK_EQ(client->job_bytes, 0);
    CHECK(!client->stopping);
    iscsi_rig_destroy(&rig);
}

static void test_what_python_cannot_read_ends_the_loops_part(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    uint8_t bhs[BD_ISCSI_BHS];
    struct bd_client *client = mailed(&rig, bhs);
    CHECK(bd_iscsi_client_give(client, 4, NULL, 0));
    CHECK(client->stopping);
    const struct bd_iscsi_command *command = bd_iscsi_client_commands(client);
    CHECK(command != NULL && command->next == NULL);
    CHECK_EQ(command->state, BD_ISCSI_FAILED);
    CHECK(memcmp(command->bhs, bhs, sizeof bhs) == 0);
    CHECK_EQ(bd_iscsi_client_numbers(client).max_cmd_sn, 100 + BD_ISCSI_WINDOW - 1);
    iscsi_rig_silent(&rig);
    iscsi_rig_destroy(&rig);
}

static void test_nothing_begins_after_an_interrupt(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(8);
    bd_iscsi_client_interrupt(rig.client);
    size_t length = put_write(&rig, stream, 1, 0, 4096, 4096, true);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, length), BD_SERVED_ALL);
    CHECK_EQ(iscsi_rig_left(&rig), length);
    rig_expect(&rig.store, 0, 4096, 0);
    iscsi_rig_silent(&rig);
    iscsi_rig_destroy(&rig);
}

/* A write half of which is there goes from one client to another, as to Python and back. */
static void test_a_half_collected_write_goes_on_elsewhere(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig before;
    struct iscsi_rig after;
    iscsi_rig_init(&before, &terms);
    iscsi_rig_init(&after, &terms);
    fill_payload(9);
    size_t length = put_write(&before, stream, 6, 0, 16384, 8192, true);
    CHECK_EQ(iscsi_rig_feed(&before, stream, length), BD_SERVED_ALL);
    uint32_t ttt;
    expect_r2t(&before, 6, 0, 8192, 8192, &ttt);
    const struct bd_iscsi_command *command = bd_iscsi_client_commands(before.client);
    CHECK_EQ(command->state, BD_ISCSI_COLLECTING);
    CHECK_EQ(bd_iscsi_client_import(after.client, command, command->action.data), 0);
    length = iscsi_rig_data_out(&after, stream, 6, ttt, 0, 8192, payload + 8192, 8192, true);
    CHECK_EQ(iscsi_rig_feed(&after, stream, length), BD_SERVED_ALL);
    iscsi_rig_good(&after, 6);
    expect_volume(&after, 0, payload, 16384);
    struct bd_iscsi_command wrong = *command;
    wrong.bhs[BD_ISCSI_AT_CDB] = BD_SCSI_READ_10;
    CHECK(bd_iscsi_client_import(after.client, &wrong, command->action.data) < 0);
    iscsi_rig_destroy(&after);
    iscsi_rig_destroy(&before);
}

/* Long Data-Outs that come in pieces: their data is received where it belongs. */
static void land_in_pieces(size_t first, bool header_digest)
{
    enum { LENGTH = 64 << 10 };
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.our_max_recv = terms.max_burst = LENGTH;
    terms.immediate_data = false;
    terms.header_digest = header_digest;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(11);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, put_write(&rig, stream, 3, 4096, LENGTH, 0, true)),
             BD_SERVED_ALL);
    uint32_t ttt;
    expect_r2t(&rig, 3, 0, 0, LENGTH, &ttt);
    size_t length = iscsi_rig_data_out(&rig, stream, 3, ttt, 0, 0, payload, LENGTH, true);
    length += put_read(&rig, stream + length, 4, 4096, 8192);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, first), BD_SERVED_ALL);
    size_t header = BD_ISCSI_BHS + (header_digest ? BD_ISCSI_DIGEST : 0);
    bool lands = first >= header && LENGTH - (first - header) >= 16 << 10;
    CHECK_EQ(rig.client->direct.at != NULL, lands);
    CHECK_EQ(iscsi_rig_left(&rig), lands ? 0 : first);
    CHECK_EQ(iscsi_rig_feed(&rig, stream + first, 1), BD_SERVED_ALL);
    CHECK_EQ(iscsi_rig_feed(&rig, stream + first + 1, length - first - 1), BD_SERVED_ALL);
    iscsi_rig_good(&rig, 3);
    expect_data(&rig, 4, payload, 8192);
    CHECK(rig.client->direct.at == NULL);
    expect_volume(&rig, 4096, payload, LENGTH);
    iscsi_rig_destroy(&rig);
}

static void test_long_data_lands_where_it_belongs(void)
{
    static const size_t firsts[] = {10, 48, 51, 52, 53, 1000, 30001, 49152, 60000};
    for (size_t i = 0; i < sizeof firsts / sizeof *firsts; i++) {
        land_in_pieces(firsts[i], false);
        land_in_pieces(firsts[i], true);
    }
}

/* What stops in the middle of a Data-Out gives it back as it came. */
static void test_a_data_out_that_is_landing_is_given_back(void)
{
    enum { LENGTH = 64 << 10, FIRST = 20000 };
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.our_max_recv = terms.max_burst = LENGTH;
    terms.immediate_data = false;
    terms.header_digest = true;
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(12);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, put_write(&rig, stream, 3, 0, LENGTH, 0, true)),
             BD_SERVED_ALL);
    uint32_t ttt;
    expect_r2t(&rig, 3, 0, 0, LENGTH, &ttt);
    size_t length = iscsi_rig_data_out(&rig, stream, 3, ttt, 0, 0, payload, LENGTH, true);
    length += put_read(&rig, stream + length, 4, 0, 512);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, FIRST), BD_SERVED_ALL);
    CHECK_EQ(iscsi_rig_feed(&rig, stream + FIRST, 100), BD_SERVED_ALL);
    bd_iscsi_client_interrupt(rig.client);
    CHECK_EQ(bd_iscsi_client_unwind(rig.client), 0);
    CHECK_EQ(iscsi_rig_left(&rig), FIRST + 100);
    CHECK(memcmp(rig.client->input.data, stream, FIRST + 100) == 0);
    CHECK(rig.client->direct.at == NULL);
    iscsi_rig_destroy(&rig);

    iscsi_rig_init(&rig, &terms); /* all of it, and what is behind it */
    rig.client->stopping = false;
    CHECK_EQ(iscsi_rig_feed(&rig, stream + SPACE / 2,
                            put_write(&rig, stream + SPACE / 2, 3, 0, LENGTH, 0, true)),
             BD_SERVED_ALL);
    CHECK_EQ(iscsi_rig_feed(&rig, stream, FIRST), BD_SERVED_ALL);
    bd_iscsi_client_interrupt(rig.client);
    CHECK_EQ(iscsi_rig_feed(&rig, stream + FIRST, length - FIRST), BD_SERVED_ALL);
    CHECK_EQ(bd_iscsi_client_unwind(rig.client), 0);
    CHECK_EQ(iscsi_rig_left(&rig), length);
    CHECK(memcmp(rig.client->input.data, stream, length) == 0);
    CHECK_EQ(bd_iscsi_client_commands(rig.client)->got, 0);
    iscsi_rig_destroy(&rig);
}

static void test_a_failed_write_is_kept_whole(void)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    struct iscsi_rig rig;
    iscsi_rig_init(&rig, &terms);
    fill_payload(10);
    bd_volume_retire(rig.store.volume, true);
    size_t length = put_write(&rig, stream, 1, 0, 4096, 4096, true);
    iscsi_rig_feed(&rig, stream, length);
    CHECK(rig.client->stopping);
    const struct bd_iscsi_command *command = bd_iscsi_client_commands(rig.client);
    CHECK(command != NULL);
    CHECK_EQ(command->state, BD_ISCSI_FAILED);
    CHECK_EQ(command->got, 4096);
    CHECK(memcmp(command->action.data, payload, 4096) == 0);
    iscsi_rig_silent(&rig);
    iscsi_rig_destroy(&rig);
}

int main(void)
{
    test_a_read_sees_the_write_before_it();
    test_a_long_read_goes_in_sequences_of_data_ins();
    test_a_write_is_collected();
    test_writes_wait_for_room_in_their_order();
    test_who_holds_the_room_goes_on_before_who_waits_for_it();
    test_fua_and_synchronize_cache_are_answered_when_all_is_durable();
    test_pings_are_echoed();
    test_what_python_reads_is_answered();
    test_what_python_cannot_read_ends_the_loops_part();
    test_nothing_begins_after_an_interrupt();
    test_a_half_collected_write_goes_on_elsewhere();
    test_long_data_lands_where_it_belongs();
    test_a_data_out_that_is_landing_is_given_back();
    test_a_failed_write_is_kept_whole();
    return 0;
}
