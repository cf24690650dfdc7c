/* iSCSI clients of the loop beside serving them: how they come and go, and what Python asks for
 * meanwhile. */
#include "iscsi_client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "locks.h"

struct bd_client *bd_iscsi_client_new(int fd, const struct bd_iscsi_terms *terms,
                                      const struct bd_iscsi_numbers *numbers,
                                      const struct bd_iscsi_lun *luns, const uint8_t *input,
                                      size_t input_length)
{
    struct iscsi_client *client = calloc(1, sizeof *client);
    if (client == NULL)
        return NULL;
    struct bd_volume *volume = NULL;
    for (int i = 0; i < BD_ISCSI_LUNS && volume == NULL; i++)
        volume = luns[i].volume;
    if (bd_client_init(&client->base, &bd_iscsi_protocol, volume, fd, input, input_length) < 0) {
        free(client);
        return NULL;
    }
    client->terms = *terms;
    client->numbers = *numbers;
    memcpy(client->luns, luns, sizeof client->luns);
    pthread_mutex_init(&client->round_lock, NULL);
    return &client->base;
}

int bd_iscsi_client_import(struct bd_client *base, const struct bd_iscsi_command *command,
                           const uint8_t *data)
{
    struct iscsi_client *client = iscsi_client(base);
    uint8_t lun;
    struct bd_action action;
    if (!bd_iscsi_decode(client, command->bhs, &lun, &action) || action.kind != BD_ACTION_WRITE ||
        command->got > action.length || command->asked > action.length ||
        command->burst_count > BD_ISCSI_MAX_BURSTS)
        return -EINVAL;
    struct bd_iscsi_command *own = bd_iscsi_command_new(client, command->bhs, lun, &action);
    if (own == NULL)
        return -ENOMEM;
    if (command->got > 0)
        memcpy(own->action.data, data, command->got);
    own->got = command->got;
    own->asked = command->asked;
    own->r2t_sn = command->r2t_sn;
    own->unsolicited = command->unsolicited;
    own->unsolicited_sn = command->unsolicited_sn;
    own->burst_count = command->burst_count;
    memcpy(own->bursts, command->bursts, sizeof own->bursts);
    own->asks = own->burst_count == 0 && !own->unsolicited;
    if (own->burst_count > 0) {
        own->charged = true;
        client->held += action.length;
    }
    return 0;
}

void bd_iscsi_client_interrupt(struct bd_client *base)
{
    struct iscsi_client *client = iscsi_client(base);
    pthread_mutex_lock(&base->lock);
    bd_client_stop(base);
    pthread_mutex_unlock(&base->lock);
    pthread_mutex_lock(&client->round_lock);
    pthread_mutex_unlock(&client->round_lock);
}

bool bd_iscsi_client_give(struct bd_client *base, uint32_t itt, const uint8_t *data, size_t length)
{
    struct iscsi_client *client = iscsi_client(base);
    bd_lock(&base->lock);
    struct bd_iscsi_command *command = bd_iscsi_command_of(client, itt);
    bool waits = !base->cut && !base->stopped && command != NULL &&
                 command->state == BD_ISCSI_MAILED &&
                 (data == NULL || command->action.length == length);
    if (waits) {
        base->job_bytes -= command->action.length;
        struct bd_arena *arena = NULL;
        size_t header = bd_iscsi_header_bytes(client);
        if (data != NULL)
            arena = bd_arena_new(header + length);
        if (arena == NULL) {
            bd_iscsi_fail(client, command, BD_ISCSI_FAILED);
        } else {
            memcpy(arena->data + header, data, length);
            bd_iscsi_put_read(client, command, arena->data + header, arena);
            bd_arena_release(arena);
        }
        bd_loop_relieve(base);
    }
    pthread_mutex_unlock(&base->lock);
    return waits;
}

int bd_iscsi_client_unwind(struct bd_client *base)
{
    struct iscsi_client *client = iscsi_client(base);
    const struct bd_iscsi_command *command = client->landing.command;
    if (command == NULL)
        return 0;
    size_t landed = client->landing.length - base->direct.left;
    size_t behind = base->input.end - base->input.start;
    size_t header = bd_iscsi_header_bytes(client);
    uint8_t *input = malloc(header + landed + behind);
    if (input == NULL)
        return -ENOMEM;
    memcpy(input, client->landing.bhs, BD_ISCSI_BHS);
    bd_iscsi_end_header(client, input);
    memcpy(input + header, command->action.data + command->got, landed);
    if (behind > 0)
        memcpy(input + header + landed, base->input.data + base->input.start, behind);
    free(base->input.data);
    base->input.data = input;
    base->input.start = 0;
    base->input.end = base->input.capacity = header + landed + behind;
    base->direct.at = NULL;
    base->direct.left = 0;
    client->landing.command = NULL;
    return 0;
}

bool bd_iscsi_client_is(const struct bd_client *base)
{
    return base->protocol == &bd_iscsi_protocol;
}

bool bd_iscsi_client_stopped(struct bd_client *base)
{
    bd_lock(&base->lock);
    bool stopped = base->stopped;
    pthread_mutex_unlock(&base->lock);
    return stopped;
}

struct bd_iscsi_numbers bd_iscsi_client_numbers(struct bd_client *base)
{
    bd_lock(&base->lock);
    struct bd_iscsi_numbers numbers = iscsi_client(base)->numbers;
    pthread_mutex_unlock(&base->lock);
    return numbers;
}

struct bd_iscsi_command *bd_iscsi_client_commands(struct bd_client *base)
{
    return iscsi_client(base)->first_command;
}

struct bd_limit *bd_iscsi_client_limit(struct bd_client *base,
                                       const struct bd_iscsi_command *command)
{
    return iscsi_client(base)->luns[command->lun].limit;
}

unsigned bd_iscsi_client_open(struct bd_client *base, int lun)
{
    unsigned open = 0;
    bd_lock(&base->lock);
    const struct bd_iscsi_command *command = iscsi_client(base)->first_command;
    for (; command != NULL; command = command->next)
        open += lun < 0 || command->lun == lun;
    pthread_mutex_unlock(&base->lock);
    return open;
}

bool bd_iscsi_client_heard(struct bd_client *base)
{
    return atomic_exchange(&iscsi_client(base)->heard, false);
}
