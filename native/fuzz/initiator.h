/* What the initiator of fuzz_iscsi.c sends: a stream of PDUs, and a book of them in which a reply
 * finds its request. What is here belongs to one input: `begin` of the target resets it. */
#ifndef BLOCKD_FUZZ_INITIATOR_H
#define BLOCKD_FUZZ_INITIATOR_H

#include "big_endian.h"
#include "crc32c.h"
#include "iscsi_client.h"
#include "served.h"

enum {
    /* Switches in a BHS, see fuzz_iscsi.c. */
    AUTO = 1,
    HOLD = 2,
    KEEP_NUMBER = 4,
    SPOIL = 8,
    CUT = 16,

    MAX_STREAM = 2 << 20,
    MAX_PDUS = 16384,
};

struct sent_pdu { /* by the initiator */
    size_t at;
    uint8_t bhs[BD_ISCSI_BHS];
    uint64_t got; /* bytes of Data-In */
    bool answered;
};

static struct served served;
static struct bd_iscsi_terms terms;
static uint8_t stream[MAX_STREAM];
static size_t stream_length;
static struct sent_pdu pdus[MAX_PDUS];
static size_t pdu_count;
static size_t rest_at;    /* of raw bytes: where no PDU is whole */
static size_t damaged_at; /* the first PDU whose digest is wrong */
static uint32_t cmd_sn;
static bool tags_repeat; /* then it cannot be told which of two a reply is for */

static struct iscsi_client *client(void)
{
    return iscsi_client(served.client);
}

static void put_crc(uint8_t *at, const uint8_t *data, size_t length)
{
    uint32_t crc = htole32(bd_crc32c(0, data, length));
    memcpy(at, &crc, sizeof crc);
}

/* The length of a PDU with these lengths, all told. */
static size_t pdu_bytes(uint32_t lengths)
{
    size_t data = lengths & BD_ISCSI_MAX_SEGMENT;
    size_t bytes = BD_ISCSI_BHS + (terms.header_digest ? BD_ISCSI_DIGEST : 0);
    if (data > 0)
        bytes += bd_iscsi_padded(data) + (terms.data_digest ? BD_ISCSI_DIGEST : 0);
    return bytes;
}

/* Make of a PDU the Data-Out that one of the commands waits for; false when none does. */
static bool aim(uint8_t *bhs)
{
    const struct bd_iscsi_command *command = client()->first_command;
    for (int skip = bhs[2] % 8; command != NULL && skip > 0; skip--)
        command = command->next != NULL ? command->next : command;
    if (command == NULL || command->state != BD_ISCSI_COLLECTING ||
        (!command->unsolicited && command->burst_count == 0)) /* it waits for room */
        return false;
    const struct bd_iscsi_burst *burst = &command->bursts[command->first_burst];
    uint64_t end = command->action.length;
    if (command->unsolicited)
        end = end < terms.first_burst ? end : terms.first_burst;
    else if (command->burst_count > 0)
        end = burst->end;
    uint32_t length = bd_get_be32(bhs + BD_ISCSI_AT_LENGTHS) & BD_ISCSI_MAX_SEGMENT;
    if (length > end - command->got || length == 0)
        length = (uint32_t)(end - command->got);
    if (length > terms.our_max_recv)
        length = terms.our_max_recv;
    bhs[0] = BD_ISCSI_DATA_OUT;
    bhs[1] = command->got + length == end ? BD_ISCSI_FINAL : 0;
    bd_put_be32(bhs + BD_ISCSI_AT_LENGTHS, length);
    bd_put_be32(bhs + BD_ISCSI_AT_ITT, command->itt);
    bd_put_be32(bhs + BD_ISCSI_AT_TTT, command->unsolicited ? BD_ISCSI_NO_TAG : burst->ttt);
    bd_put_be32(bhs + BD_ISCSI_AT_DATA_SN,
                command->unsolicited ? command->unsolicited_sn : burst->data_sn);
    bd_put_be32(bhs + BD_ISCSI_AT_OFFSET, command->got);
    return true;
}

