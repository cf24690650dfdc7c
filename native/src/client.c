#include "client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "locks.h"
#include "loop.h"

enum { COPY_BELOW = 64 << 10 }; /* unsent bytes that are not worth keeping an arena for */

struct bd_arena *bd_arena_new(size_t capacity)
{
    struct bd_arena *arena = malloc(sizeof *arena + capacity);
    if (arena != NULL) {
        atomic_init(&arena->refs, 1);
        arena->capacity = capacity;
    }
    return arena;
}

void bd_arena_release(struct bd_arena *arena)
{
    if (arena != NULL && atomic_fetch_sub(&arena->refs, 1) == 1)
        free(arena);
}

int bd_client_init(struct bd_client *client, const struct bd_protocol *protocol,
                   struct bd_volume *volume, int fd, const uint8_t *input, size_t input_length)
{
    *client = (struct bd_client){.protocol = protocol, .volume = volume, .fd = fd};
    if (input_length > 0) {
        size_t capacity = input_length > BD_INPUT_BYTES ? input_length : BD_INPUT_BYTES;
        client->input.data = malloc(capacity);
        if (client->input.data == NULL)
            return -ENOMEM;
        memcpy(client->input.data, input, input_length);
        client->input.capacity = capacity;
        client->input.end = input_length;
    }
    int flags = fcntl(fd, F_GETFL);
    if (flags >= 0 && (flags & O_NONBLOCK) == 0)
        (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK); /* splice has no MSG_DONTWAIT */
    atomic_init(&client->refs, 1);
    pthread_mutex_init(&client->lock, NULL);
    return 0;
}

void bd_client_retain(struct bd_client *client)
{
    atomic_fetch_add(&client->refs, 1);
}

static void free_unsent(struct bd_unsent *unsent)
{
    bd_arena_release(unsent->arena);
    bd_view_release(unsent->view);
    free(unsent);
}

static void drop_unsent(struct bd_client *client)
{
    while (client->first_unsent != NULL) {
        struct bd_unsent *unsent = client->first_unsent;
        client->first_unsent = unsent->next;
        free_unsent(unsent);
    }
    client->last_unsent = NULL;
    client->unsent = 0;
}

void bd_client_release(struct bd_client *client)
{
    if (atomic_fetch_sub(&client->refs, 1) != 1)
        return;
    drop_unsent(client);
    if (client->fd >= 0)
        close(client->fd);
    client->protocol->destroy(client);
    free(client->input.data);
    free(client->mail);
    pthread_mutex_destroy(&client->lock);
    free(client);
}

/* Input. */

void bd_client_arrived(struct bd_client *client, size_t bytes, uint64_t now_ns)
{
    client->arrivals.total += bytes;
    if (client->input.end - client->input.start <= bytes)
        client->arrivals.count = 0; /* nothing of what came before is left */
    if (client->arrivals.count == BD_ARRIVALS) {
        unsigned last = (client->arrivals.first + BD_ARRIVALS - 1) % BD_ARRIVALS;
        client->arrivals.times[last].until = client->arrivals.total;
        return;
    }
    unsigned next = (client->arrivals.first + client->arrivals.count) % BD_ARRIVALS;
    client->arrivals.times[next].until = client->arrivals.total;
    client->arrivals.times[next].ns = now_ns;
    client->arrivals.count++;
}

uint64_t bd_client_arrival_ns(struct bd_client *client, size_t end)
{
    uint64_t until = client->arrivals.total - (client->input.end - end);
    while (client->arrivals.count > 1 &&
           client->arrivals.times[client->arrivals.first].until < until) {
        client->arrivals.first = (client->arrivals.first + 1) % BD_ARRIVALS;
        client->arrivals.count--;
    }
    return client->arrivals.times[client->arrivals.first].ns;
}

/* Output. */

/* Send as much of the pieces as the socket takes: the count of bytes, or -errno. `more`: something
 * follows at once. */
