/* The second half of a round: what was taken is carried out and answered, at once or by jobs. */
#include <stdlib.h>
#include <string.h>

#include "iscsi_client.h"

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

static void carry_out_run(const struct bd_iscsi_lun *lun, struct bd_action *actions, int count,
                          uint64_t now_ns)
{
    uint64_t requests = 0;
    uint64_t payload = 0;
    for (int i = 0; i < count; i++)
        if (actions[i].kind != BD_ACTION_NONE) {
            requests++;
            payload += bd_payload(bd_iscsi_op(&actions[i]), actions[i].length);
        }
    bd_account_enter(lun->account, requests, payload);
    bd_batch_execute(lun->volume, actions, count, now_ns);
    bd_account_leave(lun->account, requests, payload);
}

/* Runs of commands to the same unit are batches. */
void bd_iscsi_carry_out(struct iscsi_client *client, struct iscsi_round *round,
                        struct bd_arena *arena)
{
    place_replies(client, round, arena);
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
            carry_out_run(&client->luns[lun], round->actions + from, to - from, now_ns);
        from = to;
    }
}

/* All below: the lock is held. */

/* The command of an item outlives its round. NULL when memory ran out: the client is cut then. */
static struct bd_iscsi_command *keep(struct iscsi_client *client, const struct iscsi_item *item,
                                     const struct bd_action *action, uint64_t arrived_ns)
{
    if (item->command != NULL) {
        if (item->command->arrived_ns == 0)
            item->command->arrived_ns = arrived_ns;
        return item->command;
    }
    struct bd_iscsi_command *command = bd_iscsi_command_new(client, item->bhs, item->lun, action);
    if (command == NULL) {
        bd_client_cut(&client->base);
        return NULL;
    }
    if (action->kind == BD_ACTION_WRITE)
        memcpy(command->action.data, action->data, (size_t)action->length);
    command->got = command->asked = action->kind == BD_ACTION_WRITE ? (uint32_t)action->length : 0;
    command->state = BD_ISCSI_UNDER_WAY;
    command->arrived_ns = arrived_ns;
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

static struct bd_job job_of(struct iscsi_client *client, struct bd_iscsi_command *command,
                            enum bd_job_kind kind)
{
    const struct bd_action *action = &command->action;
    return (struct bd_job){.volume = volume_of(client, command->lun),
                           .account = client->luns[command->lun].account,
                           .kind = kind,
                           .offset = action->offset,
                           .length = action->length,
                           .data_at = bd_iscsi_header_bytes(client),
                           .cookie = (uintptr_t)command};
}

/* What it wrote is in the journal. */
static void forget_data(struct iscsi_client *client, struct bd_iscsi_command *command)
{
    bd_iscsi_command_release(client, command);
    free(command->action.data);
    command->action.data = NULL;
}

static void begin_job(struct iscsi_client *client, struct bd_iscsi_command *command, bool sync)
{
    struct bd_job job = job_of(client, command, sync ? BD_JOB_SYNC : BD_JOB_READ);
    if (sync)
        forget_data(client, command);
    if (!bd_loop_begin(&client->base, &job))
        bd_iscsi_fail(client, command, sync ? BD_ISCSI_UNSYNCED : BD_ISCSI_FAILED);
}

/* A command that outlived its round is answered. */
static void served(struct iscsi_client *client, const struct bd_iscsi_command *command)
{
    struct bd_tally tally = {0};
    bd_tally_count(&tally, bd_iscsi_op(&command->action), command->action.length);
    bd_loop_served(&client->base, client->luns[command->lun].account, &tally,
                   bd_loop_monotonic_ns() - command->arrived_ns);
}

/* Whether it may be answered at once; else it waits for its volume's gate, or the client stops. */
static bool passes_gate(struct iscsi_client *client, const struct iscsi_item *item,
                        const struct bd_action *action, uint64_t arrived_ns)
{
    struct bd_iscsi_command *command = keep(client, item, action, arrived_ns);
    if (command == NULL)
        return false;
    bool reads = action->kind == BD_ACTION_READ;
    struct bd_job job = job_of(client, command, BD_JOB_ACKS);
    /* of the round's action: a command whose data was collected has one from before */
    job.wait_seq = action->wait_seq;
    job.wait_durable = action->wait_durable;
    if (!reads)
        forget_data(client, command);
    enum bd_waited waited = bd_loop_wait(&client->base, &job, reads ? action->data : NULL);
    if (waited == BD_WAITED_REFUSED)
        bd_iscsi_fail(client, command, reads ? BD_ISCSI_FAILED : BD_ISCSI_UNSYNCED);
    if (waited == BD_WAITED_PASSED && item->command == NULL)
        bd_iscsi_command_end(client, command);
    return waited == BD_WAITED_PASSED;
}

static void answer_item(struct iscsi_output *output, struct iscsi_round *round, int which,
                        struct bd_tally *tally)
{
    struct iscsi_client *client = output->client;
    const struct iscsi_item *item = &round->items[which];
    const struct bd_action *action = &round->actions[which];
    uint8_t *at = output->arena->data + item->out_at;
    bool done = action->state == BD_ACTION_DONE && action->status == 0;
    if (!item->is_ping && action->state == BD_ACTION_WAIT_ACKS) {
        done = passes_gate(client, item, action, round->arrived_ns);
        if (!done)
            return;
    }
    if (item->is_ping) {
        bd_iscsi_put_nop_in(output, item, at);
    } else if (done) {
        if (item->command != NULL && item->command->arrived_ns != 0)
            served(client, item->command); /* it waited for longer than the others */
        else
            bd_tally_count(tally, bd_iscsi_op(action), action->length);
        if (action->kind == BD_ACTION_READ)
            bd_iscsi_put_data_in(output, item->itt, action->data, (size_t)action->length,
                                 action->data + action->length);
        else
            bd_iscsi_put_good(output, item->itt, item->command == NULL ? 0 : item->command->r2t_sn,
                              at);
        if (item->command != NULL)
            bd_iscsi_command_end(client, item->command);
    } else {
        struct bd_iscsi_command *command = keep(client, item, action, round->arrived_ns);
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

/* Those to the unit of the first, which count together; where the next run begins. */
static int answer_run(struct iscsi_output *output, struct iscsi_round *round, int from)
{
    struct bd_client *base = &output->client->base;
    struct bd_account *account = output->client->luns[round->items[from].lun].account;
    struct bd_tally tally = {0};
    int to = from;
    while (to < round->count && round->items[to].lun == round->items[from].lun)
        answer_item(output, round, to++, &tally);
    bd_loop_served(base, account, &tally, bd_loop_monotonic_ns() - round->arrived_ns);
    return to;
}

void bd_iscsi_answer(struct iscsi_client *client, struct iscsi_round *round, struct bd_arena *arena)
{
    struct iscsi_output output;
    output.client = client;
    output.arena = arena;
    output.count = 0;
    output.header_bytes = 0;
    uint64_t held = client->held;
    int from = 0;
    while (from < round->count)
        from = answer_run(&output, round, from);
    if ((round->asks || client->held < held) && !client->base.stopping)
        ask(&output);
    bd_iscsi_flush(&output);
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
    bd_iscsi_put_data_in(&output, command->itt, data, (size_t)command->action.length, extra);
    bd_iscsi_flush(&output);
    served(client, command);
    bd_iscsi_command_end(client, command);
}

void bd_iscsi_finish(struct bd_client *base, struct bd_job *job)
{
    struct iscsi_client *client = iscsi_client(base);
    struct bd_iscsi_command *command = (struct bd_iscsi_command *)(uintptr_t)job->cookie;
    if (job->data != NULL) {
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
    bd_iscsi_put_good(&output, command->itt, command->r2t_sn, at);
    bd_iscsi_flush(&output);
    served(client, command);
    bd_iscsi_command_end(client, command);
}
