#include "crc32c.h"

#include <isa-l/crc.h>

#include "bytes.h"

uint32_t bd_crc32c(uint32_t crc, const void *data, size_t length)
{
    const uint8_t *at = data;
    uint32_t state = ~crc;
    while (length > 0) {
        /* ISA-L takes an int; the cast drops const because its prototype lacks it. */
        int step = length > (1 << 30) ? (1 << 30) : (int)length;
        state = crc32_iscsi((unsigned char *)(uintptr_t)at, step, state);
        at += step;
        length -= (size_t)step;
    }
    return ~state;
}

void bd_crc32c_pages(const void *data, size_t length, uint8_t *out)
{
    const uint8_t *at = data;
    while (length > 0) {
        size_t step = length < BD_PAGE ? length : BD_PAGE;
        bd_put32(out, bd_crc32c(0, at, step));
        out += 4;
        at += step;
        length -= step;
    }
}
