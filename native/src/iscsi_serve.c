#include "iscsi_serve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "big_endian.h"
#include "crc32c.h"
#include "iscsi_client.h"

enum {
    LONG_DATA = 64 << 10, /* bytes that a command is to get yet */
    FEW_BYTES = 2048,
};

/* Framing. */

static bool digest_holds(const uint8_t *data, size_t length)
{
    uint32_t crc = htole32(bd_crc32c(0, data, length));
    return memcmp(&crc, data + length, sizeof crc) == 0;
}

/* Of the Data-Out at the start of the input only a part is there: have the rest of its data land
 * where it belongs. */
static void land(struct iscsi_client *client, const uint8_t *at, size_t have, uint32_t length)
{
    struct bd_client *base = &client->base;
    size_t header = bd_iscsi_header_bytes(client);
    if (at[0] != BD_ISCSI_DATA_OUT || have < header ||
        (client->terms.header_digest && !digest_holds(at, BD_ISCSI_BHS)))
        return;
    struct iscsi_pdu pdu = {.bhs = at, .data = at + header, .length = length};
    if (bd_iscsi_begin_landing(client, &pdu, have - header)) {
        base->input.start = base->input.end;
        base->need = 0;
    }
}

/* The PDU at the start of the input. ALL: it is not complete, and base->need says how long it is;
 * STOP: it is damaged or longer than agreed; SOME: there it is, of `whole` bytes. */
static enum bd_served frame(struct iscsi_client *client, struct iscsi_pdu *pdu, size_t *whole)
{
    struct bd_client *base = &client->base;
    const struct bd_iscsi_terms *terms = &client->terms;
    const uint8_t *at = base->input.data + base->input.start;
    size_t have = base->input.end - base->input.start;
    base->need = BD_ISCSI_BHS;
    if (have < BD_ISCSI_BHS)
        return BD_SERVED_ALL;
    uint32_t lengths = bd_get_be32(at + BD_ISCSI_AT_LENGTHS);
    if (lengths > terms->our_max_recv) /* or there is an AHS */
        return BD_SERVED_STOP;
    size_t header = bd_iscsi_header_bytes(client);
    size_t padded = bd_iscsi_padded(lengths);
    *whole = header;
    if (lengths > 0)
        *whole += padded + (terms->data_digest ? BD_ISCSI_DIGEST : 0);
    base->need = *whole;
    if (have < *whole) {
        land(client, at, have, lengths);
        return BD_SERVED_ALL;
    }
    if (terms->header_digest && !digest_holds(at, BD_ISCSI_BHS))
        return BD_SERVED_STOP;
    if (terms->data_digest && lengths > 0 && !digest_holds(at + header, padded))
        return BD_SERVED_STOP;
    *pdu = (struct iscsi_pdu){.bhs = at, .data = at + header, .length = lengths};
    return BD_SERVED_SOME;
}

static enum iscsi_taken take(struct iscsi_client *client, struct iscsi_round *round,
                             const struct iscsi_pdu *pdu)
{
    switch (pdu->bhs[0]) {
    case BD_ISCSI_SCSI_COMMAND:
        return bd_iscsi_take_command(client, round, pdu);
    case BD_ISCSI_DATA_OUT:
        return bd_iscsi_take_data(client, round, pdu);
    case BD_ISCSI_NOP_OUT:
    case BD_ISCSI_NOP_OUT | BD_ISCSI_IMMEDIATE:
        return bd_iscsi_take_ping(client, round, pdu);
    default:
        return ISCSI_RARE;
    }
}

/* Where long data is expected, little is received with the header before it: the rest can land. */
static void expect(struct iscsi_client *client)
{
    client->base.most = 0;
    if (!client->long_data_outs || client->terms.data_digest)
        return;
    const struct bd_iscsi_command *command = client->first_command;
    for (; command != NULL && client->base.most == 0; command = command->next)
        if (command->state == BD_ISCSI_COLLECTING &&
            command->action.length - command->got >= LONG_DATA)
            client->base.most = FEW_BYTES;
}

/* What the input holds, up to the end of a round. The lock is held. */
static enum bd_served gather(struct iscsi_client *client, struct iscsi_round *round)
{
    struct bd_client *base = &client->base;
    if (base->direct.at != NULL) {
        if (base->direct.left > 0)
            return BD_SERVED_ALL;
        bd_iscsi_end_landing(client, round);
    }
    while (round->count < BD_BATCH) {
        struct iscsi_pdu pdu;
        size_t whole;
        enum bd_served framed = frame(client, &pdu, &whole);
        if (framed != BD_SERVED_SOME)
            return framed;
        enum iscsi_taken taken = take(client, round, &pdu);
        if (taken == ISCSI_RARE)
            return BD_SERVED_STOP;
        if (taken == ISCSI_FULL)
            return BD_SERVED_SOME;
        base->input.start += whole;
        base->need = 0;
    }
    return BD_SERVED_SOME;
}

