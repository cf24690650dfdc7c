/* A client of the loop over a socket pair, for the targets of its protocols: rounds of serving take
 * place here, in the functions that a worker calls, so that the same bytes always do the same. Jobs
 * run on the threads of one loop that has no client; each step waits for those it began. */
#ifndef BLOCKD_FUZZ_SERVED_H
#define BLOCKD_FUZZ_SERVED_H

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client_feed.h"
#include "fuzz.h"
#include "loop.h"

enum { SERVED_BYTES = 64 << 20 };

struct served {
    struct bd_loop *loop; /* of the process, not of one input */
    struct bd_worker worker;
    struct bd_client *client;
    int peer;
    uint8_t *sent; /* by the client, all of it; the process's */
    size_t sent_length;
    uint8_t *mail; /* the same */
    size_t mail_length;
};

/* The client's end of a new pair. */
static inline int served_begin(struct served *served)
{
    if (served->loop == NULL) {
        served->loop = bd_loop_new(1, 1, 0);
        served->sent = malloc(SERVED_BYTES);
        served->mail = malloc(SERVED_BYTES);
        CHECK(served->loop != NULL && served->sent != NULL && served->mail != NULL);
    }
    int pair[2];
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    served->peer = pair[1];
    served->sent_length = served->mail_length = 0;
    return pair[0];
}

static inline void served_take_mail(struct served *served)
{
    struct bd_client *client = served->client;
    pthread_mutex_lock(&client->lock);
    if (client->mail_length > 0) {
        CHECK(client->mail_length <= SERVED_BYTES - served->mail_length);
        memcpy(served->mail + served->mail_length, client->mail, client->mail_length);
        served->mail_length += client->mail_length;
        client->mail_length = 0;
    }
    pthread_mutex_unlock(&client->lock);
}

/* All jobs have ended, and what they had to say is there. */
static inline void served_settle(struct served *served)
{
    for (unsigned jobs = 1; jobs > 0;) {
        pthread_mutex_lock(&served->client->lock);
        jobs = served->client->jobs;
        pthread_mutex_unlock(&served->client->lock);
        if (jobs > 0)
            sched_yield();
    }
    served_take_mail(served);
}

/* The peer takes everything. */
static inline void served_drain(struct served *served)
{
    struct bd_client *client = served->client;
    bool more = true;
    while (more) {
        ssize_t count;
        while ((count = recv(served->peer, served->sent + served->sent_length,
                             SERVED_BYTES - served->sent_length, MSG_DONTWAIT)) > 0)
            served->sent_length += (size_t)count;
        CHECK(served->sent_length < SERVED_BYTES);
        pthread_mutex_lock(&client->lock);
        more = client->first_unsent != NULL && !client->cut;
        if (more)
            bd_client_flush(client);
        pthread_mutex_unlock(&client->lock);
    }
}

/* Bytes arrive. All rounds that they lead to take place. ALL or STOP. */
static inline enum bd_served served_feed(struct served *served, const uint8_t *bytes, size_t length)
{
    struct bd_client *client = served->client;
    if (!client_receives(client, bytes, length))
        return BD_SERVED_ALL;
    enum bd_served said = BD_SERVED_SOME;
    while ((said == BD_SERVED_SOME || said == BD_SERVED_BLOCKED) &&
           (client->input.start < client->input.end || client->direct.at != NULL)) {
        size_t before = client->input.start;
        bool lands = client->direct.at != NULL;
        said = client->protocol->serve(client, &served->worker);
        CHECK(client->input.start <= client->input.end);
        if (said == BD_SERVED_SOME)
            CHECK(client->input.start > before || lands); /* or it would be served for ever */
        if (said != BD_SERVED_BLOCKED)
            continue;
        CHECK_EQ(client->input.start, before);
        served_settle(served);
        served_drain(served);
        CHECK(bd_client_has_room(client));
    }
    return said == BD_SERVED_STOP ? BD_SERVED_STOP : BD_SERVED_ALL;
}

/* The length of the next piece of a stream: all of it for seed 0. */
static inline size_t served_piece(uint32_t *seed, size_t left)
{
    if (*seed == 0)
        return left;
    *seed = *seed * 1664525 + 1013904223;
    *seed += *seed == 0;
    size_t piece = 1 + (*seed >> 8) % ((*seed & 16) != 0 ? 64 : 4096);
    return piece < left ? piece : left;
}

/* The client goes; what it had to say of itself goes too. */
static inline void served_end(struct served *served)
{
    served_settle(served);
    struct bd_client *told;
    while ((told = bd_loop_news(served->loop)) != NULL)
        bd_client_release(told);
    bd_client_release(served->client);
    bd_arena_release(served->worker.arena);
    served->worker.arena = NULL;
    close(served->peer);
}

#endif
