/* A session of an iSCSI initiator in full feature phase, served as the loop does, in any pieces:
 *
 * - what is sent is whole PDUs within the agreed lengths, with right digests, whose StatSNs have no
 *   gap and whose window only opens; each belongs to a request that came, of its kind, and the
 *   Data-Ins of a READ are in order and complete; an R2T asks for what is not there yet;
 * - commands that are open, and those that may come, are the window together; what is asked for of
 *   them at a time is accounted for;
 * - what goes by mail is a READ of the book, once;
 * - a stop leaves the stream from the beginning of a PDU on, as it came, and no command under way.
 *
 * Input: terms (2), a seed for the lengths of pieces (1; 0: as they are fed), then PDUs. RAW: they
 * are bytes. Else each is a BHS (48), whose data, padding and digests are made here, with the next
 * CmdSN; byte 3 of it is a switch of the target: AUTO makes the Data-Out that the command at
 * place byte 2 waits for, HOLD feeds it with the next one, CUT ends the stream within it, SPOIL
 * changes its last byte, KEEP_NUMBER does what it says. */
#include "initiator.h"
#include "rig.h"

enum {
    INITIAL_R2T = 1,
    IMMEDIATE_DATA = 2,
    HEADER_DIGEST = 4,
    DATA_DIGEST = 8,
    HOLD_FEW = 16, /* max_held is 1 */
    LAZY = 32,     /* the initiator takes replies at the end, or when it has to */
    GIVE = 64,     /* mail is answered, else it fails */
    RAW = 128,

    SEGMENT = 128 << 10,
    READY = RIG_SEGMENTS,
    VOLUME = 1 << 20,
    KNOWN = 512 << 10,
    BLOCK_SHIFT = 9,
    FIRST_CMD_SN = 0xffffffc0, /* it wraps */
    FIRST_STAT_SN = 0xfffffff0,
};

static struct rig rig;
static size_t fed;
static uint32_t seed;
static bool lazy;
static bool gives;
static size_t mail_seen;

/* What the target sends. */

static uint32_t stat_sn;
static uint32_t max_cmd_sn;
static size_t checked; /* of what was sent */

static void check_data_in(const uint8_t *bhs, size_t length)
{
    bool last = (bhs[1] & BD_ISCSI_STATUS) != 0;
    struct sent_pdu *read =
        asked_for(BD_ISCSI_SCSI_COMMAND, bd_get_be32(bhs + BD_ISCSI_AT_ITT), BD_ISCSI_READ, last);
    uint32_t wanted = bd_get_be32(read->bhs + BD_ISCSI_AT_EDTL);
    CHECK(length > 0);
    if (tags_repeat)
        return;
    CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_OFFSET), read->got);
    read->got += length;
    CHECK(read->got <= wanted);
    CHECK_EQ(last, read->got == wanted);
    CHECK(!last || (bhs[1] & BD_ISCSI_FINAL) != 0);
}

static void check_r2t(const uint8_t *bhs)
{
    const struct sent_pdu *write =
        asked_for(BD_ISCSI_SCSI_COMMAND, bd_get_be32(bhs + BD_ISCSI_AT_ITT), BD_ISCSI_WRITE, false);
    uint64_t offset = bd_get_be32(bhs + BD_ISCSI_AT_OFFSET);
    uint32_t desired = bd_get_be32(bhs + BD_ISCSI_AT_DESIRED);
    CHECK(desired > 0 && desired <= terms.max_burst);
    CHECK(tags_repeat || offset + desired <= bd_get_be32(write->bhs + BD_ISCSI_AT_EDTL));
    CHECK(bd_get_be32(bhs + BD_ISCSI_AT_TTT) != BD_ISCSI_NO_TAG);
}

static void check_reply(const uint8_t *bhs, size_t length)
{
    uint32_t itt = bd_get_be32(bhs + BD_ISCSI_AT_ITT);
    bool counts = true;
    switch (bhs[0]) {
    case BD_ISCSI_SCSI_RESPONSE:
        CHECK_EQ(bhs[1], BD_ISCSI_FINAL);
        CHECK_EQ(bd_get_be16(bhs + 2), 0); /* GOOD: whatever else is the engine's to say */
        CHECK_EQ(length, 0);
        asked_for(BD_ISCSI_SCSI_COMMAND, itt, 0, true);
        break;
    case BD_ISCSI_NOP_IN:
        CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_TTT), BD_ISCSI_NO_TAG);
        asked_for(BD_ISCSI_NOP_OUT, itt, 0, true);
        break;
    case BD_ISCSI_DATA_IN:
        counts = (bhs[1] & BD_ISCSI_STATUS) != 0;
        check_data_in(bhs, length);
        break;
    default:
        counts = false;
        CHECK_EQ(bhs[0], BD_ISCSI_R2T);
        CHECK_EQ(length, 0);
        check_r2t(bhs);
    }
    if (counts)
        CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_STAT_SN), stat_sn++);
    uint32_t max = bd_get_be32(bhs + BD_ISCSI_AT_MAX_CMD_SN);
    CHECK((int32_t)(max - max_cmd_sn) >= 0);
    max_cmd_sn = max;
}

