/* Kernels over plain blocks of bytes. */
#ifndef BLOCKD_BLOCKS_H
#define BLOCKD_BLOCKS_H

#include <stdbool.h>
#include <stddef.h>

bool bd_is_zero(const void *data, size_t length);

#endif
