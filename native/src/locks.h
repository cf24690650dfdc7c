/* Taking the core's locks. Whoever may hold a lock of the embedding program that the lock's owner
 * may want (Python's GIL, for which simulated files wait) must let go of it before it blocks: the
 * glue sets bd_lock_wait for that. Without contention this is pthread_mutex_lock. */
#ifndef BLOCKD_LOCKS_H
#define BLOCKD_LOCKS_H

#include <pthread.h>

/* Lock a mutex that somebody else has; pthread_mutex_lock unless the glue says otherwise. */
extern int (*bd_lock_wait)(pthread_mutex_t *mutex);

static inline void bd_lock(pthread_mutex_t *mutex)
{
    if (pthread_mutex_trylock(mutex) != 0)
        bd_lock_wait(mutex);
}

#endif
