/* What the files of the iSCSI protocol share: its client, a round, and the parts of serving one. */
#ifndef BLOCKD_ISCSI_CLIENT_H
#define BLOCKD_ISCSI_CLIENT_H

#include "iscsi_serve.h"

struct iscsi_client {
    struct bd_client base;
    struct bd_iscsi_terms terms;
    struct bd_iscsi_lun luns[BD_ISCSI_LUNS];
    atomic_bool heard;
    pthread_mutex_t round_lock; /* before base.lock: somebody serves a round */

    /* The loop thread's: the Data-Out whose data lands where it belongs (base.direct). */
    struct {
        struct bd_iscsi_command *command; /* NULL: none */
        uint8_t bhs[BD_ISCSI_BHS];
        uint32_t length;
    } landing;
    bool long_data_outs; /* the last one was */

    /* Under base.lock. */
    struct bd_iscsi_numbers numbers;
    struct bd_iscsi_command *first_command; /* in the order in which they came, or began to wait */
    struct bd_iscsi_command *last_command;
    uint64_t held;    /* bytes of commands that are charged */
    unsigned waiting; /* commands in BD_ISCSI_WAITING */
};

static inline struct iscsi_client *iscsi_client(struct bd_client *client)
{
    return (struct iscsi_client *)client;
}

/* A PDU in the input. */
struct iscsi_pdu {
    const uint8_t *bhs;
    const uint8_t *data;
    size_t length; /* of the data, without padding */
};

/* What is to be answered at the end of a round. */
struct iscsi_item {
    const uint8_t *bhs;               /* in the input, or the command's */
    struct bd_iscsi_command *command; /* NULL: it came whole in this round */
    uint32_t itt;
    uint8_t lun;
    bool is_ping;
    const uint8_t *ping; /* what is echoed */
    size_t ping_length;
    size_t out_at; /* where its reply is made, in the arena */
};

struct iscsi_round {
    int count;
    size_t out_bytes;
    uint64_t arrived_ns; /* of the first PDU; 0: none came. Commands that waited have their own */
    bool has_written;
    bool asks; /* commands want R2Ts */
    struct iscsi_item items[BD_BATCH];
    struct bd_action actions[BD_BATCH];
};

enum iscsi_taken {
    ISCSI_TAKEN,
    ISCSI_FULL, /* it is for the next round */
    ISCSI_RARE, /* it is the engine's */
};

/* iscsi_serve.c */

extern const struct bd_protocol bd_iscsi_protocol;

/* iscsi_answer.c */

/* Without the lock. `arena` has round->out_bytes. */
void bd_iscsi_carry_out(struct iscsi_client *client, struct iscsi_round *round,
                        struct bd_arena *arena);

/* All below with the lock held. What was carried out leaves; jobs begin for what waits. */
void bd_iscsi_answer(struct iscsi_client *client, struct iscsi_round *round,
                     struct bd_arena *arena);
/* bd_protocol.finish */
void bd_iscsi_finish(struct bd_client *base, struct bd_job *job);
/* A command that the engine is to carry out: the client stops. */
void bd_iscsi_fail(struct iscsi_client *client, struct bd_iscsi_command *command,
                   enum bd_iscsi_state state);
/* Answer a command that was read elsewhere; `data` lies in `arena`, with room before it. */
void bd_iscsi_put_read(struct iscsi_client *client, struct bd_iscsi_command *command, uint8_t *data,
                       struct bd_arena *arena);

/* iscsi_command.c */

/* What an action is to accounts and limits. */
enum bd_op bd_iscsi_op(const struct bd_action *action);
/* The action of a SCSI Command that is served here, where `lun` says; false for any other. Its data
 * is not looked at. */
bool bd_iscsi_decode(const struct iscsi_client *client, const uint8_t *bhs, uint8_t *lun,
                     struct bd_action *action);
/* Take a SCSI Command into the round, or begin to collect its data. */
enum iscsi_taken bd_iscsi_take_command(struct iscsi_client *client, struct iscsi_round *round,
                                       const struct iscsi_pdu *pdu);
enum iscsi_taken bd_iscsi_take_ping(struct iscsi_client *client, struct iscsi_round *round,
                                    const struct iscsi_pdu *pdu);

/* iscsi_collect.c */

