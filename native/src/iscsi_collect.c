/* Commands that outlive the round in which they came, and the data-out that is collected for them:
 * RFC 7143 11.7, 11.8; blockd/iscsi/data_out.py and command.py have the same rules. What breaks one
 * of these is not taken: the engine takes it, and says what is wrong. */
#include <stdlib.h>
#include <string.h>

#include "big_endian.h"
#include "iscsi_client.h"

enum { LEAST_LANDING = 16 << 10 }; /* bytes that are worth a receive of their own */

static void append(struct iscsi_client *client, struct bd_iscsi_command *command)
{
    command->next = NULL;
    if (client->last_command != NULL)
        client->last_command->next = command;
    else
        client->first_command = command;
    client->last_command = command;
}

static void take_out(struct iscsi_client *client, struct bd_iscsi_command *command)
{
    struct bd_iscsi_command *before = NULL;
    struct bd_iscsi_command *at = client->first_command;
    while (at != command) {
        before = at;
        at = at->next;
    }
    if (before == NULL)
        client->first_command = command->next;
    else
        before->next = command->next;
    if (client->last_command == command)
        client->last_command = before;
}

struct bd_iscsi_command *bd_iscsi_command_new(struct iscsi_client *client, const uint8_t *bhs,
                                              uint8_t lun, const struct bd_action *action)
{
    struct bd_iscsi_command *command = calloc(1, sizeof *command);
    if (command == NULL)
        return NULL;
    memcpy(command->bhs, bhs, BD_ISCSI_BHS);
    command->itt = bd_get_be32(bhs + BD_ISCSI_AT_ITT);
    command->lun = lun;
    command->action = *action;
    command->action.data = NULL;
    if (action->kind == BD_ACTION_WRITE) {
        command->action.data = malloc((size_t)action->length);
        if (command->action.data == NULL) {
            free(command);
            return NULL;
        }
    }
    append(client, command);
    return command;
}

void bd_iscsi_command_last(struct iscsi_client *client, struct bd_iscsi_command *command)
{
    take_out(client, command);
    append(client, command);
}

void bd_iscsi_command_release(struct iscsi_client *client, struct bd_iscsi_command *command)
{
    if (command->charged)
        client->held -= command->action.length;
    command->charged = false;
}

void bd_iscsi_command_end(struct iscsi_client *client, struct bd_iscsi_command *command)
{
    take_out(client, command);
    if (command->state == BD_ISCSI_WAITING) {
        client->luns[command->lun].waiting--;
        client->waiting--;
    }
    bd_iscsi_command_release(client, command);
    free(command->action.data);
    free(command);
}

struct bd_iscsi_command *bd_iscsi_command_of(struct iscsi_client *client, uint32_t itt)
{
    struct bd_iscsi_command *command = client->first_command;
    while (command != NULL && command->itt != itt)
        command = command->next;
    return command;
}

bool bd_iscsi_has_place(const struct iscsi_client *client, const struct iscsi_round *round,
                        const struct bd_action *action)
{
    if (action->kind != BD_ACTION_READ)
        return round->count < BD_BATCH;
    size_t out_bytes = bd_iscsi_data_in_bytes(client, (size_t)action->length);
    return round->count == 0 ||
           (round->count < BD_BATCH && round->out_bytes + out_bytes <= BD_ROUND_BYTES);
}

void bd_iscsi_add_command(struct iscsi_client *client, struct iscsi_round *round,
                          struct bd_iscsi_command *command)
{
    enum bd_action_kind kind = command->action.kind;
    command->state = BD_ISCSI_UNDER_WAY;
    round->items[round->count] = (struct iscsi_item){.bhs = command->bhs,
                                                     .command = command,
                                                     .itt = command->itt,
                                                     .lun = command->lun,
                                                     .out_at = round->out_bytes};
    round->actions[round->count] = command->action;
    round->out_bytes += kind == BD_ACTION_READ
                            ? bd_iscsi_data_in_bytes(client, (size_t)command->action.length)
                            : bd_iscsi_short_bytes(client, 0);
    round->has_written |= kind == BD_ACTION_WRITE;
    round->count++;
}

/* Its data is whole: an item of the round, if the limits of its volume let it. */
static void add_collected(struct iscsi_client *client, struct iscsi_round *round,
                          struct bd_iscsi_command *command)
{
    struct bd_reservation reservation = {0};
    command->asks = false;
    if (bd_iscsi_may_go(client, command->lun, &command->action, &reservation))
        bd_iscsi_add_command(client, round, command);
    else
        bd_iscsi_wait(client, command, &reservation);
}