/* Carrying out. */

static void place_replies(struct iscsi_client *client, struct iscsi_round *round,
                          struct bd_arena *arena)
{
    size_t header = bd_iscsi_header_bytes(client);
    for (int i = 0; i < round->count; i++)
        if (round->actions[i].kind == BD_ACTION_READ)
            round->actions[i].data = arena->data + round->items[i].out_at + header;
}

static struct bd_volume *volume_of(const struct iscsi_client *client, uint8_t lun)
{
    return client->luns[lun].volume;
}

/* Runs of commands to the same unit are batches. */
static void carry_out(struct iscsi_client *client, struct iscsi_round *round)
{
    uint64_t now_ns = bd_loop_now_ns();
    int from = 0;
    while (from < round->count) {
        uint8_t lun = round->items[from].lun;
        bool is_ping = round->items[from].is_ping;
        int to = from + 1;
        while (to < round->count && (round->items[to].lun == lun || round->items[to].is_ping) &&
               !is_ping)
            to++;
        if (!is_ping)
            bd_batch_execute(volume_of(client, lun), round->actions + from, to - from, now_ns);
        from = to;
    }
}

static void count(struct bd_counters *counters, const struct bd_action *action)
{
    switch (action->kind) {
    case BD_ACTION_READ:
        counters->reads++;
        counters->read_bytes += action->length;
        break;
    case BD_ACTION_WRITE:
        counters->writes++;
        counters->written_bytes += action->length;
        break;
    default:
        counters->flushes++;
        break;
    }
}

/* All below: the lock is held. */

/* The command of an item outlives its round. NULL when memory ran out: the client is cut then. */
static struct bd_iscsi_command *keep(struct iscsi_client *client, const struct iscsi_item *item,
                                     const struct bd_action *action)
{
    if (item->command != NULL)
        return item->command;
    struct bd_iscsi_command *command = bd_iscsi_command_new(client, item->bhs, item->lun, action);
    if (command == NULL) {
        bd_client_cut(&client->base);
        return NULL;
    }
    if (action->kind == BD_ACTION_WRITE)
        memcpy(command->action.data, action->data, (size_t)action->length);
    command->got = command->asked = action->kind == BD_ACTION_WRITE ? (uint32_t)action->length : 0;
    command->state = BD_ISCSI_UNDER_WAY;
    return command;
}

void bd_iscsi_fail(struct iscsi_client *client, struct bd_iscsi_command *command,
                   enum bd_iscsi_state state)
{
    command->state = state;
    bd_iscsi_command_release(client, command);
    bd_client_stop(&client->base);
}

/* The engine reads for us, and says so by bd_iscsi_client_give; nobody waits for that when the
 * client stops before. */
static void mail(struct iscsi_client *client, struct bd_iscsi_command *command)
{
    struct bd_client *base = &client->base;
    command->state = BD_ISCSI_MAILED;
    base->job_bytes += command->action.length;
    bd_client_mail(base, command->bhs, BD_ISCSI_BHS);
}

static void begin_job(struct iscsi_client *client, struct bd_iscsi_command *command, bool sync)
{
    struct bd_client *base = &client->base;
    const struct bd_action *action = &command->action;
    struct bd_job job = {.volume = volume_of(client, command->lun),
                         .kind = sync ? BD_JOB_SYNC : BD_JOB_READ,
                         .offset = action->offset,
                         .length = action->length,
                         .data_at = bd_iscsi_header_bytes(client),
                         .cookie = (uintptr_t)command};
    if (sync) { /* what it wrote is in the journal */
        bd_iscsi_command_release(client, command);
        free(command->action.data);
        command->action.data = NULL;
    }
    if (!bd_loop_begin(base, &job))
        bd_iscsi_fail(client, command, sync ? BD_ISCSI_UNSYNCED : BD_ISCSI_FAILED);
}

static void answer_item(struct iscsi_output *output, struct iscsi_round *round, int which)
{
    struct iscsi_client *client = output->client;
    const struct iscsi_item *item = &round->items[which];
    const struct bd_action *action = &round->actions[which];
    uint8_t *at = output->arena->data + item->out_at;
    if (item->is_ping) {
        bd_iscsi_put_nop_in(output, item, at);
    } else if (action->state == BD_ACTION_DONE && action->status == 0) {
        count(&client->base.counters, action);
        if (action->kind == BD_ACTION_READ)
            bd_iscsi_put_data_in(output, item->itt, action->data, (size_t)action->length,
                                 action->data + action->length);
        else
            bd_iscsi_put_good(output, item->itt, item->command == NULL ? 0 : item->command->r2t_sn,
                              at);
        if (item->command != NULL)
            bd_iscsi_command_end(client, item->command);
    } else {
        struct bd_iscsi_command *command = keep(client, item, action);
        if (command == NULL)
            return;
        if (action->state == BD_ACTION_WAIT_SYNC || action->state == BD_ACTION_WAIT_READ)
            begin_job(client, command, action->state == BD_ACTION_WAIT_SYNC);
        else
            bd_iscsi_fail(client, command, BD_ISCSI_FAILED);
    }
}

