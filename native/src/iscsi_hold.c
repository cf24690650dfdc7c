/* Commands that are whole and wait for the limits of their volume.
 *
 * A session goes on meanwhile: pings, task management and commands to other units must not wait
 * behind them, so nothing is held in the stream. To one unit none overtakes another, a flush those
 * before it neither. What waits is bounded by the command window, with first bursts, and for data
 * that was asked for by `max_held`. The oldest one of each unit has a reservation; those behind it
 * have not asked yet. */
#include "iscsi_client.h"

/* The earliest time at which one of them may go on. */
static void wait_until(struct bd_client *base, uint64_t until_ns)
{
    if (base->due_ns == 0 || until_ns < base->due_ns)
        base->due_ns = until_ns;
}

bool bd_iscsi_may_go(struct iscsi_client *client, uint8_t lun, const struct bd_action *action,
                     struct bd_reservation *reservation)
{
    struct bd_iscsi_lun *unit = &client->luns[lun];
    if (unit->waiting > 0)
        return false;
    if (!bd_limit_is_set(unit->limit))
        return true;
    uint64_t until_ns = bd_limit_ask(unit->limit, reservation, bd_iscsi_op(action), action->length,
                                     bd_loop_monotonic_ns());
    if (until_ns != 0)
        wait_until(&client->base, until_ns);
    return until_ns == 0;
}

void bd_iscsi_wait(struct iscsi_client *client, struct bd_iscsi_command *command,
                   const struct bd_reservation *reservation)
{
    command->state = BD_ISCSI_WAITING;
    command->reservation = *reservation;
    command->arrived_ns = bd_loop_monotonic_ns();
    bd_iscsi_command_last(client, command); /* of those that wait, the oldest one comes first */
    client->luns[command->lun].waiting++;
    client->waiting++;
}

/* Whether the oldest command of its unit may go on now. */
static bool may_go_now(struct iscsi_client *client, struct bd_iscsi_command *command,
                       uint64_t now_ns)
{
    uint64_t until_ns = bd_limit_ask(client->luns[command->lun].limit, &command->reservation,
                                     bd_iscsi_op(&command->action), command->action.length, now_ns);
    if (until_ns != 0)
        wait_until(&client->base, until_ns);
    return until_ns == 0;
}

void bd_iscsi_look_again(struct iscsi_client *client)
{
    if (client->waiting > 0)
        wait_until(&client->base, bd_loop_monotonic_ns() + BD_LIMIT_SLICE_NS);
}

void bd_iscsi_let_go(struct iscsi_client *client, struct iscsi_round *round)
{
    if (client->waiting == 0)
        return;
    bool stuck[BD_ISCSI_LUNS] = {false}; /* an older one of the unit waits */
    uint64_t now_ns = bd_loop_monotonic_ns();
    struct bd_iscsi_command *command = client->first_command;
    for (; command != NULL && client->waiting > 0; command = command->next) {
        if (command->state != BD_ISCSI_WAITING || stuck[command->lun])
            continue;
        if (!bd_iscsi_has_place(client, round, &command->action)) {
            wait_until(&client->base, now_ns); /* the next round is theirs */
            return;
        }
        if (!may_go_now(client, command, now_ns)) {
            stuck[command->lun] = true;
            continue;
        }
        client->luns[command->lun].waiting--;
        client->waiting--;
        bd_iscsi_add_command(client, round, command);
    }
}
