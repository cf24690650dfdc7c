/* CRC-32C (Castagnoli, RFC 3720 appendix B.4) over ISA-L. */
#ifndef BLOCKD_CRC32C_H
#define BLOCKD_CRC32C_H

#include <stddef.h>
#include <stdint.h>

enum { BD_PAGE = 4096, BD_PAGE_SHIFT = 12 }; /* unit in which stored bytes are checked */

/* CRC of `length` bytes, continuing from `crc` (0 to start): crc(b, crc(a)) == crc(ab). */
uint32_t bd_crc32c(uint32_t crc, const void *data, size_t length);

/* CRC of bytes and a page behind them, from the CRCs of both, without looking at them again:
 * join(crc(a), crc(b)) == crc(ab) where b is BD_PAGE bytes long. */
uint32_t bd_crc32c_join_page(uint32_t crc, uint32_t page_crc);

/* One little-endian CRC for each started page of `data`, into `out` (4 bytes each). */
void bd_crc32c_pages(const void *data, size_t length, uint8_t *out);

#endif
