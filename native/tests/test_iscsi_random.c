/* Sessions of initiators that do anything: good PDUs, spoilt ones, random ones, in any pieces, with
 * stops in between; of every other one, the first unit is limited, now more and now less. Whatever
 * comes,
 *
 * - what the target sends is whole PDUs, whose StatSNs have no gap and whose windows only open;
 * - commands that are open and those that may come are the window together;
 * - what is asked for at a time is accounted for, and bounded;
 * - of the commands that wait for a limit, the oldest one alone has a place in line, and somebody
 *   is to look at it again;
 * - a stop leaves something over. */
#include <string.h>
#include <sys/socket.h>

#include "big_endian.h"
#include "check.h"
#include "iscsi_client.h"
#include "iscsi_rig.h"

enum { SEEDS = 60, STEPS = 120, SPACE = 64 << 10, MAX_LENGTH = 48 << 10 };

struct session {
    struct iscsi_rig rig;
    struct bd_limit limit;
    bool limited;
    uint64_t chance;
    uint32_t itt;
    uint32_t stat_sn;
    uint32_t max_cmd_sn;
    uint8_t received[1 << 20];
    size_t received_length;
};

static uint8_t stream[SPACE];
static uint8_t payload[SPACE];

static uint64_t below(struct session *session, uint64_t limit)
{
    return random_below(&session->chance, limit);
}

static struct bd_iscsi_terms random_terms(struct session *session)
{
    struct bd_iscsi_terms terms = iscsi_rig_terms();
    terms.their_max_recv = (uint32_t)(512 + below(session, 9000));
    terms.our_max_recv = 32768;
    terms.max_burst = (uint32_t)(4096 + below(session, 40000));
    terms.first_burst = (uint32_t)(512 + below(session, 16000));
    terms.max_bursts = (uint32_t)(1 + below(session, BD_ISCSI_MAX_BURSTS));
    terms.initial_r2t = below(session, 2) != 0;
    terms.immediate_data = below(session, 2) != 0;
    terms.header_digest = below(session, 3) == 0;
    terms.data_digest = below(session, 3) == 0;
    terms.max_held = below(session, 2) != 0 ? 1 : 1 << 20;
    return terms;
}

/* A READ or WRITE of whole blocks. */
static size_t make_command(struct session *session)
{
    const struct bd_iscsi_terms *terms = &session->rig.terms;
    size_t blocks = 1 + below(session, MAX_LENGTH / ISCSI_BLOCK - 1);
    size_t length = (below(session, 2) != 0 ? 1 + blocks % 16 : blocks) * ISCSI_BLOCK;
    uint64_t offset = below(session, 64) * ISCSI_BLOCK;
    uint32_t itt = session->itt++;
    if (below(session, 2) != 0)
        return iscsi_rig_command(&session->rig, stream, BD_SCSI_READ_10, itt, offset, length, NULL,
                                 0, true);
    size_t most = terms->first_burst < length ? terms->first_burst : length;
    size_t immediate = terms->immediate_data ? below(session, most + 1) : 0;
    bool final = terms->initial_r2t || immediate == most || below(session, 2) != 0;
    return iscsi_rig_command(&session->rig, stream, BD_SCSI_WRITE_10, itt, offset, length, payload,
                             immediate, final);
}

/* The Data-Out that one of the commands waits for, mostly. */
static size_t make_data_out(struct session *session)
{
    const struct bd_iscsi_command *command = bd_iscsi_client_commands(session->rig.client);
    for (uint64_t skip = below(session, 4); command != NULL && skip > 0; skip--)
        command = command->next != NULL ? command->next : command;
    if (command == NULL || command->state != BD_ISCSI_COLLECTING ||
        (!command->unsolicited && command->burst_count == 0)) /* it waits for room */
        return make_command(session);
    const struct bd_iscsi_burst *burst = &command->bursts[command->first_burst];
    uint32_t ttt = command->unsolicited ? BD_ISCSI_NO_TAG : burst->ttt;
    uint32_t data_sn = command->unsolicited ? command->unsolicited_sn : burst->data_sn;
    uint64_t end = command->action.length;
    if (command->unsolicited && end > session->rig.terms.first_burst)
        end = session->rig.terms.first_burst;
    if (!command->unsolicited && command->burst_count > 0)
        end = burst->end;
    size_t length = (size_t)(end - command->got);
    if (length > session->rig.terms.our_max_recv || below(session, 3) == 0)
        length = below(session, length < 8192 ? length + 1 : 8192);
    bool final = command->got + length == end;
    return iscsi_rig_data_out(&session->rig, stream, command->itt, ttt, data_sn, command->got,
                              payload, length, final);
}

