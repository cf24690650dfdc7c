#include "codec.h"

#include <errno.h>
#include <isa-l/igzip_lib.h>
#include <lz4.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>
#include <zstd_errors.h>

/* Levels, chosen by the figures of docs/benchmarks.md ("Codecs"). */
enum {
    LZ4_ACCELERATION = 1,
    ZSTD_LEVEL = 1,
    IGZIP_LEVEL = 1,
    IGZIP_LEVEL_BYTES = ISAL_DEF_LVL1_DEFAULT,
    /* ISA-L stops where a symbol does not fit any more, before the end of its output. */
    IGZIP_SLACK = 512,
};

/* What one thread keeps: allocated when first needed. */
struct workspace {
    ZSTD_DCtx *zstd_decoder;
    ZSTD_CCtx *zstd_encoder;
    struct inflate_state *inflate;
    struct isal_zstream *deflate;
    uint8_t *deflate_level;
    uint8_t *scratch;
    size_t scratch_length;
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool key_made;

static void workspace_free(void *object)
{
    struct workspace *own = object;
    ZSTD_freeDCtx(own->zstd_decoder);
    ZSTD_freeCCtx(own->zstd_encoder);
    free(own->inflate);
    free(own->deflate);
    free(own->deflate_level);
    free(own->scratch);
    free(own);
}

static void make_key(void)
{
    key_made = pthread_key_create(&key, workspace_free) == 0;
}

/* NULL without memory, or when the process has no thread key left. */
static struct workspace *workspace(void)
{
    pthread_once(&once, make_key);
    if (!key_made)
        return NULL;
    struct workspace *own = pthread_getspecific(key);
    if (own == NULL) {
        own = calloc(1, sizeof *own);
        if (own != NULL && pthread_setspecific(key, own) != 0) {
            free(own);
            own = NULL;
        }
    }
    return own;
}

uint8_t *bd_codec_scratch(size_t length)
{
    struct workspace *own = workspace();
    if (own == NULL)
        return NULL;
    if (own->scratch_length < length) {
        free(own->scratch); /* nobody wants its bytes: realloc would copy them */
        own->scratch = malloc(length);
        own->scratch_length = own->scratch == NULL ? 0 : length;
    }
    return own->scratch;
}

static int decode_lz4(const uint8_t *stored, size_t stored_length, uint8_t *raw, size_t raw_length,
                      size_t wanted)
{
    const char *from = (const char *)stored;
    int got;
    /* LZ4 takes a match of offset 0 for one of what lies in the output already. No encoder writes
     * that; forged bytes would be decoded into whatever was in this memory before. */
    memset(raw, 0, wanted);
    if (wanted == raw_length) {
        got = LZ4_decompress_safe(from, (char *)raw, (int)stored_length, (int)raw_length);
        return got == (int)raw_length ? 0 : -EBADMSG;
    }
    got = LZ4_decompress_safe_partial(from, (char *)raw, (int)stored_length, (int)wanted,
                                      (int)raw_length);
    return got >= (int)wanted ? 0 : -EBADMSG;
}

static int decode_zstd(const uint8_t *stored, size_t stored_length, uint8_t *raw, size_t raw_length)
{
    struct workspace *own = workspace();
    if (own == NULL)
        return -ENOMEM;
    if (own->zstd_decoder == NULL)
        own->zstd_decoder = ZSTD_createDCtx();
    if (own->zstd_decoder == NULL)
        return -ENOMEM;
    size_t got = ZSTD_decompressDCtx(own->zstd_decoder, raw, raw_length, stored, stored_length);
    if (ZSTD_isError(got))
        return ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation ? -ENOMEM : -EBADMSG;
    return got == raw_length ? 0 : -EBADMSG;
}

static int decode_igzip(const uint8_t *stored, size_t stored_length, uint8_t *raw,
                        size_t raw_length, size_t wanted)
{
    struct workspace *own = workspace();
    if (own == NULL)
        return -ENOMEM;
    if (own->inflate == NULL)
        own->inflate = malloc(sizeof *own->inflate);
    struct inflate_state *state = own->inflate;
    if (state == NULL)
        return -ENOMEM;
    bool whole = wanted == raw_length;
    size_t room = raw_length;
    if (raw_length - wanted > IGZIP_SLACK)
        room = wanted + IGZIP_SLACK;
    isal_inflate_init(state);
    state->crc_flag = ISAL_DEFLATE;
    state->next_in = (uint8_t *)(uintptr_t)stored; /* its prototype lacks const */
    state->avail_in = (uint32_t)stored_length;
    state->next_out = raw;
    state->avail_out = (uint32_t)room;
    int error = isal_inflate_stateless(state);
    if (error == ISAL_OUT_OVERFLOW && !whole)
        return state->total_out >= wanted ? 0 : -EBADMSG;
    if (error != ISAL_DECOMP_OK || state->block_state != ISAL_BLOCK_FINISH)
        return -EBADMSG;
    return whole ? (state->total_out == raw_length ? 0 : -EBADMSG)
                 : (state->total_out >= wanted ? 0 : -EBADMSG);
}

int bd_codec_decode(uint8_t codec, const uint8_t *stored, size_t stored_length, uint8_t *raw,
                    size_t raw_length, size_t wanted)
{
    if (codec >= BD_CODEC_COUNT)
        return -EINVAL;
    if (raw_length == 0 || raw_length > BD_CODEC_MAX_RAW || wanted > raw_length ||
        stored_length == 0 || stored_length > BD_CODEC_MAX_RAW)
        return -EBADMSG;
    switch (codec) {
    case BD_CODEC_LZ4:
        return decode_lz4(stored, stored_length, raw, raw_length, wanted);
    case BD_CODEC_ZSTD:
        return decode_zstd(stored, stored_length, raw, raw_length);
    case BD_CODEC_IGZIP:
        return decode_igzip(stored, stored_length, raw, raw_length, wanted);
    default:
        if (stored_length != raw_length)
            return -EBADMSG;
        memcpy(raw, stored, wanted);
        return 0;
    }
}

static ssize_t encode_zstd(const uint8_t *raw, size_t raw_length, uint8_t *stored, size_t capacity)
{
    struct workspace *own = workspace();
    if (own == NULL)
        return -ENOMEM;
    if (own->zstd_encoder == NULL)
        own->zstd_encoder = ZSTD_createCCtx();
    if (own->zstd_encoder == NULL)
        return -ENOMEM;
    size_t used =
        ZSTD_compressCCtx(own->zstd_encoder, stored, capacity, raw, raw_length, ZSTD_LEVEL);
    if (ZSTD_isError(used))
        return ZSTD_getErrorCode(used) == ZSTD_error_dstSize_tooSmall ? 0 : -ENOMEM;
    return (ssize_t)used;
}

static ssize_t encode_igzip(const uint8_t *raw, size_t raw_length, uint8_t *stored, size_t capacity)
{
    struct workspace *own = workspace();
    if (own == NULL)
        return -ENOMEM;
    if (own->deflate == NULL)
        own->deflate = malloc(sizeof *own->deflate);
    if (own->deflate_level == NULL)
        own->deflate_level = malloc(IGZIP_LEVEL_BYTES);
    struct isal_zstream *stream = own->deflate;
    if (stream == NULL || own->deflate_level == NULL)
        return -ENOMEM;
    isal_deflate_stateless_init(stream);
    stream->level = IGZIP_LEVEL;
    stream->level_buf = own->deflate_level;
    stream->level_buf_size = IGZIP_LEVEL_BYTES;
    stream->end_of_stream = 1;
    stream->flush = NO_FLUSH;
    stream->gzip_flag = IGZIP_DEFLATE;
    stream->next_in = (uint8_t *)(uintptr_t)raw; /* its prototype lacks const */
    stream->avail_in = (uint32_t)raw_length;
    stream->next_out = stored;
    stream->avail_out = (uint32_t)capacity;
    return isal_deflate_stateless(stream) == COMP_OK ? (ssize_t)stream->total_out : 0;
}

ssize_t bd_codec_encode(uint8_t codec, const uint8_t *raw, size_t raw_length, uint8_t *stored,
                        size_t capacity)
{
    if (codec >= BD_CODEC_COUNT || raw_length == 0 || raw_length > BD_CODEC_MAX_RAW)
        return -EINVAL;
    if (capacity > 2 * (size_t)BD_CODEC_MAX_RAW)
        capacity = 2 * (size_t)BD_CODEC_MAX_RAW; /* more than any codec writes */
    switch (codec) {
    case BD_CODEC_LZ4:
        return LZ4_compress_fast((const char *)raw, (char *)stored, (int)raw_length, (int)capacity,
                                 LZ4_ACCELERATION);
    case BD_CODEC_ZSTD:
        return encode_zstd(raw, raw_length, stored, capacity);
    case BD_CODEC_IGZIP:
        return encode_igzip(raw, raw_length, stored, capacity);
    default:
        if (capacity < raw_length)
            return 0;
        memcpy(stored, raw, raw_length);
        return (ssize_t)raw_length;
    }
}
