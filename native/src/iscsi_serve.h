/* The iSCSI requests that the loop serves itself, in the full feature phase of a session: READ,
 * WRITE and SYNCHRONIZE CACHE that are in order, to units of which nothing is out of the ordinary,
 * with their Data-Out, R2T and Data-In; and NOP-Out. Everything else stops the loop's part, and the
 * Python engine goes on where it ended:
 *
 *     before   the engine gives the numbers, and the commands whose data is being collected
 *              (bd_iscsi_client_import)
 *     stop     all jobs end; then the numbers, the bytes that were not served, and the commands
 * that have begun and were not answered (bd_iscsi_client_commands) are the engine's: those that
 * still collect, and those that failed, which it carries out again
 *
 * Reads that the core cannot do because a chunk's place is not known go by mail: the command's BHS,
 * which is answered by bd_iscsi_client_give.
 *
 * Responses are those that blockd/iscsi/replies.py makes: it is the oracle of the tests. Of two
 * commands with the same task tag that come in one round both are answered; the engine ends the
 * connection at the second (an initiator may not do that, and nothing is harmed by it here). */
#ifndef BLOCKD_ISCSI_SERVE_H
#define BLOCKD_ISCSI_SERVE_H

#include "batch.h"
#include "iscsi_wire.h"
#include "loop.h"

enum {
    BD_ISCSI_WINDOW = 128, /* commands of one session; as blockd/iscsi/limits.py */
    BD_ISCSI_LUNS = 256,   /* of the peripheral addressing method */
    BD_ISCSI_MAX_BURSTS = 16,
    BD_ISCSI_MAX_TRANSFER = 16 << 20, /* bytes of one command; as blockd/scsi/disk.py */
    BD_ISCSI_MAX_SEGMENTS = 256,      /* Data-Ins of one command that is served here */
};

struct bd_iscsi_lun {
    struct bd_volume *volume;   /* NULL: no unit, or none that is served here */
    struct bd_account *account; /* or NULL */
    struct bd_limit *limit;     /* or NULL */
    unsigned waiting;           /* commands in BD_ISCSI_WAITING; ours */
    uint64_t size;              /* as initiators know it */
    uint32_t block_shift;
    bool read_only;
};

struct bd_iscsi_numbers {
    uint32_t exp_cmd_sn;
    uint32_t max_cmd_sn;
    uint32_t stat_sn;
    uint32_t next_ttt;
};

struct bd_iscsi_terms {
    uint32_t their_max_recv; /* bytes of one Data-In, MaxRecvDataSegmentLength of the initiator */
    uint32_t our_max_recv;
    uint32_t max_burst;
    uint32_t first_burst;
    uint32_t max_bursts; /* MaxOutstandingR2T, at most BD_ISCSI_MAX_BURSTS */
    bool initial_r2t;
    bool immediate_data;
    bool header_digest;
    bool data_digest;
    uint64_t max_held; /* bytes of data-out being asked for, of all commands; one may go beyond */
};

/* What one R2T asked for, and how far its answer is. */
struct bd_iscsi_burst {
    uint32_t ttt;
    uint32_t at;
    uint32_t end;
    uint32_t data_sn;
};

enum bd_iscsi_state {
    BD_ISCSI_COLLECTING,
    BD_ISCSI_UNDER_WAY, /* a round or a job has it: never of a client that has stopped */
    BD_ISCSI_MAILED, /* Python reads for it; as FAILED when the client stops before that is done */
    BD_ISCSI_FAILED, /* to be carried out again by the engine, with all of its data */
    BD_ISCSI_UNSYNCED, /* the same; what it writes is in the journal, and a flush is missing */
    BD_ISCSI_WAITING,  /* for its volume's limits, with all of its data; when the client stops
                          before its time, the engine has it wait */
};

/* A command that did not end in the round in which it came. */
struct bd_iscsi_command {
    struct bd_iscsi_command *next;
    uint8_t bhs[BD_ISCSI_BHS];
    enum bd_iscsi_state state;
    uint64_t arrived_ns;               /* the last of its data */
    struct bd_reservation reservation; /* WAITING: when its time is */
    uint32_t itt;
    uint8_t lun;
    struct bd_action action; /* its `data` is the command's own, with WRITE */
    uint32_t got;            /* bytes that came, in order */
    uint32_t asked;          /* bytes that came, or that an R2T asked for */
    uint32_t r2t_sn;
    uint32_t unsolicited_sn;
    bool unsolicited; /* Data-Outs come that nobody asked for */
    bool charged;     /* counts in `held` */
    bool asks;        /* an R2T is to be sent as soon as there is room */
    unsigned first_burst;
    unsigned burst_count;
    struct bd_iscsi_burst bursts[BD_ISCSI_MAX_BURSTS]; /* a ring, in the order of the R2Ts */
};

/* A client of the loop, not yet added. `luns` (BD_ISCSI_LUNS of them, copied) have at least one
 * volume. `fd` belongs to it on success. NULL when memory runs
 * out. */
struct bd_client *bd_iscsi_client_new(int fd, const struct bd_iscsi_terms *terms,
                                      const struct bd_iscsi_numbers *numbers,
                                      const struct bd_iscsi_lun *luns, const uint8_t *input,
                                      size_t input_length);

/* Before the client is added: a WRITE that collects its data. Of `command` are read: bhs, got,
 * asked, r2t_sn, unsolicited, unsolicited_sn, first_burst (0), burst_count, bursts. `data`: `got`
 * bytes, copied. 0; -EINVAL for what cannot be served here; -ENOMEM. */
int bd_iscsi_client_import(struct bd_client *client, const struct bd_iscsi_command *command,
                           const uint8_t *data);

/* Stop the client, and wait until the round that may be going on has ended: no command that was not
 * begun before is begun afterwards. What was begun may still have jobs, until it has stopped. */
void bd_iscsi_client_interrupt(struct bd_client *client);

/* Answer the command of that tag which went by mail: with all the data that it reads, or with NULL
 * when that failed; then the loop's part ends. False when there is none that waits. */
bool bd_iscsi_client_give(struct bd_client *client, uint32_t itt, const uint8_t *data,
                          size_t length);

/* Whether a client of the loop is one of these. */
bool bd_iscsi_client_is(const struct bd_client *client);

/* Whether it has stopped; and then what there is to go on with: first of all, a Data-Out of which a
 * part was received goes back into the input. 0 or -ENOMEM. */
bool bd_iscsi_client_stopped(struct bd_client *client);
int bd_iscsi_client_unwind(struct bd_client *client);
struct bd_iscsi_numbers bd_iscsi_client_numbers(struct bd_client *client);
struct bd_iscsi_command *bd_iscsi_client_commands(struct bd_client *client);
/* The limit of the volume of a command. */
struct bd_limit *bd_iscsi_client_limit(struct bd_client *client,
                                       const struct bd_iscsi_command *command);

/* Commands of all units, or of one (`lun`), that were begun and not answered. */
unsigned bd_iscsi_client_open(struct bd_client *client, int lun);

/* Whether a byte came since the last call. */
bool bd_iscsi_client_heard(struct bd_client *client);

#endif
