/* An iSCSI client of the loop over a socket pair, served by hand: no thread of a worker runs, so a
 * test says when a round takes place. Jobs run on the threads of a loop that has no client. */
#ifndef BLOCKD_ISCSI_RIG_H
#define BLOCKD_ISCSI_RIG_H

#include "iscsi_serve.h"
#include "rig.h"

enum {
    ISCSI_VOLUME = 16 << 20,
    ISCSI_KNOWN = 8 << 20, /* bytes whose chunks have places: nothing is known of the others */
    ISCSI_BLOCK = 512,
};

struct iscsi_rig {
    struct rig store;
    struct bd_loop *loop;
    struct bd_worker worker;
    struct bd_client *client;
    struct bd_iscsi_terms terms;
    int peer; /* the initiator's end */
    uint32_t cmd_sn;
};

/* What tests begin with: bursts and segments of 8 KiB, immediate data, no R2T first, no digests. */
struct bd_iscsi_terms iscsi_rig_terms(void);
void iscsi_rig_init(struct iscsi_rig *rig, const struct bd_iscsi_terms *terms);
void iscsi_rig_destroy(struct iscsi_rig *rig);

/* Bytes arrive. All rounds that they lead to take place; what the last one said. */
enum bd_served iscsi_rig_feed(struct iscsi_rig *rig, const uint8_t *bytes, size_t length);

/* PDUs, with padding and the digests that the terms ask for; bytes in all. */
size_t iscsi_rig_pdu(const struct iscsi_rig *rig, uint8_t *out, const uint8_t *bhs,
                     const uint8_t *data, size_t length);
/* A READ (10) or WRITE (10) of LUN 0, with its `immediate` bytes of data; uses a CmdSN up. */
size_t iscsi_rig_command(struct iscsi_rig *rig, uint8_t *out, uint8_t code, uint32_t itt,
                         uint64_t offset, size_t length, const uint8_t *data, size_t immediate,
                         bool final);
size_t iscsi_rig_data_out(const struct iscsi_rig *rig, uint8_t *out, uint32_t itt, uint32_t ttt,
                          uint32_t data_sn, size_t offset, const uint8_t *data, size_t length,
                          bool final);

/* The next PDU that the target sent, waiting for it; bytes of its data, which go to `data` (may be
 * NULL when there are none). Digests are checked. */
size_t iscsi_rig_receive(struct iscsi_rig *rig, uint8_t bhs[BD_ISCSI_BHS], uint8_t *data);
/* Nothing is there to be received. */
void iscsi_rig_silent(struct iscsi_rig *rig);
/* A GOOD response of that command. */
void iscsi_rig_good(struct iscsi_rig *rig, uint32_t itt);
/* Unserved bytes. */
size_t iscsi_rig_left(const struct iscsi_rig *rig);

#endif
