/* Requests of a client, as they are on the wire. */
#ifndef BLOCKD_NBD_REQUESTS_H
#define BLOCKD_NBD_REQUESTS_H

#include <string.h>

#include "big_endian.h"
#include "nbd_wire.h"

/* Write a simple request without flags; BD_NBD_REQUEST, its length. */
static inline size_t put_request(uint8_t *out, uint16_t command, uint64_t cookie, uint64_t offset,
                                 uint32_t length)
{
    memset(out, 0, BD_NBD_REQUEST);
    bd_put_be32(out, BD_NBD_REQUEST_MAGIC);
    bd_put_be16(out + 6, command);
    bd_put_be64(out + 8, cookie);
    bd_put_be64(out + 16, offset);
    bd_put_be32(out + 24, length);
    return BD_NBD_REQUEST;
}

#endif
