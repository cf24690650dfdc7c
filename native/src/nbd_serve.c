#include "nbd_serve.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "batch.h"
#include "big_endian.h"
#include "lone.h"
#include "nbd_reply.h"
#include "nbd_wire.h"

struct nbd_client {
    struct bd_client base;
    struct bd_nbd_terms terms;
    struct bd_lone lone;
};

struct request {
    uint64_t cookie;
    uint64_t offset;
    uint64_t length;
    uint16_t flags;
    uint16_t command;
    size_t at;    /* of its header, in the input */
    size_t bytes; /* header and payload */
};

struct round {
    int count;
    size_t read_bytes;
    uint64_t payload;    /* bytes, read and written */
    uint64_t arrived_ns; /* of the first request */
    bool limited;        /* the limits were asked */
    struct request requests[BD_BATCH];
    struct bd_action actions[BD_BATCH];
};

static struct nbd_client *nbd_client(struct bd_client *client)
{
    return (struct nbd_client *)client;
}

static size_t header_bytes(const struct nbd_client *client)
{
    return client->terms.replies == BD_NBD_EXTENDED ? BD_NBD_EXTENDED_REQUEST : BD_NBD_REQUEST;
}

static bool decode(const struct nbd_client *client, const uint8_t *at, struct request *request)
{
    bool extended = client->terms.replies == BD_NBD_EXTENDED;
    if (bd_get_be32(at) != (extended ? BD_NBD_EXTENDED_REQUEST_MAGIC : BD_NBD_REQUEST_MAGIC))
        return false;
    request->flags = bd_get_be16(at + 4);
    request->command = bd_get_be16(at + 6);
    request->cookie = bd_get_be64(at + 8);
    request->offset = bd_get_be64(at + 16);
    request->length = extended ? bd_get_be64(at + 24) : bd_get_be32(at + 24);
    return true;
}

static enum bd_op op_of(uint32_t command)
{
    switch (command) {
    case BD_NBD_CMD_READ:
        return BD_OP_READ;
    case BD_NBD_CMD_WRITE:
        return BD_OP_WRITE;
    case BD_NBD_CMD_FLUSH:
        return BD_OP_FLUSH;
    case BD_NBD_CMD_TRIM:
        return BD_OP_UNMAP;
    default:
        return BD_OP_WRITE_ZEROES;
    }
}

/* Bytes that follow the header, whether or not the request is in order. */
static uint64_t payload_bytes(const struct nbd_client *client, const struct request *request)
{
    bool follows = client->terms.replies == BD_NBD_EXTENDED
                       ? (request->flags & BD_NBD_CMD_FLAG_PAYLOAD_LEN) != 0
                       : request->command == BD_NBD_CMD_WRITE;
    return follows ? request->length : 0;
}

static bool good_range(const struct bd_nbd_terms *terms, const struct request *request)
{
    return request->length > 0 && request->offset <= terms->size &&
           request->length <= terms->size - request->offset &&
           ((request->offset | request->length) & (terms->minimum_block - 1)) == 0;
}