/* R2Ts: of all commands that have had some, and of others in the order in which they came, as far
 * as there is room. */
static void ask(struct iscsi_output *output)
{
    struct iscsi_client *client = output->client;
    struct bd_iscsi_command *command = client->first_command;
    for (; command != NULL; command = command->next)
        if (command->asks && (command->charged || client->held < client->terms.max_held))
            bd_iscsi_put_r2ts(output, command);
}

static void answer(struct iscsi_client *client, struct iscsi_round *round, struct bd_arena *arena)
{
    struct iscsi_output output;
    output.client = client;
    output.arena = arena;
    output.count = 0;
    output.header_bytes = 0;
    uint64_t held = client->held;
    for (int i = 0; i < round->count; i++)
        answer_item(&output, round, i);
    if ((round->asks || client->held < held) && !client->base.stopping)
        ask(&output);
    bd_iscsi_flush(&output);
}

static void cut(struct iscsi_client *client)
{
    pthread_mutex_lock(&client->base.lock);
    bd_client_cut(&client->base);
    pthread_mutex_unlock(&client->base.lock);
}

static enum bd_served serve_round(struct iscsi_client *client, struct bd_worker *worker)
{
    struct bd_client *base = &client->base;
    struct iscsi_round round;
    round.count = 0;
    round.out_bytes = 0;
    round.has_written = round.asks = false;
    pthread_mutex_lock(&base->lock);
    bool stopping = base->stopping;
    bool room = bd_client_has_room(base);
    enum bd_served served = BD_SERVED_ALL;
    if (!stopping && room) {
        served = gather(client, &round);
        expect(client);
    }
    pthread_mutex_unlock(&base->lock);
    if (stopping || !room)
        return stopping ? BD_SERVED_ALL : BD_SERVED_BLOCKED;
    if (round.count == 0 && !round.asks)
        return served;
    struct bd_arena *arena = bd_worker_arena(worker, round.out_bytes);
    if (arena == NULL) {
        cut(client);
        return BD_SERVED_ALL;
    }
    place_replies(client, &round, arena);
    carry_out(client, &round);
    pthread_mutex_lock(&base->lock);
    answer(client, &round, arena);
    pthread_mutex_unlock(&base->lock);
    bd_arena_release(arena);
    if (round.has_written)
        bd_worker_slow_down(base);
    return served;
}

static enum bd_served serve(struct bd_client *base, struct bd_worker *worker)
{
    struct iscsi_client *client = iscsi_client(base);
    atomic_store(&client->heard, true);
    pthread_mutex_lock(&client->round_lock);
    enum bd_served served = serve_round(client, worker);
    pthread_mutex_unlock(&client->round_lock);
    return served;
}

void bd_iscsi_put_read(struct iscsi_client *client, struct bd_iscsi_command *command, uint8_t *data,
                       struct bd_arena *arena)
{
    struct iscsi_output output;
    uint8_t extra[ISCSI_HEADERS_BYTES];
    output.client = client;
    output.arena = arena;
    output.count = 0;
    output.header_bytes = 0;
    count(&client->base.counters, &command->action);
    bd_iscsi_put_data_in(&output, command->itt, data, (size_t)command->action.length, extra);
    bd_iscsi_flush(&output);
    bd_iscsi_command_end(client, command);
}

static void finish(struct bd_client *base, struct bd_job *job)
{
    struct iscsi_client *client = iscsi_client(base);
    struct bd_iscsi_command *command = (struct bd_iscsi_command *)(uintptr_t)job->cookie;
    if (job->kind == BD_JOB_READ) {
        if (job->status < 0)
            mail(client, command); /* the engine finds the chunk, or says what is wrong with it */
        else
            bd_iscsi_put_read(client, command, job->data->data + job->data_at, job->data);
        return;
    }
    if (job->status < 0) {
        bd_iscsi_fail(client, command, BD_ISCSI_UNSYNCED);
        return;
    }
    struct iscsi_output output;
    uint8_t at[BD_ISCSI_BHS + BD_ISCSI_DIGEST];
    output.client = client;
    output.arena = NULL;
    output.count = 0;
    output.header_bytes = 0;
    count(&base->counters, &command->action);
    bd_iscsi_put_good(&output, command->itt, command->r2t_sn, at);
    bd_iscsi_flush(&output);
    bd_iscsi_command_end(client, command);
}

static void destroy(struct bd_client *base)
{
    struct iscsi_client *client = iscsi_client(base);
    while (client->first_command != NULL)
        bd_iscsi_command_end(client, client->first_command);
    pthread_mutex_destroy(&client->round_lock);
}

const struct bd_protocol bd_iscsi_protocol = {serve, finish, destroy};
