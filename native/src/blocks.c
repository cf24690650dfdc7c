#include "blocks.h"

#include <stdint.h>
#include <string.h>

bool bd_is_zero(const void *data, size_t length)
{
    const uint8_t *at = data;
    /* Sixteen bytes by hand, then every byte must equal the one sixteen before it: memcmp is
     * vectorised by libc, and stops at the first difference. */
    size_t head = length < 16 ? length : 16;
    for (size_t i = 0; i < head; i++)
        if (at[i] != 0)
            return false;
    return length <= 16 || memcmp(at, at + 16, length - 16) == 0;
}
