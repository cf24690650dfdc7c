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
    size_t have = base->input.end - base->input.start;
    base->need = BD_ISCSI_BHS;
    if (have < BD_ISCSI_BHS)
        return BD_SERVED_ALL;
    const uint8_t *at = base->input.data + base->input.start;
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
    bd_iscsi_let_go(client, round);
    if (base->direct.at != NULL) {
        if (base->direct.left > 0 || round->count == BD_BATCH)
            return base->direct.left > 0 ? BD_SERVED_ALL : BD_SERVED_SOME;
        bd_iscsi_end_landing(client, round);
        round->arrived_ns = bd_client_arrival_ns(base, base->input.start);
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
        if (round->arrived_ns == 0)
            round->arrived_ns = bd_client_arrival_ns(base, base->input.start);
    }
    return BD_SERVED_SOME;
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
    round.arrived_ns = 0;
    round.has_written = round.asks = false;
    pthread_mutex_lock(&base->lock);
    bool stopping = base->stopping;
    bool room = bd_client_has_room(base);
    enum bd_served served = BD_SERVED_ALL;
    if (!stopping && room) {
        served = gather(client, &round);
        expect(client);
    } else {
        bd_iscsi_look_again(client);
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
    bd_iscsi_carry_out(client, &round, arena);
    pthread_mutex_lock(&base->lock);
    bd_iscsi_answer(client, &round, arena);
    pthread_mutex_unlock(&base->lock);
    bd_arena_release(arena);
    uint64_t payload = 0;
    for (int i = 0; i < round.count; i++)
        payload += round.actions[i].length;
    bd_worker_served(worker, (unsigned)round.count, payload);
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

static void destroy(struct bd_client *base)
{
    struct iscsi_client *client = iscsi_client(base);
    while (client->first_command != NULL)
        bd_iscsi_command_end(client, client->first_command);
    pthread_mutex_destroy(&client->round_lock);
}

const struct bd_protocol bd_iscsi_protocol = {serve, bd_iscsi_finish, destroy};
