/* What the fuzz targets share: the entry point that libFuzzer and main.c call, a cursor over the
 * input, and buffers that end at a page nobody may touch.
 *
 * A target takes bytes and returns 0. It aborts (CHECK) when what its head promises does not hold.
 * The same bytes always do the same, so a file that failed once is a test from then on. */
#ifndef BLOCKD_FUZZ_H
#define BLOCKD_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *data;
    size_t left;
};

/* Little-endian numbers; what the input has no bytes for is 0. */
static inline uint64_t take(struct input *input, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && input->left > 0; i++) {
        value |= (uint64_t)*input->data++ << (8 * i);
        input->left--;
    }
    return value;
}

/* Up to `most` bytes of the input; how many in *length. */
static inline const uint8_t *take_bytes(struct input *input, size_t most, size_t *length)
{
    const uint8_t *bytes = input->data;
    *length = most < input->left ? most : input->left;
    input->data += *length;
    input->left -= *length;
    return bytes;
}

/* `length` bytes that end right before a page without access. The codecs' libraries are not built
 * under AddressSanitizer and partly assembler; this finds what they read or write beyond an end. */
struct guarded {
    uint8_t *pages;
    size_t capacity; /* bytes before the guard */
};

static inline void guarded_init(struct guarded *guarded, size_t capacity)
{
    const size_t page = 4096;
    guarded->capacity = (capacity + page - 1) / page * page;
    guarded->pages = mmap(NULL, guarded->capacity + page, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(guarded->pages != MAP_FAILED);
    CHECK_EQ(mprotect(guarded->pages + guarded->capacity, page, PROT_NONE), 0);
}

static inline uint8_t *guarded_at(const struct guarded *guarded, size_t length)
{
    CHECK(length <= guarded->capacity);
    return guarded->pages + guarded->capacity - length;
}

#endif