/* A command in the book, with room for the data of a WRITE; NULL when memory runs out. */
struct bd_iscsi_command *bd_iscsi_command_new(struct iscsi_client *client, const uint8_t *bhs,
                                              uint8_t lun, const struct bd_action *action);
/* Behind all others in the book. */
void bd_iscsi_command_last(struct iscsi_client *client, struct bd_iscsi_command *command);
/* Out of the book, and free. */
void bd_iscsi_command_end(struct iscsi_client *client, struct bd_iscsi_command *command);
/* Its data is not needed any more, or not here. */
void bd_iscsi_command_release(struct iscsi_client *client, struct bd_iscsi_command *command);
struct bd_iscsi_command *bd_iscsi_command_of(struct iscsi_client *client, uint32_t itt);

/* A Data-Out. */
enum iscsi_taken bd_iscsi_take_data(struct iscsi_client *client, struct iscsi_round *round,
                                    const struct iscsi_pdu *pdu);
/* The Data-Out at the start of the input, `have` bytes of whose data are there: the rest is to land
 * where it belongs. False: it is not worth it, or not in order. */
bool bd_iscsi_begin_landing(struct iscsi_client *client, const struct iscsi_pdu *pdu, size_t have);
/* All of it has landed. */
void bd_iscsi_end_landing(struct iscsi_client *client, struct iscsi_round *round);

/* The round has room for one more command, with its reply. */
bool bd_iscsi_has_place(const struct iscsi_client *client, const struct iscsi_round *round,
                        const struct bd_action *action);
/* A command of the book that is to be carried out in the round. */
void bd_iscsi_add_command(struct iscsi_client *client, struct iscsi_round *round,
                          struct bd_iscsi_command *command);

/* iscsi_hold.c; all with the lock held */

/* Whether the limits of its volume let a command go on that is whole; else base.due_ns says when to
 * look again, and it is to wait. */
bool bd_iscsi_may_go(struct iscsi_client *client, uint8_t lun, const struct bd_action *action,
                     struct bd_reservation *reservation);
void bd_iscsi_wait(struct iscsi_client *client, struct bd_iscsi_command *command,
                   const struct bd_reservation *reservation);
/* See to there being another round, when this one lets nobody go. */
void bd_iscsi_look_again(struct iscsi_client *client);
/* Add those to the round whose time has come. */
void bd_iscsi_let_go(struct iscsi_client *client, struct iscsi_round *round);

/* iscsi_reply.c */

enum { ISCSI_HEADERS_BYTES = (BD_ISCSI_BHS + 2 * BD_ISCSI_DIGEST + 4) * BD_ISCSI_MAX_SEGMENTS };

struct iscsi_output {
    struct iscsi_client *client;
    struct bd_arena *arena; /* in which pieces lie */
    int count;
    struct iovec pieces[BD_SENT_PIECES];
    size_t header_bytes;
    uint8_t headers[(BD_ISCSI_BHS + BD_ISCSI_DIGEST) * BD_BATCH]; /* of R2Ts */
};

/* Bytes before the data of a reply. */
size_t bd_iscsi_header_bytes(const struct iscsi_client *client);
/* End a header with its digest, if there is to be one; the bytes that it takes in all. */
size_t bd_iscsi_end_header(const struct iscsi_client *client, uint8_t *at);
/* Data-Ins that a READ of `length` bytes takes. */
size_t bd_iscsi_segments(const struct iscsi_client *client, size_t length);
/* Bytes of an arena that the reply takes, data included. */
size_t bd_iscsi_data_in_bytes(const struct iscsi_client *client, size_t length);
size_t bd_iscsi_short_bytes(const struct iscsi_client *client, size_t length);

/* Replies, with the lock held. A command's room in the window is given back by it. */

void bd_iscsi_put_good(struct iscsi_output *output, uint32_t itt, uint32_t r2t_sn, uint8_t *at);
/* `data` has room for a header before it; the headers between Data-Ins are made at `extra`. */
void bd_iscsi_put_data_in(struct iscsi_output *output, uint32_t itt, uint8_t *data, size_t length,
                          uint8_t *extra);
void bd_iscsi_put_nop_in(struct iscsi_output *output, const struct iscsi_item *item, uint8_t *at);
/* As many R2Ts as there may be and is room for. */
void bd_iscsi_put_r2ts(struct iscsi_output *output, struct bd_iscsi_command *command);
/* Everything leaves. */
void bd_iscsi_flush(struct iscsi_output *output);

#endif