/* The action of a request that is ours; false for one that is Python's. */
static bool plain(const struct nbd_client *client, const struct request *request,
                  struct bd_action *action)
{
    const struct bd_nbd_terms *terms = &client->terms;
    uint16_t flags = request->flags & (uint16_t)~BD_NBD_CMD_FLAG_FUA;
    *action = (struct bd_action){.offset = request->offset,
                                 .length = request->length,
                                 .sync = (request->flags & BD_NBD_CMD_FLAG_FUA) != 0};
    switch (request->command) {
    case BD_NBD_CMD_READ:
        action->kind = BD_ACTION_READ;
        action->may_view = request->length >= BD_VIEW_LEAST && request->length <= BD_VIEW_MOST &&
                           client->base.volume->gate == NULL;
        return request->flags == 0 && good_range(terms, request) &&
               request->length <= terms->max_payload;
    case BD_NBD_CMD_WRITE:
        action->kind = BD_ACTION_WRITE;
        return flags == (terms->replies == BD_NBD_EXTENDED ? BD_NBD_CMD_FLAG_PAYLOAD_LEN : 0) &&
               !terms->read_only && good_range(terms, request) &&
               request->length <= terms->max_payload;
    case BD_NBD_CMD_TRIM:
        action->kind = BD_ACTION_UNMAP;
        return flags == 0 && !terms->read_only && good_range(terms, request);
    case BD_NBD_CMD_WRITE_ZEROES:
        action->kind = BD_ACTION_ZERO;
        return (flags & ~(BD_NBD_CMD_FLAG_NO_HOLE | BD_NBD_CMD_FLAG_FAST_ZERO)) == 0 &&
               !terms->read_only && good_range(terms, request);
    case BD_NBD_CMD_FLUSH:
        action->kind = BD_ACTION_FLUSH;
        return request->flags == 0 && request->offset == 0 && request->length == 0;
    default:
        return false;
    }
}

/* What comes next is for Python, and goes by mail as a whole: jobs add to the mail as well. STOP
 * when it is too long for that. */
static enum bd_served leave(struct bd_client *base, const struct nbd_client *client,
                            const struct request *request, size_t have)
{
    uint64_t payload = payload_bytes(client, request);
    if (payload > client->terms.max_payload)
        return BD_SERVED_STOP;
    size_t bytes = header_bytes(client) + (size_t)payload;
    if (have >= bytes)
        return BD_SERVED_SOME;
    base->need = bytes;
    return BD_SERVED_ALL;
}

/* Whether the volume's limits keep a request, and what is behind it, where they are. */
static bool held_back(struct nbd_client *client, const struct request *request, uint64_t now_ns)
{
    struct bd_client *base = &client->base;
    base->held_until_ns = bd_limit_ask(base->limit, &base->reservation, op_of(request->command),
                                       request->length, now_ns);
    return base->held_until_ns != 0;
}

/* What the input holds, up to the end of a round. SOME: the round is full, or a request for Python
 * is next; STOP: what is next ends the loop's part. */
static enum bd_served gather(struct nbd_client *client, struct round *round)
{
    struct bd_client *base = &client->base;
    size_t header = header_bytes(client);
    size_t at = base->input.start;
    size_t end = base->input.end;
    base->need = header;
    round->limited = bd_limit_is_set(base->limit) || base->reservation.made;
    uint64_t now_ns = round->limited ? bd_loop_monotonic_ns() : 0;
    while (round->count < BD_BATCH) {
        struct request *request = &round->requests[round->count];
        struct bd_action *action = &round->actions[round->count];
        if (end - at < header)
            return BD_SERVED_ALL;
        if (!decode(client, base->input.data + at, request) || request->command == BD_NBD_CMD_DISC)
            return BD_SERVED_STOP;
        if (!plain(client, request, action))
            return leave(base, client, request, end - at);
        request->at = at;
        request->bytes = header;
        size_t reply_bytes = 0;
        if (action->kind == BD_ACTION_WRITE) {
            request->bytes += (size_t)request->length;
            if (end - at < request->bytes) {
                base->need = request->bytes;
                return BD_SERVED_ALL;
            }
            action->data = base->input.data + at + header;
        } else if (action->kind == BD_ACTION_READ) {
            reply_bytes = bd_nbd_data_header(client->terms.replies) + (size_t)request->length;
            if (round->count > 0 && round->read_bytes + reply_bytes > BD_ROUND_BYTES)
                return BD_SERVED_SOME;
        }
        if (round->limited && held_back(client, request, now_ns))
            return BD_SERVED_SOME;
        round->read_bytes += reply_bytes;
        at += request->bytes;
        base->input.start = at;
        if (round->count == 0)
            round->arrived_ns = bd_client_arrival_ns(base, at);
        round->payload += bd_payload(op_of(request->command), request->length);
        round->count++;
    }
    return BD_SERVED_SOME;
}