static ssize_t send_pieces(int fd, struct iovec *pieces, int count, bool more)
{
    struct msghdr message = {.msg_iov = pieces, .msg_iovlen = (size_t)count};
    for (;;) {
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0));
        if (sent >= 0)
            return sent;
        if (errno == EINTR)
            continue;
        return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : -errno;
    }
}

static void append(struct bd_client *client, struct bd_unsent *unsent)
{
    if (client->last_unsent != NULL)
        client->last_unsent->next = unsent;
    else
        client->first_unsent = unsent;
    client->last_unsent = unsent;
    client->unsent += unsent->length;
}

static bool keep(struct bd_client *client, const uint8_t *data, size_t length,
                 struct bd_arena *arena)
{
    struct bd_unsent *unsent = malloc(sizeof *unsent);
    if (unsent == NULL)
        return false;
    bool shared = arena != NULL && (length >= COPY_BELOW || client->gathering) &&
                  data >= arena->data && data + length <= arena->data + arena->capacity;
    if (shared) {
        atomic_fetch_add(&arena->refs, 1);
    } else {
        arena = bd_arena_new(length);
        if (arena == NULL) {
            free(unsent);
            return false;
        }
        memcpy(arena->data, data, length);
        data = arena->data;
    }
    *unsent = (struct bd_unsent){.arena = arena, .data = data, .length = length};
    append(client, unsent);
    return true;
}

static bool keep_pinned(struct bd_client *client, const struct bd_view_piece *piece,
                        struct bd_view *view)
{
    struct bd_unsent *unsent = malloc(sizeof *unsent);
    if (unsent == NULL)
        return false;
    bd_view_retain(view);
    *unsent = (struct bd_unsent){.view = view, .data = piece->data, .length = piece->length};
    append(client, unsent);
    return true;
}

/* Python watches over clients that do not take their replies. */
static void note_stall(struct bd_client *client)
{
    bool stalled = client->unsent > (client->stalled ? BD_OUTPUT_LOW : BD_OUTPUT_HIGH);
    if (stalled != client->stalled) {
        client->stalled = stalled;
        bd_loop_tell(client);
    }
}

void bd_client_send(struct bd_client *client, struct iovec *pieces, int count,
                    struct bd_arena *arena)
{
    if (client->cut || count == 0)
        return;
    size_t skip = 0;
    if (client->first_unsent == NULL && !client->gathering) {
        ssize_t sent = send_pieces(client->fd, pieces, count, false);
        if (sent < 0) {
            bd_client_cut(client);
            return;
        }
        skip = (size_t)sent;
    }
    bool was_empty = client->first_unsent == NULL;
    for (int i = 0; i < count; i++) {
        if (skip >= pieces[i].iov_len) {
            skip -= pieces[i].iov_len;
            continue;
        }
        const uint8_t *data = (const uint8_t *)pieces[i].iov_base + skip;
        if (!keep(client, data, pieces[i].iov_len - skip, arena)) {
            bd_client_cut(client);
            return;
        }
        skip = 0;
    }
    if (client->first_unsent == NULL || client->gathering)
        return;
    note_stall(client);
    if (was_empty)
        bd_loop_watch(client);
}

/* Whether it leaves by its view's pipes. */
static bool is_spliced(const struct bd_unsent *unsent)
{
    return unsent->view != NULL && !unsent->view->copied;
}

/* Send of what comes first: bytes of one view, or any others. *wanted: so many were tried. */
static ssize_t send_first(struct bd_client *client, size_t *wanted)
{
    struct bd_unsent *at = client->first_unsent;
    struct bd_view *view = at->view;
    *wanted = 0;
    if (is_spliced(at)) {
        for (; at != NULL && at->view == view; at = at->next)
            *wanted += at->length;
        return bd_view_splice(view, client->fd, *wanted, at != NULL);
    }
    struct iovec pieces[64];
    int count = 0;
    for (; at != NULL && count < 64 && !is_spliced(at); at = at->next) {
        pieces[count++] = (struct iovec){(void *)(uintptr_t)at->data, at->length};
        *wanted += at->length;
    }
    return send_pieces(client->fd, pieces, count, at != NULL);
}

