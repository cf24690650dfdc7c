#include "crc32c.h"

#include <isa-l/crc.h>
#include <pthread.h>

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

/* What a page of zeros makes of each byte of a CRC's register: it is linear in them. */
static uint32_t page_shift[4][256];
static pthread_once_t page_shift_once = PTHREAD_ONCE_INIT;

static void fill_page_shift(void)
{
    static uint8_t zeros[BD_PAGE]; /* not const: ISA-L's prototype */
    for (unsigned byte = 0; byte < 4; byte++) {
        for (unsigned bit = 0; bit < 8; bit++)
            page_shift[byte][1U << bit] = crc32_iscsi(zeros, BD_PAGE, 1U << (8 * byte + bit));
        for (unsigned value = 1; value < 256; value++) {
            unsigned lowest = value & -value;
            page_shift[byte][value] = page_shift[byte][value ^ lowest] ^ page_shift[byte][lowest];
        }
    }
}

uint32_t bd_crc32c_join_page(uint32_t crc, uint32_t page_crc)
{
    pthread_once(&page_shift_once, fill_page_shift);
    return page_shift[0][crc & 255] ^ page_shift[1][crc >> 8 & 255] ^
           page_shift[2][crc >> 16 & 255] ^ page_shift[3][crc >> 24] ^ page_crc;
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
