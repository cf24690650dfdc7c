/* A bd_file over memory that fails as told: the disk of the C tests. */
#ifndef BLOCKD_MEMORY_FILE_H
#define BLOCKD_MEMORY_FILE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "file_io.h"

struct memory_file {
    pthread_mutex_t lock; /* makes each call atomic */
    uint8_t *bytes;
    size_t size; /* reads end here */
    size_t capacity;

    int fail_pread;      /* -errno of the next reads; 0: none */
    int fail_pwritev;    /* -errno of the next write, once */
    size_t fail_written; /* bytes of it that get through before it fails */
    int fail_sync;       /* -errno of the next syncs */
    bool would_wait;     /* -EAGAIN for nowait reads */

    void (*during_sync)(void *); /* called in sync, without the lock */
    void *during_sync_with;

    unsigned preads;
    unsigned writes;
    atomic_uint syncs;
    bool closed;
};

/* `capacity` bytes of `fill`. */
void memory_file_init(struct memory_file *memory, size_t capacity, uint8_t fill);
void memory_file_destroy(struct memory_file *memory);

/* An open file of it; closing only notes that it was closed. */
struct bd_file memory_file_open(struct memory_file *memory);

#endif