/* The one request at the start of the input goes to Python. */
static void mail_next(struct nbd_client *client)
{
    struct bd_client *base = &client->base;
    const uint8_t *at = base->input.data + base->input.start;
    struct request request;
    decode(client, at, &request);
    size_t bytes = header_bytes(client) + (size_t)payload_bytes(client, &request);
    pthread_mutex_lock(&base->lock);
    bd_client_mail(base, at, bytes);
    pthread_mutex_unlock(&base->lock);
    base->input.start += bytes;
}

static void place_reads(struct round *round, enum bd_nbd_replies kind, struct bd_arena *arena)
{
    size_t used = 0;
    for (int i = 0; i < round->count; i++) {
        if (round->actions[i].kind != BD_ACTION_READ)
            continue;
        used += bd_nbd_data_header(kind);
        round->actions[i].data = arena->data + used;
        used += (size_t)round->requests[i].length;
    }
}

/* What the engine answers if the sync fails: a FLUSH as it is; of a FUA write, which has happened,
 * a WRITE of nothing with FUA, at the same offset, which extended replies say again. */
static void encode_sync(const struct nbd_client *client, const struct request *request, uint8_t *at)
{
    bool flush = request->command == BD_NBD_CMD_FLUSH;
    bool extended = client->terms.replies == BD_NBD_EXTENDED;
    memset(at, 0, header_bytes(client));
    bd_put_be32(at, extended ? BD_NBD_EXTENDED_REQUEST_MAGIC : BD_NBD_REQUEST_MAGIC);
    bd_put_be16(at + 4, flush ? 0 : BD_NBD_CMD_FLAG_FUA);
    bd_put_be16(at + 6, flush ? BD_NBD_CMD_FLUSH : BD_NBD_CMD_WRITE);
    bd_put_be64(at + 8, request->cookie);
    bd_put_be64(at + 16, request->offset);
}

/* `sync`: it has happened, and what is not sure is how durable it is. */
static struct bd_job job_of(struct nbd_client *client, const struct round *round,
                            const struct request *request, enum bd_job_kind kind, bool sync)
{
    struct bd_client *base = &client->base;
    struct bd_job job = {.account = base->account,
                         .kind = kind,
                         .offset = request->offset,
                         .length = request->length,
                         .data_at = BD_NBD_DATA_HEADER,
                         .cookie = request->cookie,
                         .arrived_ns = round->arrived_ns,
                         .flags = request->command,
                         .paid = round->limited};
    if (sync)
        encode_sync(client, request, job.header);
    else
        memcpy(job.header, base->input.data + request->at, header_bytes(client));
    return job;
}

static bool begin_job(struct nbd_client *client, const struct round *round,
                      const struct request *request, bool sync)
{
    enum bd_job_kind kind = sync ? BD_JOB_SYNC : BD_JOB_READ;
    struct bd_job job = job_of(client, round, request, kind, sync);
    return bd_loop_begin(&client->base, &job);
}

static enum bd_waited wait_for_acks(struct nbd_client *client, const struct round *round,
                                    const struct request *request, const struct bd_action *action)
{
    bool reads = action->kind == BD_ACTION_READ;
    struct bd_job job = job_of(client, round, request, BD_JOB_ACKS, !reads);
    job.wait_seq = action->wait_seq;
    job.wait_durable = action->wait_durable;
    return bd_loop_wait(&client->base, &job, reads ? action->data : NULL);
}

/* Answer a READ whose bytes are in a view: as they are, or, where the reply has holes, copied.
 * False: they are not to be had any more. */
