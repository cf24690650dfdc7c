/* Which commands are served here, and how one begins. */
#include <string.h>

#include "big_endian.h"
#include "iscsi_client.h"

static bool number_is_next(const struct iscsi_client *client, const uint8_t *bhs)
{
    const struct bd_iscsi_numbers *numbers = &client->numbers;
    return bd_get_be32(bhs + BD_ISCSI_AT_CMD_SN) == numbers->exp_cmd_sn &&
           numbers->exp_cmd_sn != numbers->max_cmd_sn + 1;
}

/* The CDB's range, in blocks, and its flags; false for a command that is none of ours. */
static bool decode_cdb(const uint8_t *cdb, uint64_t *lba, uint64_t *count, uint8_t *flags,
                       struct bd_action *action)
{
    size_t group;
    size_t control;
    switch (cdb[0]) {
    case BD_SCSI_READ_6:
    case BD_SCSI_WRITE_6:
        *lba = bd_get_be32(cdb) & 0x1fffff;
        *count = cdb[4] != 0 ? cdb[4] : 256; /* SBC-3 5.7 */
        *flags = cdb[1] & 0xe0;
        group = control = 5;
        break;
    case BD_SCSI_READ_10:
    case BD_SCSI_WRITE_10:
    case BD_SCSI_SYNCHRONIZE_CACHE_10:
        *lba = bd_get_be32(cdb + 2);
        *count = bd_get_be16(cdb + 7);
        *flags = cdb[1];
        group = 6;
        control = 9;
        break;
    case BD_SCSI_READ_12:
    case BD_SCSI_WRITE_12:
        *lba = bd_get_be32(cdb + 2);
        *count = bd_get_be32(cdb + 6);
        *flags = cdb[1];
        group = 10;
        control = 11;
        break;
    case BD_SCSI_READ_16:
    case BD_SCSI_WRITE_16:
    case BD_SCSI_SYNCHRONIZE_CACHE_16:
        *lba = bd_get_be64(cdb + 2);
        *count = bd_get_be32(cdb + 10);
        *flags = cdb[1];
        group = 14;
        control = 15;
        break;
    default:
        return false;
    }
    switch (cdb[0]) {
    case BD_SCSI_READ_6:
    case BD_SCSI_READ_10:
    case BD_SCSI_READ_12:
    case BD_SCSI_READ_16:
        action->kind = BD_ACTION_READ;
        break;
    case BD_SCSI_SYNCHRONIZE_CACHE_10:
    case BD_SCSI_SYNCHRONIZE_CACHE_16:
        action->kind = BD_ACTION_FLUSH;
        break;
    default:
        action->kind = BD_ACTION_WRITE;
        break;
    }
    return cdb[group] == 0 && cdb[control] == 0;
}

enum bd_op bd_iscsi_op(const struct bd_action *action)
{
    switch (action->kind) {
    case BD_ACTION_READ:
        return BD_OP_READ;
    case BD_ACTION_WRITE:
        return BD_OP_WRITE;
    default:
        return BD_OP_FLUSH;
    }
}

/* A volume that was resized has initiators to be told so first. */
static uint64_t size_of(const struct bd_volume *volume)
{
    return __atomic_load_n(&volume->size, __ATOMIC_RELAXED);
}

bool bd_iscsi_decode(const struct iscsi_client *client, const uint8_t *bhs, uint8_t *lun,
                     struct bd_action *action)
{
    const uint8_t *lun_field = bhs + BD_ISCSI_AT_LUN;
    *lun = lun_field[1];
    const struct bd_iscsi_lun *unit = &client->luns[*lun];
    uint8_t scsi_flags = bhs[1];
    uint64_t lba;
    uint64_t count;
    uint8_t flags;
    memset(action, 0, sizeof *action);
    if (lun_field[0] != 0 || bd_get_be32(lun_field) << 16 != 0 || bd_get_be32(lun_field + 4) != 0 ||
        unit->volume == NULL || unit->size != size_of(unit->volume) ||
        (scsi_flags & BD_ISCSI_ATTRIBUTES) > BD_ISCSI_LAST_ATTRIBUTE ||
        !decode_cdb(bhs + BD_ISCSI_AT_CDB, &lba, &count, &flags, action))
        return false;
    uint64_t blocks = unit->size >> unit->block_shift;
    if (lba > blocks || count > blocks - lba)
        return false;
    uint32_t edtl = bd_get_be32(bhs + BD_ISCSI_AT_EDTL);
    uint8_t direction = scsi_flags & (BD_ISCSI_READ | BD_ISCSI_WRITE);
    if (action->kind == BD_ACTION_FLUSH)
        return (flags & ~BD_SCSI_SYNC_FLAGS) == 0 && direction == 0 && edtl == 0 &&
               (scsi_flags & BD_ISCSI_FINAL) != 0;
    action->offset = lba << unit->block_shift;
    action->length = count << unit->block_shift;
    if (action->length == 0 || action->length > BD_ISCSI_MAX_TRANSFER || action->length != edtl)
        return false;
    if (action->kind == BD_ACTION_READ)
        return (flags & ~BD_SCSI_DPO) == 0 && direction == BD_ISCSI_READ &&
               (scsi_flags & BD_ISCSI_FINAL) != 0 &&
               bd_iscsi_segments(client, (size_t)action->length) <= BD_ISCSI_MAX_SEGMENTS;
    action->sync = (flags & BD_SCSI_FUA) != 0;
    return (flags & ~(BD_SCSI_DPO | BD_SCSI_FUA)) == 0 && direction == BD_ISCSI_WRITE &&
           !unit->read_only;
}

