#include "peer.h"

#include <string.h>

#include "bytes.h"
#include "crc32c.h"

enum { VERSION = 1, ACK = 17, APPEND = 18, CHECKED = BD_PEER_HEADER - 4 };

static const uint8_t MAGIC[4] = {'B', 'P', 'E', 'R'};

/* Of the header without its checksum, and of the fields. */
static uint32_t checksum(const uint8_t *head, size_t length)
{
    return bd_crc32c(bd_crc32c(0, head, CHECKED), head + BD_PEER_HEADER, length - BD_PEER_HEADER);
}

/* Whether it is a head of that type, length and count of frames, of this session. */
static bool is_head(const uint8_t *head, size_t length, const struct bd_peer_session *session,
                    uint8_t type, size_t wanted, uint16_t frames)
{
    return length == wanted && memcmp(head, MAGIC, sizeof MAGIC) == 0 && head[4] == VERSION &&
           head[5] == type && bd_get16(head + 6) == frames &&
           bd_get64(head + 8) == session->theirs && bd_get64(head + 16) == session->mine &&
           bd_get32(head + 32) == wanted - BD_PEER_HEADER &&
           bd_get32(head + CHECKED) == checksum(head, length);
}

bool bd_peer_is_append(const uint8_t *head, size_t length, const struct bd_peer_session *session,
                       struct bd_peer_append *append)
{
    if (!is_head(head, length, session, APPEND, BD_PEER_APPEND_BYTES, 1))
        return false;
    const uint8_t *fields = head + BD_PEER_HEADER;
    *append = (struct bd_peer_append){
        .request = bd_get64(head + 24),
        .volume = fields,
        .epoch = bd_get64(fields + 16),
        .written = bd_get64(fields + 24),
        .first_seq = bd_get64(fields + 32),
        .last_seq = bd_get64(fields + 40),
    };
    bool sync = fields[48] != 0;
    return append->request != 0 && !sync;
}

bool bd_peer_is_ack(const uint8_t *head, size_t length, const struct bd_peer_session *session,
                    struct bd_peer_acked *ack)
{
    if (!is_head(head, length, session, ACK, BD_PEER_ACK_BYTES, 0))
        return false;
    const uint8_t *fields = head + BD_PEER_HEADER;
    *ack = (struct bd_peer_acked){
        .request = bd_get64(head + 24),
        .epoch = bd_get64(fields),
        .received = bd_get64(fields + 8),
        .durable = bd_get64(fields + 16),
    };
    return ack->epoch > 0 && ack->epoch <= INT64_MAX && ack->received <= INT64_MAX &&
           ack->durable <= ack->received;
}

void bd_peer_ack(uint8_t *out, const struct bd_peer_session *session, uint64_t request,
                 uint64_t epoch, uint64_t received, uint64_t durable)
{
    memset(out, 0, BD_PEER_ACK_BYTES);
    memcpy(out, MAGIC, sizeof MAGIC);
    out[4] = VERSION;
    out[5] = ACK;
    bd_put64(out + 8, session->mine);
    bd_put64(out + 16, session->theirs);
    bd_put64(out + 24, request);
    bd_put32(out + 32, BD_PEER_ACK_BYTES - BD_PEER_HEADER);
    uint8_t *fields = out + BD_PEER_HEADER;
    bd_put64(fields, epoch);
    bd_put64(fields + 8, received);
    bd_put64(fields + 16, durable);
    bd_put32(out + CHECKED, checksum(out, BD_PEER_ACK_BYTES));
}