static bool answer_view(struct nbd_client *client, struct bd_nbd_output *output,
                        const struct request *request, const struct bd_action *action, int left,
                        struct bd_arena *arena)
{
    size_t length = (size_t)request->length;
    if (bd_nbd_leaves_out(output->kind, request->offset, action->view)) {
        if (!bd_view_copy(action->view, action->data))
            return false;
        bd_nbd_put_data(output, request->cookie, request->offset, action->data, length, left);
        return true;
    }
    bd_nbd_put_header(output, request->cookie, request->offset, length);
    bd_client_send_view(&client->base, output->pieces, output->count, arena, action->view);
    bd_nbd_output_init(output, output->kind);
    return true;
}

/* Answer what is done, begin the jobs of what waits, mail what failed. The lock is held. */
static void answer(struct nbd_client *client, struct round *round, struct bd_arena *arena)
{
    struct bd_client *base = &client->base;
    struct bd_nbd_output output;
    struct bd_tally tally = {0};
    bd_nbd_output_init(&output, client->terms.replies);
    for (int i = 0; i < round->count; i++) {
        const struct request *request = &round->requests[i];
        const struct bd_action *action = &round->actions[i];
        bool ours = true;
        bool done = action->state == BD_ACTION_DONE && action->status == 0;
        if (action->state == BD_ACTION_WAIT_ACKS) {
            enum bd_waited waited = wait_for_acks(client, round, request, action);
            if (waited == BD_WAITED_BEGUN)
                continue;
            done = waited == BD_WAITED_PASSED;
        }
        if (done) {
            if (action->view != NULL)
                ours = answer_view(client, &output, request, action, round->count - i, arena);
            else if (action->kind == BD_ACTION_READ)
                bd_nbd_put_data(&output, request->cookie, request->offset, action->data,
                                (size_t)request->length, round->count - i);
            else
                bd_nbd_put_done(&output, request->cookie, request->offset);
            if (ours)
                bd_tally_count(&tally, op_of(request->command), request->length);
        } else if (action->state == BD_ACTION_WAIT_SYNC) {
            ours = begin_job(client, round, request, true);
        } else if (action->state == BD_ACTION_WAIT_READ) {
            ours = begin_job(client, round, request, false);
        } else {
            ours = false;
        }
        if (!ours) {
            bd_client_mail(base, base->input.data + request->at, request->bytes);
            if (round->limited)
                bd_client_paid(base, op_of(request->command), request->length);
        }
    }
    bd_client_send(base, output.pieces, output.count, arena);
    bd_loop_served(base, base->account, &tally, bd_loop_monotonic_ns() - round->arrived_ns);
}

static bool has_written(const struct round *round)
{
    for (int i = 0; i < round->count; i++)
        if (round->actions[i].kind != BD_ACTION_READ && round->actions[i].kind != BD_ACTION_FLUSH)
            return true;
    return false;
}

static enum bd_lone_kind lone_kind(const struct bd_action *action)
{
    if (action->kind == BD_ACTION_FLUSH || (action->kind == BD_ACTION_WRITE && action->sync))
        return BD_LONE_FLUSH;
    if (action->kind == BD_ACTION_READ)
        return BD_LONE_READ;
    return action->kind == BD_ACTION_WRITE ? BD_LONE_WRITE : BD_LONE_OTHER;
}

/* A flush or a read of a client that asks for nothing else meanwhile: wait for the disk. */
static void wait_here(struct nbd_client *client, struct bd_worker *worker, struct round *round)
{
    struct bd_action *action = &round->actions[0];
    bool done = false;
    if (action->state == BD_ACTION_WAIT_SYNC && bd_lone_syncs_here(&client->lone))
        done = bd_worker_sync(worker, &client->base);
    else if (action->state == BD_ACTION_WAIT_READ && bd_lone_reads_here(&client->lone))
        done = bd_worker_read(worker, &client->base, action);
    if (!done)
        return;
    action->status = 0;
    action->state = BD_ACTION_DONE;
    int arrived = 0;
    if (ioctl(client->base.fd, FIONREAD, &arrived) == 0 && arrived > 0)
        bd_lone_interrupted(&client->lone);
}