static bool good_unsolicited(const struct iscsi_client *client,
                             const struct bd_iscsi_command *command, uint64_t end, uint32_t data_sn)
{
    return command->unsolicited && data_sn == command->unsolicited_sn &&
           end <= client->terms.first_burst && end <= command->action.length;
}

/* The oldest R2T is the only one whose answer may come now. */
static bool good_solicited(const struct bd_iscsi_command *command, uint32_t ttt, uint64_t end,
                           uint32_t data_sn, bool final)
{
    const struct bd_iscsi_burst *burst = &command->bursts[command->first_burst];
    return command->burst_count > 0 && burst->ttt == ttt && burst->at == command->got &&
           data_sn == burst->data_sn && end <= burst->end && final == (end == burst->end);
}

/* The command that a Data-Out of `length` bytes is for; NULL when it is not in order. */
static struct bd_iscsi_command *command_for(struct iscsi_client *client, const uint8_t *bhs,
                                            size_t length)
{
    struct bd_iscsi_command *command =
        bd_iscsi_command_of(client, bd_get_be32(bhs + BD_ISCSI_AT_ITT));
    if (command == NULL || command->state != BD_ISCSI_COLLECTING)
        return NULL;
    uint32_t ttt = bd_get_be32(bhs + BD_ISCSI_AT_TTT);
    uint32_t data_sn = bd_get_be32(bhs + BD_ISCSI_AT_DATA_SN);
    uint32_t offset = bd_get_be32(bhs + BD_ISCSI_AT_OFFSET);
    uint64_t end = (uint64_t)offset + length;
    bool final = (bhs[1] & BD_ISCSI_FINAL) != 0;
    bool good = ttt != BD_ISCSI_NO_TAG ? good_solicited(command, ttt, end, data_sn, final)
                                       : good_unsolicited(client, command, end, data_sn);
    return good && offset == command->got ? command : NULL;
}

/* The `length` bytes of a Data-Out are in their place. */
static void take(struct iscsi_client *client, struct iscsi_round *round,
                 struct bd_iscsi_command *command, const uint8_t *bhs, uint32_t length)
{
    bool final = (bhs[1] & BD_ISCSI_FINAL) != 0;
    client->long_data_outs = length >= 2 * LEAST_LANDING;
    command->got += length;
    if (bd_get_be32(bhs + BD_ISCSI_AT_TTT) != BD_ISCSI_NO_TAG) {
        struct bd_iscsi_burst *burst = &command->bursts[command->first_burst];
        burst->at = command->got;
        burst->data_sn++;
        if (final) {
            command->first_burst = (command->first_burst + 1) % BD_ISCSI_MAX_BURSTS;
            command->burst_count--;
        }
    } else {
        command->asked = command->got;
        command->unsolicited_sn++;
        command->unsolicited = !final;
    }
    if (final && command->got == command->action.length)
        add_collected(client, round, command);
    else if (final)
        command->asks = round->asks = true;
}

enum iscsi_taken bd_iscsi_take_data(struct iscsi_client *client, struct iscsi_round *round,
                                    const struct iscsi_pdu *pdu)
{
    struct bd_iscsi_command *command = command_for(client, pdu->bhs, pdu->length);
    if (command == NULL)
        return ISCSI_RARE;
    if (pdu->length > 0)
        memcpy(command->action.data + command->got, pdu->data, pdu->length);
    take(client, round, command, pdu->bhs, (uint32_t)pdu->length);
    return ISCSI_TAKEN;
}

bool bd_iscsi_begin_landing(struct iscsi_client *client, const struct iscsi_pdu *pdu, size_t have)
{
    struct bd_client *base = &client->base;
    if (pdu->length % 4 != 0 || client->terms.data_digest || pdu->length - have < LEAST_LANDING)
        return false; /* what follows the data would have to be received by itself */
    struct bd_iscsi_command *command = command_for(client, pdu->bhs, pdu->length);
    if (command == NULL)
        return false;
    if (have > 0)
        memcpy(command->action.data + command->got, pdu->data, have);
    memcpy(client->landing.bhs, pdu->bhs, BD_ISCSI_BHS);
    client->landing.command = command;
    client->landing.length = (uint32_t)pdu->length;
    base->direct.at = command->action.data + command->got + have;
    base->direct.left = pdu->length - have;
    return true;
}

void bd_iscsi_end_landing(struct iscsi_client *client, struct iscsi_round *round)
{
    struct bd_iscsi_command *command = client->landing.command;
    client->landing.command = NULL;
    client->base.direct.at = NULL;
    take(client, round, command, client->landing.bhs, client->landing.length);
}