static struct iscsi_item *add_item(struct iscsi_round *round, const struct iscsi_pdu *pdu,
                                   const struct bd_action *action, size_t out_bytes)
{
    struct iscsi_item *item = &round->items[round->count];
    *item = (struct iscsi_item){.bhs = pdu->bhs,
                                .itt = bd_get_be32(pdu->bhs + BD_ISCSI_AT_ITT),
                                .out_at = round->out_bytes};
    round->actions[round->count] = *action;
    round->out_bytes += out_bytes;
    round->count++;
    return item;
}

/* Begin to collect what did not come with the command. */
static enum iscsi_taken collect(struct iscsi_client *client, struct iscsi_round *round,
                                const struct iscsi_pdu *pdu, uint8_t lun,
                                const struct bd_action *action)
{
    bool unsolicited = (pdu->bhs[1] & BD_ISCSI_FINAL) == 0;
    if (unsolicited && (client->terms.initial_r2t || pdu->length >= action->length))
        return ISCSI_RARE;
    struct bd_iscsi_command *command = bd_iscsi_command_new(client, pdu->bhs, lun, action);
    if (command == NULL)
        return ISCSI_RARE;
    if (pdu->length > 0)
        memcpy(command->action.data, pdu->data, pdu->length);
    command->got = command->asked = (uint32_t)pdu->length;
    command->unsolicited = unsolicited;
    command->asks = !unsolicited;
    round->asks |= command->asks;
    return ISCSI_TAKEN;
}

/* A command that came whole waits for the limits. False when memory runs out. */
static bool put_aside(struct iscsi_client *client, const struct iscsi_pdu *pdu, uint8_t lun,
                      const struct bd_action *action, const struct bd_reservation *reservation)
{
    struct bd_iscsi_command *command = bd_iscsi_command_new(client, pdu->bhs, lun, action);
    if (command == NULL)
        return false;
    if (action->kind == BD_ACTION_WRITE) {
        memcpy(command->action.data, action->data, (size_t)action->length);
        command->got = command->asked = (uint32_t)action->length;
    }
    bd_iscsi_wait(client, command, reservation);
    return true;
}

enum iscsi_taken bd_iscsi_take_command(struct iscsi_client *client, struct iscsi_round *round,
                                       const struct iscsi_pdu *pdu)
{
    const struct bd_iscsi_terms *terms = &client->terms;
    uint32_t itt = bd_get_be32(pdu->bhs + BD_ISCSI_AT_ITT);
    uint8_t lun;
    struct bd_action action;
    if (!number_is_next(client, pdu->bhs) || itt == BD_ISCSI_NO_TAG ||
        !bd_iscsi_decode(client, pdu->bhs, &lun, &action) ||
        bd_iscsi_command_of(client, itt) != NULL)
        return ISCSI_RARE;
    size_t out_bytes = bd_iscsi_short_bytes(client, 0);
    if (action.kind == BD_ACTION_READ) {
        out_bytes = bd_iscsi_data_in_bytes(client, (size_t)action.length);
        if (!bd_iscsi_has_place(client, round, &action))
            return ISCSI_FULL;
    }
    if (action.kind == BD_ACTION_WRITE) {
        if (pdu->length > 0 && (!terms->immediate_data || pdu->length > terms->first_burst ||
                                pdu->length > action.length))
            return ISCSI_RARE;
        if (pdu->length < action.length || (pdu->bhs[1] & BD_ISCSI_FINAL) == 0) {
            enum iscsi_taken taken = collect(client, round, pdu, lun, &action);
            client->numbers.exp_cmd_sn += taken == ISCSI_TAKEN;
            return taken;
        }
        action.data = (uint8_t *)(uintptr_t)pdu->data;
    } else if (pdu->length > 0) {
        return ISCSI_RARE;
    }
    struct bd_reservation reservation = {0};
    if (!bd_iscsi_may_go(client, lun, &action, &reservation)) {
        if (!put_aside(client, pdu, lun, &action, &reservation))
            return ISCSI_RARE;
    } else {
        add_item(round, pdu, &action, out_bytes)->lun = lun;
        round->has_written |= action.kind == BD_ACTION_WRITE;
    }
    client->numbers.exp_cmd_sn++;
    return ISCSI_TAKEN;
}

enum iscsi_taken bd_iscsi_take_ping(struct iscsi_client *client, struct iscsi_round *round,
                                    const struct iscsi_pdu *pdu)
{
    bool counted = (pdu->bhs[0] & BD_ISCSI_IMMEDIATE) == 0;
    if (bd_get_be32(pdu->bhs + BD_ISCSI_AT_ITT) == BD_ISCSI_NO_TAG ||
        bd_get_be32(pdu->bhs + BD_ISCSI_AT_TTT) != BD_ISCSI_NO_TAG ||
        (counted && !number_is_next(client, pdu->bhs)))
        return ISCSI_RARE;
    size_t echoed =
        pdu->length < client->terms.their_max_recv ? pdu->length : client->terms.their_max_recv;
    size_t out_bytes = bd_iscsi_short_bytes(client, echoed);
    if (round->count > 0 && round->out_bytes + out_bytes > BD_ROUND_BYTES)
        return ISCSI_FULL;
    struct bd_action nothing = {.kind = BD_ACTION_NONE};
    struct iscsi_item *item = add_item(round, pdu, &nothing, out_bytes);
    item->is_ping = true;
    item->ping = pdu->data;
    item->ping_length = echoed;
    client->numbers.exp_cmd_sn += counted;
    client->numbers.max_cmd_sn += counted; /* its room is free again at once */
    return ISCSI_TAKEN;
}