static void expect_crc(const uint8_t *data, size_t length, const uint8_t *digest)
{
    uint8_t expected[BD_ISCSI_DIGEST];
    put_crc(expected, data, length);
    CHECK(memcmp(expected, digest, sizeof expected) == 0);
}

static void check_replies(void)
{
    served_drain(&served);
    while (checked < served.sent_length) {
        const uint8_t *bhs = served.sent + checked;
        size_t left = served.sent_length - checked;
        CHECK(left >= BD_ISCSI_BHS);
        uint32_t length = bd_get_be32(bhs + BD_ISCSI_AT_LENGTHS);
        CHECK(length <= terms.their_max_recv);
        CHECK(left >= pdu_bytes(length));
        size_t header = bd_iscsi_header_bytes(client());
        size_t padded = bd_iscsi_padded(length);
        if (terms.header_digest)
            expect_crc(bhs, BD_ISCSI_BHS, bhs + BD_ISCSI_BHS);
        if (terms.data_digest && length > 0)
            expect_crc(bhs + header, padded, bhs + header + padded);
        check_reply(bhs, length);
        checked += pdu_bytes(length);
    }
}

static void check_numbers(void)
{
    struct iscsi_client *own = client();
    pthread_mutex_lock(&own->base.lock);
    uint32_t open = 0;
    uint64_t held = 0;
    const struct bd_iscsi_command *command = own->first_command;
    for (; command != NULL; command = command->next) {
        open++;
        held += command->charged ? command->action.length : 0;
        CHECK(command->state != BD_ISCSI_UNDER_WAY);
        CHECK(command->got <= command->asked && command->asked <= command->action.length);
        CHECK(command->burst_count <= terms.max_bursts);
        if (command->burst_count > 0)
            CHECK_EQ(command->bursts[command->first_burst].at, command->got);
        CHECK(command->action.length <= VOLUME);
    }
    const struct bd_iscsi_numbers *numbers = &own->numbers;
    CHECK_EQ(open + (numbers->max_cmd_sn + 1 - numbers->exp_cmd_sn), BD_ISCSI_WINDOW);
    CHECK_EQ(held, own->held);
    CHECK(held < terms.max_held + VOLUME);
    CHECK_EQ(own->base.jobs, 0);
    pthread_mutex_unlock(&own->base.lock);
    CHECK(own->base.need <=
          BD_ISCSI_BHS + 2 * BD_ISCSI_DIGEST + bd_iscsi_padded(terms.our_max_recv));
}

/* The engine's part of what went by mail; false when the client stops by that. */
static bool answer_mail(void)
{
    static const uint8_t zeros[VOLUME];
    CHECK_EQ(served.mail_length % BD_ISCSI_BHS, 0);
    for (; mail_seen < served.mail_length; mail_seen += BD_ISCSI_BHS) {
        const uint8_t *bhs = served.mail + mail_seen;
        uint32_t itt = bd_get_be32(bhs + BD_ISCSI_AT_ITT);
        const struct bd_iscsi_command *command = bd_iscsi_command_of(client(), itt);
        if (served.client->stopping) /* what is mailed is the engine's then, as a failed one is */
            return false;
        CHECK(command != NULL && command->state == BD_ISCSI_MAILED);
        CHECK(tags_repeat || memcmp(command->bhs, bhs, BD_ISCSI_BHS) == 0);
        uint64_t length = command->action.length;
        CHECK(!bd_iscsi_client_give(served.client, itt, zeros, length - 1));
        CHECK(bd_iscsi_client_give(served.client, itt, gives ? zeros : NULL, length));
    }
    return !served.client->stopping;
}