static size_t make_ping(struct session *session)
{
    uint8_t bhs[BD_ISCSI_BHS] = {BD_ISCSI_NOP_OUT, BD_ISCSI_FINAL};
    bool immediate = below(session, 2) != 0;
    if (immediate)
        bhs[0] |= BD_ISCSI_IMMEDIATE;
    bd_put_be32(bhs + BD_ISCSI_AT_ITT, session->itt++);
    bd_put_be32(bhs + BD_ISCSI_AT_TTT, BD_ISCSI_NO_TAG);
    bd_put_be32(bhs + BD_ISCSI_AT_CMD_SN, session->rig.cmd_sn);
    session->rig.cmd_sn += !immediate;
    return iscsi_rig_pdu(&session->rig, stream, bhs, payload, below(session, 200));
}

static size_t make_something(struct session *session)
{
    size_t length;
    switch (below(session, 8)) {
    case 0:
    case 1:
        length = make_command(session);
        break;
    case 2:
        length = make_ping(session);
        break;
    default:
        length = make_data_out(session);
        break;
    }
    if (below(session, 40) == 0) { /* spoil it */
        for (uint64_t count = 1 + below(session, 3); count > 0; count--)
            stream[below(session, below(session, 2) != 0 ? BD_ISCSI_BHS : length)] =
                (uint8_t)next_random(&session->chance);
    } else if (below(session, 100) == 0) {
        length = below(session, 300);
        random_bytes(&session->chance, stream, length);
    }
    return length;
}

/* Everything that was sent, as PDUs. */
static void check_replies(struct session *session)
{
    const struct bd_iscsi_terms *terms = &session->rig.terms;
    for (;;) {
        ssize_t count = recv(session->rig.peer, session->received + session->received_length,
                             sizeof session->received - session->received_length, MSG_DONTWAIT);
        if (count <= 0)
            break;
        session->received_length += (size_t)count;
    }
    size_t at = 0;
    for (;;) {
        const uint8_t *bhs = session->received + at;
        size_t left = session->received_length - at;
        size_t whole = BD_ISCSI_BHS + (terms->header_digest ? BD_ISCSI_DIGEST : 0);
        if (left < whole)
            break;
        size_t length = bd_get_be32(bhs + BD_ISCSI_AT_LENGTHS);
        CHECK(length <= terms->their_max_recv);
        if (length > 0)
            whole += bd_iscsi_padded(length) + (terms->data_digest ? BD_ISCSI_DIGEST : 0);
        if (left < whole)
            break;
        bool counts = bhs[0] == BD_ISCSI_SCSI_RESPONSE || bhs[0] == BD_ISCSI_NOP_IN ||
                      (bhs[0] == BD_ISCSI_DATA_IN && (bhs[1] & BD_ISCSI_STATUS) != 0);
        CHECK(counts || bhs[0] == BD_ISCSI_DATA_IN || bhs[0] == BD_ISCSI_R2T);
        if (counts)
            CHECK_EQ(bd_get_be32(bhs + BD_ISCSI_AT_STAT_SN), session->stat_sn++);
        uint32_t max_cmd_sn = bd_get_be32(bhs + BD_ISCSI_AT_MAX_CMD_SN);
        CHECK((int32_t)(max_cmd_sn - session->max_cmd_sn) >= 0);
        session->max_cmd_sn = max_cmd_sn;
        at += whole;
    }
    memmove(session->received, session->received + at, session->received_length - at);
    session->received_length -= at;
}