static void note(size_t at)
{
    CHECK(pdu_count < MAX_PDUS);
    struct sent_pdu *pdu = &pdus[pdu_count];
    *pdu = (struct sent_pdu){.at = at};
    memcpy(pdu->bhs, stream + at, BD_ISCSI_BHS);
    for (size_t i = 0; i < pdu_count && pdu->bhs[0] == BD_ISCSI_SCSI_COMMAND; i++)
        if (pdus[i].bhs[0] == BD_ISCSI_SCSI_COMMAND &&
            memcmp(pdus[i].bhs + BD_ISCSI_AT_ITT, pdu->bhs + BD_ISCSI_AT_ITT, 4) == 0)
            tags_repeat = true;
    pdu_count++;
}

/* A PDU behind the stream; false when it has no room, or is the last. */
static bool make_pdu(const uint8_t *given)
{
    uint8_t bhs[BD_ISCSI_BHS];
    memcpy(bhs, given, sizeof bhs);
    uint8_t how = bhs[3];
    if ((how & AUTO) != 0 && !aim(bhs))
        return true;
    uint8_t opcode = bhs[0] & BD_ISCSI_OPCODE;
    bool counts = opcode != BD_ISCSI_DATA_OUT && (bhs[0] & BD_ISCSI_IMMEDIATE) == 0;
    if (opcode != BD_ISCSI_DATA_OUT && (how & KEEP_NUMBER) == 0) {
        bd_put_be32(bhs + BD_ISCSI_AT_CMD_SN, cmd_sn);
        cmd_sn += counts;
    }
    uint32_t lengths = bd_get_be32(bhs + BD_ISCSI_AT_LENGTHS);
    size_t bytes = pdu_bytes(lengths);
    if (bytes > MAX_STREAM - stream_length || pdu_count == MAX_PDUS)
        return false;
    uint8_t *out = stream + stream_length;
    memcpy(out, bhs, BD_ISCSI_BHS);
    size_t at = BD_ISCSI_BHS;
    if (terms.header_digest) {
        put_crc(out + at, out, BD_ISCSI_BHS);
        at += BD_ISCSI_DIGEST;
    }
    size_t length = lengths & BD_ISCSI_MAX_SEGMENT;
    size_t padded = bd_iscsi_padded(length);
    memset(out + at, 0, padded);
    memset(out + at, bhs[BD_ISCSI_AT_ITT + 3] | 1, length);
    if (terms.data_digest && length > 0)
        put_crc(out + at + padded, out + at, padded);
    if (how & SPOIL) {
        out[bytes - 1] ^= 1;
        if ((length > 0 ? terms.data_digest : terms.header_digest) && damaged_at == SIZE_MAX)
            damaged_at = stream_length;
    }
    note(stream_length);
    stream_length += (how & CUT) != 0 ? bytes - bytes / 4 : bytes;
    return (how & CUT) == 0;
}

/* The PDUs of raw bytes, as far as they can be told apart. */
static void find_pdus(void)
{
    size_t at = 0;
    while (stream_length - at >= BD_ISCSI_BHS && pdu_count < MAX_PDUS) {
        uint32_t lengths = bd_get_be32(stream + at + BD_ISCSI_AT_LENGTHS);
        note(at);
        if (lengths > terms.our_max_recv || pdu_bytes(lengths) > stream_length - at)
            return;
        at += pdu_bytes(lengths);
    }
    rest_at = at;
}

/* Whether a request of this kind and tag came, and was not answered; it is then, if that is so. */
static struct sent_pdu *asked_for(uint8_t opcode, uint32_t itt, uint8_t direction, bool ends)
{
    for (size_t i = 0; i < pdu_count; i++) {
        struct sent_pdu *pdu = &pdus[i];
        if ((pdu->bhs[0] & BD_ISCSI_OPCODE) == opcode && !pdu->answered &&
            bd_get_be32(pdu->bhs + BD_ISCSI_AT_ITT) == itt &&
            (direction == 0 || (pdu->bhs[1] & direction) != 0)) {
            pdu->answered = ends;
            return pdu;
        }
    }
    CHECK(!"a reply to nothing");
    return NULL;
}

#endif