/* Feed what of the stream was not; false when the loop's part ended. */
static bool feed(void)
{
    while (fed < stream_length) {
        size_t piece = served_piece(&seed, stream_length - fed);
        enum bd_served said = served_feed(&served, stream + fed, piece);
        fed += piece;
        served_settle(&served);
        bool goes_on = answer_mail() && said != BD_SERVED_STOP;
        if (said == BD_SERVED_STOP)
            CHECK(served.client->input.end > served.client->input.start);
        if (!lazy)
            check_replies();
        check_numbers();
        if (!goes_on)
            return false;
    }
    return true;
}

static void begin(uint8_t switches, uint8_t sizes)
{
    static const uint32_t theirs[] = {8192, 512, 1000, 65536};
    static const uint32_t bursts[] = {1, 2, 3, BD_ISCSI_MAX_BURSTS};
    terms = (struct bd_iscsi_terms){
        .their_max_recv = theirs[sizes & 3],
        .our_max_recv = (sizes & 4) != 0 ? 65536 : 8192,
        .max_burst = (sizes & 8) != 0 ? 262144 : 8192,
        .first_burst = (sizes & 16) != 0 ? 8192 : 1024,
        .max_bursts = bursts[sizes >> 6],
        .initial_r2t = (switches & INITIAL_R2T) != 0,
        .immediate_data = (switches & IMMEDIATE_DATA) != 0,
        .header_digest = (switches & HEADER_DIGEST) != 0,
        .data_digest = (switches & DATA_DIGEST) != 0,
        .max_held = (switches & HOLD_FEW) != 0 ? 1 : 1 << 20,
    };
    rig_init(&rig, SEGMENT, READY, VOLUME);
    rig_holes(&rig, KNOWN / RIG_CHUNK);
    static struct bd_iscsi_lun luns[BD_ISCSI_LUNS];
    luns[0] =
        (struct bd_iscsi_lun){.volume = rig.volume, .size = VOLUME, .block_shift = BLOCK_SHIFT};
    luns[1] = luns[0];
    luns[1].read_only = true;
    luns[2] = luns[0];
    luns[2].block_shift = 12;
    struct bd_iscsi_numbers numbers = {.exp_cmd_sn = FIRST_CMD_SN,
                                       .max_cmd_sn = (uint32_t)FIRST_CMD_SN + BD_ISCSI_WINDOW - 1,
                                       .stat_sn = FIRST_STAT_SN,
                                       .next_ttt = UINT32_MAX - 2};
    cmd_sn = numbers.exp_cmd_sn;
    stat_sn = numbers.stat_sn;
    max_cmd_sn = numbers.max_cmd_sn;
    tags_repeat = false;
    rest_at = damaged_at = SIZE_MAX;
    stream_length = fed = pdu_count = mail_seen = checked = 0;
    int fd = served_begin(&served);
    served.client = bd_iscsi_client_new(fd, &terms, &numbers, luns, NULL, 0);
    CHECK(served.client != NULL);
    served.client->loop = served.loop;
}

/* What is left is a part of the stream, from a PDU's beginning on. */
static void check_rest(void)
{
    CHECK_EQ(bd_iscsi_client_unwind(served.client), 0);
    CHECK(served.client->direct.at == NULL);
    size_t left = served.client->input.end - served.client->input.start;
    CHECK(left <= fed);
    bool at_pdu = left == 0 || fed - left == rest_at;
    for (size_t i = 0; i < pdu_count && !at_pdu; i++)
        at_pdu = pdus[i].at == fed - left;
    CHECK(at_pdu);
    CHECK(fed - left <= damaged_at);
    if (left > 0)
        CHECK(memcmp(served.client->input.data + served.client->input.start, stream + fed - left,
                     left) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint8_t switches = (uint8_t)take(&input, 1);
    uint8_t sizes = (uint8_t)take(&input, 1);
    seed = (uint32_t)take(&input, 1);
    lazy = (switches & LAZY) != 0;
    gives = (switches & GIVE) != 0;
    begin(switches, sizes);
    size_t length;
    if (switches & RAW) {
        const uint8_t *bytes = take_bytes(&input, MAX_STREAM, &length);
        if (length > 0)
            memcpy(stream, bytes, length);
        stream_length = length;
        find_pdus();
    }
    bool ends = false;
    bool stopped = false;
    while (!ends && !stopped && input.left >= BD_ISCSI_BHS) {
        const uint8_t *bhs = take_bytes(&input, BD_ISCSI_BHS, &length);
        ends = !make_pdu(bhs);
        stopped = (bhs[3] & HOLD) == 0 && !feed();
    }
    if (!stopped)
        feed();
    bd_iscsi_client_interrupt(served.client);
    check_replies();
    check_numbers();
    check_rest();
    served_end(&served);
    rig_destroy(&rig);
    return 0;
}