static void check_numbers(struct session *session)
{
    struct iscsi_client *client = iscsi_client(session->rig.client);
    pthread_mutex_lock(&client->base.lock);
    uint32_t open = 0;
    uint32_t waiting = 0;
    uint64_t held = 0;
    const struct bd_iscsi_command *command = client->first_command;
    for (; command != NULL; command = command->next) {
        open++;
        held += command->charged ? command->action.length : 0;
        CHECK(command->got <= command->asked && command->asked <= command->action.length);
        CHECK(command->burst_count <= client->terms.max_bursts);
        if (command->state == BD_ISCSI_WAITING) {
            CHECK_EQ(command->lun, 0);
            CHECK_EQ(command->got,
                     command->action.kind == BD_ACTION_WRITE ? command->action.length : 0);
            CHECK(command->reservation.made == (waiting == 0));
            waiting++;
        } else {
            CHECK(!command->reservation.made);
        }
    }
    CHECK_EQ(waiting, client->waiting);
    CHECK_EQ(waiting, client->luns[0].waiting);
    CHECK_EQ(bd_limit_held(&session->limit).waiting, waiting > 0);
    CHECK(waiting == 0 || client->base.due_ns != 0 || client->base.stopping);
    const struct bd_iscsi_numbers *numbers = &client->numbers;
    CHECK_EQ(open + (numbers->max_cmd_sn + 1 - numbers->exp_cmd_sn), BD_ISCSI_WINDOW);
    CHECK_EQ(held, client->held);
    CHECK((int32_t)(numbers->exp_cmd_sn - session->rig.cmd_sn) <= 0); /* none that was not sent */
    pthread_mutex_unlock(&client->base.lock);
}

/* The limit is another one, or the time has come that somebody waits for. */
static void make_time_pass(struct session *session)
{
    struct bd_client *client = session->rig.client;
    if (below(session, 6) == 0) {
        static const uint64_t bytes[] = {0, 1, 100000000};
        uint64_t rates[BD_LIMITS] = {[BD_LIMIT_BYTES] = bytes[below(session, 3)]};
        bd_limit_set(&session->limit, rates, 0, bd_loop_monotonic_ns());
    }
    if (client->due_ns != 0 && below(session, 3) == 0) {
        client->due_ns = 0;
        CHECK(client->protocol->serve(client, &session->rig.worker) != BD_SERVED_STOP);
        check_replies(session);
    }
}

static void play(uint64_t seed)
{
    static struct session session;
    memset(&session, 0, sizeof session);
    session.chance = seed;
    struct bd_iscsi_terms terms = random_terms(&session);
    iscsi_rig_init(&session.rig, &terms);
    bd_limit_init(&session.limit);
    session.limited = seed % 2 == 0;
    if (session.limited)
        iscsi_client(session.rig.client)->luns[0].limit = &session.limit;
    struct bd_iscsi_numbers numbers = bd_iscsi_client_numbers(session.rig.client);
    session.stat_sn = numbers.stat_sn;
    session.max_cmd_sn = numbers.max_cmd_sn;
    for (int step = 0; step < STEPS; step++) {
        size_t length = make_something(&session);
        size_t at = 0;
        enum bd_served served = BD_SERVED_ALL;
        while (at < length && served != BD_SERVED_STOP) {
            size_t piece = below(&session, 3) == 0 ? 1 + below(&session, length - at) : length - at;
            served = iscsi_rig_feed(&session.rig, stream + at, piece);
            at += piece;
            check_replies(&session);
        }
        check_numbers(&session);
        if (session.limited && served != BD_SERVED_STOP) {
            make_time_pass(&session);
            check_numbers(&session);
        }
        if (served == BD_SERVED_STOP) { /* Python has it, and goes on behind it */
            CHECK(iscsi_rig_left(&session.rig) > 0);
            session.rig.client->input.start = session.rig.client->input.end;
            session.rig.cmd_sn = bd_iscsi_client_numbers(session.rig.client).exp_cmd_sn;
        }
    }
    bd_iscsi_client_interrupt(session.rig.client);
    CHECK_EQ(bd_iscsi_client_unwind(session.rig.client), 0);
    CHECK(session.rig.client->direct.at == NULL);
    check_replies(&session);
    check_numbers(&session);
    iscsi_rig_destroy(&session.rig);
    bd_limit_destroy(&session.limit);
}

int main(void)
{
    uint64_t payload_seed = 1;
    random_bytes(&payload_seed, payload, sizeof payload);
    for (uint64_t seed = 1; seed <= SEEDS; seed++)
        play(seed);
    return 0;
}
