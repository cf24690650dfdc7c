/* Data-In, SCSI Response, R2T, NOP-In: RFC 7143 11.4, 11.7, 11.8, 11.19. */
#include <string.h>

#include "big_endian.h"
#include "crc32c.h"
#include "iscsi_client.h"

size_t bd_iscsi_header_bytes(const struct iscsi_client *client)
{
    return BD_ISCSI_BHS + (client->terms.header_digest ? BD_ISCSI_DIGEST : 0);
}

/* Padding and digest of a data segment. */
static size_t tail_bytes(const struct iscsi_client *client, size_t length)
{
    return bd_iscsi_padded(length) - length + (client->terms.data_digest ? BD_ISCSI_DIGEST : 0);
}

/* Where the Data-In ends that begins at `at`: a sequence is at most MaxBurstLength long. */
static size_t segment_end(const struct iscsi_client *client, size_t at, size_t length)
{
    size_t burst = client->terms.max_burst;
    size_t end = (at / burst + 1) * burst;
    if (end > length)
        end = length;
    size_t most = at + client->terms.their_max_recv;
    return end < most ? end : most;
}

size_t bd_iscsi_segments(const struct iscsi_client *client, size_t length)
{
    size_t count = 0;
    for (size_t at = 0; at < length && count <= BD_ISCSI_MAX_SEGMENTS; count++)
        at = segment_end(client, at, length);
    return count;
}

size_t bd_iscsi_short_bytes(const struct iscsi_client *client, size_t length)
{
    size_t header = bd_iscsi_header_bytes(client);
    return length == 0 ? header : header + length + tail_bytes(client, length);
}

size_t bd_iscsi_data_in_bytes(const struct iscsi_client *client, size_t length)
{
    size_t each = BD_ISCSI_BHS + 2 * BD_ISCSI_DIGEST + 4;
    return length + each * bd_iscsi_segments(client, length);
}

static void push(struct iscsi_output *output, const uint8_t *data, size_t length)
{
    if (output->count > 0) {
        struct iovec *last = &output->pieces[output->count - 1];
        if ((const uint8_t *)last->iov_base + last->iov_len == data) {
            last->iov_len += length;
            return;
        }
    }
    if (output->count == BD_SENT_PIECES) { /* they leave; what headers are made of stays */
        bd_client_send(&output->client->base, output->pieces, output->count, output->arena);
        output->count = 0;
    }
    output->pieces[output->count++] = (struct iovec){(void *)(uintptr_t)data, length};
}

void bd_iscsi_flush(struct iscsi_output *output)
{
    bd_client_send(&output->client->base, output->pieces, output->count, output->arena);
    output->count = 0;
    output->header_bytes = 0;
}

/* Memory for the header of a reply that has no place in the arena. */
static uint8_t *short_header(struct iscsi_output *output)
{
    if (output->header_bytes + BD_ISCSI_BHS + BD_ISCSI_DIGEST > sizeof output->headers)
        bd_iscsi_flush(output);
    uint8_t *at = output->headers + output->header_bytes;
    output->header_bytes += BD_ISCSI_BHS + BD_ISCSI_DIGEST;
    return at;
}

static void put_numbers(const struct iscsi_client *client, uint8_t *at)
{
    bd_put_be32(at + BD_ISCSI_AT_STAT_SN, client->numbers.stat_sn);
    bd_put_be32(at + BD_ISCSI_AT_EXP_CMD_SN, client->numbers.exp_cmd_sn);
    bd_put_be32(at + BD_ISCSI_AT_MAX_CMD_SN, client->numbers.max_cmd_sn);
}

/* Begin a header; `opcode` and what every reply has. */
static void begin(uint8_t *at, uint8_t opcode, uint8_t flags, size_t length, uint32_t itt)
{
    memset(at, 0, BD_ISCSI_BHS);
    at[0] = opcode;
    at[1] = flags;
    bd_put_be32(at + BD_ISCSI_AT_LENGTHS, (uint32_t)length);
    bd_put_be32(at + BD_ISCSI_AT_ITT, itt);
}

size_t bd_iscsi_end_header(const struct iscsi_client *client, uint8_t *at)
{
    if (client->terms.header_digest) { /* RFC 7143 13.1: the digest goes out as it is in memory */
        uint32_t crc = htole32(bd_crc32c(0, at, BD_ISCSI_BHS));
        memcpy(at + BD_ISCSI_BHS, &crc, sizeof crc);
    }
    return bd_iscsi_header_bytes(client);
}

/* Padding and digest of `data`, at `at`; the bytes that they take. */
static size_t put_tail(const struct iscsi_client *client, const uint8_t *data, size_t length,
                       uint8_t *at)
{
    size_t padding = bd_iscsi_padded(length) - length;
    memset(at, 0, padding);
    if (!client->terms.data_digest)
        return padding;
    uint32_t crc = htole32(bd_crc32c(bd_crc32c(0, data, length), at, padding));
    memcpy(at + padding, &crc, sizeof crc);
    return padding + BD_ISCSI_DIGEST;
}

