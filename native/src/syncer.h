/* Syncer: a thread that makes a journal durable for one that must not wait for the disk.
 *
 * Whoever asks has a ticket, and is told by an eventfd when a sync that began after it was asked
 * for has ended. All that is asked for while a sync is under way has the next one together: so
 * there is one under way and one to come at the most, however many ask, and nothing to be bounded.
 *
 * A sync that fails has sealed the journal, so every later one fails as well. Who asks has to look
 * at the store then, on a thread that may wait. */
#ifndef BLOCKD_SYNCER_H
#define BLOCKD_SYNCER_H

#include <stdint.h>

#include "journal.h"

struct bd_syncer;

/* Of `journal`, which outlives it. NULL with *error, -errno. */
struct bd_syncer *bd_syncer_new(struct bd_journal *journal, int *error);

/* Waits for a sync that is under way; what was asked for behind it is not done. */
void bd_syncer_free(struct bd_syncer *syncer);

/* eventfd(2): readable when a sync has ended since the last bd_syncer_done. */
int bd_syncer_event(const struct bd_syncer *syncer);

/* Have everything that is in the journal made durable; the ticket. */
uint64_t bd_syncer_ask(struct bd_syncer *syncer);

/* The newest ticket whose sync has ended, and how the last one did: 0 or -errno. */
uint64_t bd_syncer_done(struct bd_syncer *syncer, int *error);

#endif
