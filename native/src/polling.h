/* When a worker looks at its sockets again and again, instead of sleeping until one has something.
 *
 * A client with few small requests at a time asks again a moment after it has a reply. Going to
 * sleep and being woken takes longer than serving it: on a virtual machine, where a core that
 * sleeps is the host's to wake, several times as long. So a worker that was asked in this way a few
 * times in a row looks again for a while (BD_POLL_WINDOW_NS) before it sleeps.
 *
 * What must not come of it:
 *   - Clients with many requests under way are served in batches, which gather while the worker
 *     sleeps, and cost less that way. So a larger batch ends the polling until the row begins anew;
 *     so do large requests, and other clients, who need the cores too.
 *   - A core that is polled on is nobody else's. When another thread was given the core meanwhile,
 *     or when nothing comes, more often than it is worth, there is a pause, twice as long each
 * time, up to a quarter of a second.
 *   - Jobs (a sync, a read from the disk) need cores, and take longer: no polling while the client
 *     has any. They do not end the row: between two flushes there are writes.
 *
 * This is only the decision; times are passed in. One worker's, on its thread. */
#ifndef BLOCKD_POLLING_H
#define BLOCKD_POLLING_H

#include <stdbool.h>
#include <stdint.h>

enum {
    BD_POLL_ROW = 16, /* wake-ups with few small requests, before polling */
    BD_POLL_FEW = 8,
    BD_POLL_SMALL = 64 << 10,   /* bytes of payload that make a request a long one */
    BD_POLL_WINDOW_NS = 120000, /* that it is looked for at most */
    BD_POLL_AWAY_NS = 100000,   /* between two looks: another thread had the core */
    BD_POLL_PAUSE_NS = 1000000, /* the first one */
    BD_POLL_MAX_PAUSES = 8,     /* that double: the longest is a quarter of a second */
    BD_POLL_CREDIT = 64,        /* that looks which find something can earn, one each */
    BD_POLL_NOTHING_COSTS = 8,
    BD_POLL_AWAY_COSTS = 32,
};

struct bd_poll {
    unsigned row;    /* wake-ups of the right kind */
    unsigned pauses; /* that were made since there was all the credit last */
    unsigned credit;
    uint64_t again_ns; /* monotonic: not before */
};

/* How the looks of one wait ended. */
enum bd_poll_end {
    BD_POLL_FOUND, /* there is something */
    BD_POLL_NOTHING,
    BD_POLL_AWAY, /* another thread had the core */
};

/* A wake-up has been served: so many requests, with so much payload. `alone`: all of the client
 * that was served the last time too. */
void bd_poll_served(struct bd_poll *poll, unsigned requests, uint64_t payload, bool alone);

/* Whether to look before sleeping. */
bool bd_poll_worth(const struct bd_poll *poll, uint64_t now_ns);

/* It was looked for `waited_ns`, until now. */
void bd_poll_ended(struct bd_poll *poll, enum bd_poll_end end, uint64_t now_ns);

#endif