void bd_iscsi_put_good(struct iscsi_output *output, uint32_t itt, uint32_t r2t_sn, uint8_t *at)
{
    struct iscsi_client *client = output->client;
    client->numbers.max_cmd_sn++;
    begin(at, BD_ISCSI_SCSI_RESPONSE, BD_ISCSI_FINAL, 0, itt);
    put_numbers(client, at);
    client->numbers.stat_sn++;
    bd_put_be32(at + BD_ISCSI_AT_DATA_SN, r2t_sn);
    push(output, at, bd_iscsi_end_header(client, at));
}

/* The header of the Data-In of [start, end), in front of which `at` lies. */
static size_t put_data_in_header(struct iscsi_client *client, uint32_t itt, uint8_t *at,
                                 uint32_t data_sn, size_t start, size_t end, size_t length)
{
    bool last = end == length;
    bool ends_burst = last || end % client->terms.max_burst == 0;
    uint8_t flags = ends_burst ? BD_ISCSI_FINAL : 0;
    begin(at, BD_ISCSI_DATA_IN, last ? flags | BD_ISCSI_STATUS : flags, end - start, itt);
    bd_put_be32(at + BD_ISCSI_AT_TTT, BD_ISCSI_NO_TAG);
    put_numbers(client, at);
    if (last)
        client->numbers.stat_sn++;
    else
        bd_put_be32(at + BD_ISCSI_AT_STAT_SN, 0);
    bd_put_be32(at + BD_ISCSI_AT_DATA_SN, data_sn);
    bd_put_be32(at + BD_ISCSI_AT_OFFSET, (uint32_t)start);
    return bd_iscsi_end_header(client, at);
}

void bd_iscsi_put_data_in(struct iscsi_output *output, uint32_t itt, uint8_t *data, size_t length,
                          uint8_t *extra)
{
    struct iscsi_client *client = output->client;
    uint8_t *header = data - bd_iscsi_header_bytes(client);
    client->numbers.max_cmd_sn++;
    uint32_t data_sn = 0;
    size_t start = 0;
    while (start < length) {
        size_t end = segment_end(client, start, length);
        push(output, header, put_data_in_header(client, itt, header, data_sn, start, end, length));
        push(output, data + start, end - start);
        size_t tail = put_tail(client, data + start, end - start, extra);
        if (tail > 0)
            push(output, extra, tail);
        extra += tail;
        header = extra; /* behind the tail: one piece with it */
        extra += bd_iscsi_header_bytes(client);
        start = end;
        data_sn++;
    }
}

void bd_iscsi_put_nop_in(struct iscsi_output *output, const struct iscsi_item *item, uint8_t *at)
{
    struct iscsi_client *client = output->client;
    begin(at, BD_ISCSI_NOP_IN, BD_ISCSI_FINAL, item->ping_length, item->itt);
    memcpy(at + BD_ISCSI_AT_LUN, item->bhs + BD_ISCSI_AT_LUN, 8);
    bd_put_be32(at + BD_ISCSI_AT_TTT, BD_ISCSI_NO_TAG);
    put_numbers(client, at);
    client->numbers.stat_sn++;
    size_t bytes = bd_iscsi_end_header(client, at);
    if (item->ping_length > 0) {
        memcpy(at + bytes, item->ping, item->ping_length);
        size_t tail =
            put_tail(client, at + bytes, item->ping_length, at + bytes + item->ping_length);
        bytes += item->ping_length + tail;
    }
    push(output, at, bytes);
}

void bd_iscsi_put_r2ts(struct iscsi_output *output, struct bd_iscsi_command *command)
{
    struct iscsi_client *client = output->client;
    const struct bd_iscsi_terms *terms = &client->terms;
    uint32_t length = (uint32_t)command->action.length;
    if (!command->charged) { /* all of it at once: halves that wait for each other wait for ever */
        command->charged = true;
        client->held += length;
    }
    while (command->asked < length && command->burst_count < terms->max_bursts) {
        uint32_t left = length - command->asked;
        uint32_t wanted = left < terms->max_burst ? left : terms->max_burst;
        uint32_t ttt = client->numbers.next_ttt;
        client->numbers.next_ttt = (ttt + 1) % BD_ISCSI_NO_TAG;
        unsigned which = (command->first_burst + command->burst_count) % BD_ISCSI_MAX_BURSTS;
        command->bursts[which] = (struct bd_iscsi_burst){
            .ttt = ttt, .at = command->asked, .end = command->asked + wanted};
        command->burst_count++;
        uint8_t *at = short_header(output);
        begin(at, BD_ISCSI_R2T, BD_ISCSI_FINAL, 0, command->itt);
        memcpy(at + BD_ISCSI_AT_LUN, command->bhs + BD_ISCSI_AT_LUN, 8);
        bd_put_be32(at + BD_ISCSI_AT_TTT, ttt);
        put_numbers(client, at);
        bd_put_be32(at + BD_ISCSI_AT_DATA_SN, command->r2t_sn++);
        bd_put_be32(at + BD_ISCSI_AT_OFFSET, command->asked);
        bd_put_be32(at + BD_ISCSI_AT_DESIRED, wanted);
        command->asked += wanted;
        push(output, at, bd_iscsi_end_header(client, at));
    }
    command->asks = false;
}