static void take_off(struct bd_client *client, size_t sent)
{
    client->unsent -= sent;
    while (sent > 0) {
        struct bd_unsent *first = client->first_unsent;
        if (sent < first->length) {
            first->data += sent;
            first->length -= sent;
            return;
        }
        sent -= first->length;
        client->first_unsent = first->next;
        if (client->first_unsent == NULL)
            client->last_unsent = NULL;
        free_unsent(first);
    }
}

void bd_client_flush(struct bd_client *client)
{
    while (client->first_unsent != NULL && !client->cut) {
        size_t wanted;
        bool spliced = is_spliced(client->first_unsent);
        ssize_t sent = send_first(client, &wanted);
        if (sent == -EOPNOTSUPP && spliced)
            continue; /* it takes bytes */
        if (sent < 0) {
            bd_client_cut(client);
            return;
        }
        take_off(client, (size_t)sent);
        /* A part of pages says nothing: the rest may be in another pipe. */
        if (spliced ? sent == 0 : (size_t)sent < wanted)
            break;
    }
    note_stall(client);
    bd_loop_watch(client);
}

void bd_client_send_view(struct bd_client *client, struct iovec *pieces, int count,
                         struct bd_arena *arena, struct bd_view *view)
{
    if (client->cut)
        return;
    bool was_empty = client->first_unsent == NULL;
    bool kept = true;
    for (int i = 0; i < count && kept; i++)
        kept = keep(client, pieces[i].iov_base, pieces[i].iov_len, arena);
    for (unsigned i = 0; i < view->piece_count && kept; i++) {
        const struct bd_view_piece *piece = &view->pieces[i];
        kept = piece->pinned ? keep_pinned(client, piece, view)
                             : keep(client, piece->data, piece->length, arena);
    }
    if (!kept)
        bd_client_cut(client);
    else if (was_empty)
        bd_client_flush(client);
    else
        note_stall(client);
}

void bd_client_gather(struct bd_client *client)
{
    client->gathering = client->first_unsent == NULL; /* else all of it waits for the socket */
}

void bd_client_send_gathered(struct bd_client *client)
{
    bool gathered = client->gathering;
    client->gathering = false;
    if (gathered && client->first_unsent != NULL)
        bd_client_flush(client);
}

void bd_client_mail(struct bd_client *client, const uint8_t *data, size_t length)
{
    if (client->cut)
        return;
    if (length > client->mail_capacity - client->mail_length) {
        size_t capacity = client->mail_length + length;
        if (capacity < 2 * client->mail_capacity)
            capacity = 2 * client->mail_capacity;
        uint8_t *mail = realloc(client->mail, capacity);
        if (mail == NULL) {
            bd_client_cut(client);
            return;
        }
        client->mail = mail;
        client->mail_capacity = capacity;
    }
    memcpy(client->mail + client->mail_length, data, length);
    client->mail_length += length;
    bd_loop_tell(client);
}

void bd_client_paid(struct bd_client *client, enum bd_op op, uint64_t length)
{
    bd_tally_count(&client->paid, op, length);
}

bool bd_client_has_room(const struct bd_client *client)
{
    return client->unsent <= BD_OUTPUT_HIGH && client->mail_length <= BD_MAIL_HIGH &&
           client->jobs < BD_MAX_JOBS && client->job_bytes <= BD_JOB_BYTES;
}

void bd_client_stop(struct bd_client *client)
{
    if (!client->stopping) {
        client->stopping = true;
        bd_loop_attend(client);
    }
}

void bd_client_cut(struct bd_client *client)
{
    if (!client->cut) {
        client->cut = true;
        drop_unsent(client);
        shutdown(client->fd, SHUT_RDWR); /* the peer is not left waiting for its last jobs */
    }
    bd_client_stop(client);
}
