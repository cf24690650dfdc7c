/* The two messages of the peer protocol that come with every write, an APPEND of one frame and the
 * ACK that answers it (docs/peer-protocol.md), as long as there is nothing to be decided: what is
 * not plain is for transport/peer and transport/group, which take and refuse it as if this had not
 * been asked. The bytes are hostile. */
#ifndef BLOCKD_PEER_H
#define BLOCKD_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BD_PEER_HEADER = 40,
    BD_PEER_VOLUME = 16,
    BD_PEER_APPEND_BYTES = BD_PEER_HEADER + 49,
    BD_PEER_ACK_BYTES = BD_PEER_HEADER + 24,
    BD_PEER_AT_ONCE = 256 << 10, /* bytes of records: as long as that takes to check and to copy,
                                    nothing else is heard of any node */
};

/* The two sides of a session, as the receiver of a message has them. */
struct bd_peer_session {
    uint64_t theirs;
    uint64_t mine;
};

struct bd_peer_append {
    uint64_t request;
    const uint8_t *volume; /* within the head */
    uint64_t epoch;
    uint64_t written;
    uint64_t first_seq;
    uint64_t last_seq;
};

/* Whether `head` is that of an APPEND of this session with one frame of payload and no sync. */
bool bd_peer_is_append(const uint8_t *head, size_t length, const struct bd_peer_session *session,
                       struct bd_peer_append *append);

struct bd_peer_acked {
    uint64_t request;
    uint64_t epoch;
    uint64_t received;
    uint64_t durable;
};

/* Whether `head` is an ACK of this session, within the protocol's bounds. */
bool bd_peer_is_ack(const uint8_t *head, size_t length, const struct bd_peer_session *session,
                    struct bd_peer_acked *ack);

/* The only frame of an ACK; `out` has BD_PEER_ACK_BYTES. */
void bd_peer_ack(uint8_t *out, const struct bd_peer_session *session, uint64_t request,
                 uint64_t epoch, uint64_t received, uint64_t durable);

#endif
