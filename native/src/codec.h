/* Codecs: how the stored bytes of a chunk relate to its raw bytes.
 *
 * The numbers are those of pack entries (docs/disk-format.md). Stored bytes are hostile: decoding
 * reads nothing beyond `stored_length`, writes nothing beyond `raw_length`, and never takes memory
 * on their word. What the libraries want as working memory is kept for each thread, at most some
 * 2 MiB, and is freed with it. */
#ifndef BLOCKD_CODEC_H
#define BLOCKD_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum bd_codec {
    BD_CODEC_NONE,
    BD_CODEC_LZ4,   /* one LZ4 block, without a size in front */
    BD_CODEC_ZSTD,  /* one zstd frame */
    BD_CODEC_IGZIP, /* raw deflate */
    BD_CODEC_COUNT,
};

/* Of a chunk; the libraries count in int. */
enum { BD_CODEC_MAX_RAW = 16 << 20 };

/* Decode at least the first `wanted` bytes of a chunk of `raw_length` into `raw`, which has room
 * for all of it; a codec that can stop early does. With wanted = raw_length, stored bytes that
 * yield more or less than that fail as well. 0; -EBADMSG when they are not what the codec wrote,
 * -EINVAL for an unknown codec, -ENOMEM. After an error `raw` holds anything. */
int bd_codec_decode(uint8_t codec, const uint8_t *stored, size_t stored_length, uint8_t *raw,
                    size_t raw_length, size_t wanted);

/* Encode into `stored`: how many of its `capacity` bytes were used, 0 when it does not fit into
 * them, -EINVAL for an unknown codec or a raw length of 0 or too much, -ENOMEM. */
ssize_t bd_codec_encode(uint8_t codec, const uint8_t *raw, size_t raw_length, uint8_t *stored,
                        size_t capacity);

/* This thread's own `length` bytes, until its next call of this function; NULL without memory.
 * Keeps the largest piece that was asked for. */
uint8_t *bd_codec_scratch(size_t length);

#endif