static void execute(struct nbd_client *client, struct bd_worker *worker, struct round *round)
{
    struct bd_client *base = &client->base;
    struct bd_arena *arena = NULL;
    if (round->read_bytes > 0) {
        arena = bd_worker_arena(worker, round->read_bytes);
        if (arena == NULL) {
            pthread_mutex_lock(&base->lock);
            bd_client_cut(base);
            pthread_mutex_unlock(&base->lock);
            return;
        }
        place_reads(round, client->terms.replies, arena);
    }
    bd_account_enter(base->account, (uint64_t)round->count, round->payload);
    bd_batch_execute(base->volume, round->actions, round->count, bd_loop_now_ns());
    bd_lone_served(&client->lone, (unsigned)round->count, lone_kind(&round->actions[0]),
                   round->payload);
    bool ours = base->volume->gate == NULL; /* else other nodes are waited for as well */
    if (ours)
        wait_here(client, worker, round);
    pthread_mutex_lock(&base->lock);
    answer(client, round, arena);
    pthread_mutex_unlock(&base->lock);
    for (int i = 0; i < round->count; i++)
        bd_view_release(round->actions[i].view);
    bd_account_leave(base->account, (uint64_t)round->count, round->payload);
    bd_arena_release(arena);
    if (ours && bd_lone_syncs_ahead(&client->lone))
        bd_worker_sync(worker, base); /* when it fails, the flush will tell */
    if (has_written(round))
        bd_worker_slow_down(base);
}

static enum bd_served serve(struct bd_client *base, struct bd_worker *worker)
{
    struct nbd_client *client = nbd_client(base);
    pthread_mutex_lock(&base->lock);
    bool room = bd_client_has_room(base);
    pthread_mutex_unlock(&base->lock);
    if (!room)
        return BD_SERVED_BLOCKED;
    struct round round;
    round.count = 0;
    round.read_bytes = 0;
    round.payload = 0;
    enum bd_served served = gather(client, &round);
    if (round.count > 0) {
        execute(client, worker, &round);
        bd_worker_served(worker, (unsigned)round.count, round.payload);
        return served == BD_SERVED_STOP ? BD_SERVED_SOME : served;
    }
    if (served == BD_SERVED_SOME && base->held_until_ns == 0) /* not a single one of ours */
        mail_next(client);
    return served;
}

static void finish(struct bd_client *base, struct bd_job *job)
{
    struct nbd_client *client = nbd_client(base);
    if (job->status < 0) {
        bd_client_mail(base, job->header, header_bytes(client));
        if (job->paid) /* a sync goes on as a WRITE of nothing */
            bd_client_paid(base, op_of(job->flags), job->data != NULL ? job->length : 0);
        return;
    }
    struct bd_nbd_output output;
    struct bd_tally tally = {0};
    bd_tally_count(&tally, op_of(job->flags), job->length);
    bd_nbd_output_init(&output, client->terms.replies);
    if (job->data != NULL)
        bd_nbd_put_data(&output, job->cookie, job->offset, job->data->data + job->data_at,
                        (size_t)job->length, 1);
    else
        bd_nbd_put_done(&output, job->cookie, job->offset);
    bd_client_send(base, output.pieces, output.count, job->data);
    bd_loop_served(base, base->account, &tally, bd_loop_monotonic_ns() - job->arrived_ns);
}

static void destroy(struct bd_client *base)
{
    (void)base;
}

static const struct bd_protocol nbd = {serve, finish, destroy};

struct bd_client *bd_nbd_client_new(struct bd_volume *volume, int fd,
                                    const struct bd_nbd_terms *terms, const uint8_t *input,
                                    size_t input_length)
{
    struct nbd_client *client = malloc(sizeof *client);
    if (client == NULL)
        return NULL;
    if (bd_client_init(&client->base, &nbd, volume, fd, input, input_length) < 0) {
        free(client);
        return NULL;
    }
    client->terms = *terms;
    client->lone = (struct bd_lone){0};
    return &client->base;
}
