#include "memory_file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static ssize_t memory_pread(struct bd_file *file, void *data, size_t length, uint64_t offset,
                            bool nowait)
{
    struct memory_file *memory = file->object;
    pthread_mutex_lock(&memory->lock);
    memory->preads++;
    ssize_t result = 0;
    if (memory->fail_pread < 0) {
        result = memory->fail_pread;
    } else if (nowait && memory->would_wait) {
        result = -EAGAIN;
    } else if (offset < memory->size) {
        size_t rest = memory->size - (size_t)offset;
        result = (ssize_t)(length < rest ? length : rest);
        memcpy(data, memory->bytes + offset, (size_t)result);
    }
    pthread_mutex_unlock(&memory->lock);
    return result;
}

static int memory_pwritev(struct bd_file *file, struct iovec *iov, int count, uint64_t offset)
{
    struct memory_file *memory = file->object;
    pthread_mutex_lock(&memory->lock);
    memory->writes++;
    int result = memory->fail_pwritev;
    size_t budget = result < 0 ? memory->fail_written : SIZE_MAX;
    memory->fail_pwritev = 0;
    for (int i = 0; i < count && budget > 0; i++) {
        size_t step = iov[i].iov_len < budget ? iov[i].iov_len : budget;
        CHECK(offset + step <= memory->capacity);
        memcpy(memory->bytes + offset, iov[i].iov_base, step);
        offset += step;
        budget -= step;
    }
    pthread_mutex_unlock(&memory->lock);
    return result;
}

static int memory_sync(struct bd_file *file)
{
    struct memory_file *memory = file->object;
    atomic_fetch_add(&memory->syncs, 1);
    if (memory->during_sync != NULL)
        memory->during_sync(memory->during_sync_with);
    return memory->fail_sync;
}

static void memory_close(struct bd_file *file)
{
    struct memory_file *memory = file->object;
    CHECK(!memory->closed);
    memory->closed = true;
}

static const struct bd_file_ops memory_ops = {memory_pread, memory_pwritev, memory_sync,
                                              memory_close};

void memory_file_init(struct memory_file *memory, size_t capacity, uint8_t fill)
{
    memset(memory, 0, sizeof *memory);
    pthread_mutex_init(&memory->lock, NULL);
    memory->bytes = malloc(capacity);
    CHECK(memory->bytes != NULL);
    memset(memory->bytes, fill, capacity);
    memory->size = capacity;
    memory->capacity = capacity;
}

void memory_file_destroy(struct memory_file *memory)
{
    pthread_mutex_destroy(&memory->lock);
    free(memory->bytes);
}

struct bd_file memory_file_open(struct memory_file *memory)
{
    memory->closed = false;
    return (struct bd_file){.ops = &memory_ops, .object = memory, .fd = -1};
}
