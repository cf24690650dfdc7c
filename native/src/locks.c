#include "locks.h"

int (*bd_lock_wait)(pthread_mutex_t *mutex) = pthread_mutex_lock;
