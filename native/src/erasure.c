/* Tables are what ISA-L multiplies by: 32 bytes for each coefficient. Those of encoding are made
 * once. Those of a reconstruction depend on which shards are read and which are wanted, its
 * pattern: a store that lost a device sees few of them, again and again, so the last ones used are
 * kept, in memory that is all allocated at the beginning. */
#include "erasure.h"

#include <errno.h>
#include <isa-l/erasure_code.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "locks.h"

enum {
    TABLE_BYTES = 32,
    MAX_CELLS = BD_ERASURE_MAX_SHARDS * BD_ERASURE_MAX_SHARDS,
    /* At most data x parity coefficients, and their sum is bounded. */
    MAX_TABLES = TABLE_BYTES * BD_ERASURE_MAX_SHARDS * BD_ERASURE_MAX_SHARDS / 4,
    /* Bytes of each shard that go through at a time. ISA-L takes a few outputs per pass over its
     * inputs; with more, the second pass finds this much of them in the cache. */
    SLICE = 16 << 10,
    ONE_PASS = 4,         /* outputs that any of its kernels takes in one */
    MAX_LENGTH = 1 << 30, /* that its int takes */
};

struct pattern {
    uint32_t read;   /* bit i: shard i is read; 0: the slot is free */
    uint32_t wanted; /* bit i: shard i is computed */
    uint64_t used_at;
};

struct bd_erasure {
    unsigned data, parity;
    pthread_mutex_t lock; /* of what is below `encode_tables` */
    uint8_t matrix[MAX_CELLS];
    uint8_t encode_tables[MAX_TABLES];
    uint64_t clock, made;
    struct pattern patterns[BD_ERASURE_PATTERNS];
    uint8_t tables[]; /* BD_ERASURE_PATTERNS times data x parity x TABLE_BYTES */
};

static size_t table_bytes(const struct bd_erasure *code)
{
    return (size_t)code->data * code->parity * TABLE_BYTES;
}

struct bd_erasure *bd_erasure_new(unsigned data, unsigned parity)
{
    if (data < 1 || parity < 1 || data > BD_ERASURE_MAX_SHARDS ||
        parity > BD_ERASURE_MAX_SHARDS - data) {
        errno = EINVAL;
        return NULL;
    }
    size_t tables = (size_t)data * parity * TABLE_BYTES * BD_ERASURE_PATTERNS;
    struct bd_erasure *code = calloc(1, sizeof *code + tables);
    if (code == NULL)
        return NULL;
    code->data = data;
    code->parity = parity;
    pthread_mutex_init(&code->lock, NULL);
    gf_gen_cauchy1_matrix(code->matrix, (int)(data + parity), (int)data);
    ec_init_tables((int)data, (int)parity, code->matrix + data * data, code->encode_tables);
    return code;
}

void bd_erasure_free(struct bd_erasure *code)
{
    pthread_mutex_destroy(&code->lock);
    free(code);
}

unsigned bd_erasure_data(const struct bd_erasure *code)
{
    return code->data;
}

unsigned bd_erasure_parity(const struct bd_erasure *code)
{
    return code->parity;
}

void bd_erasure_stats(struct bd_erasure *code, size_t *patterns, uint64_t *made)
{
    bd_lock(&code->lock);
    *patterns = 0;
    for (int i = 0; i < BD_ERASURE_PATTERNS; i++)
        *patterns += code->patterns[i].read != 0;
    *made = code->made;
    pthread_mutex_unlock(&code->lock);
}

/* `rows` outputs from `data` inputs. */
static void multiply(unsigned data, unsigned rows, size_t length, const uint8_t *tables,
                     const uint8_t *const *inputs, uint8_t *const *outputs)
{
    uint8_t *in[BD_ERASURE_MAX_SHARDS], *out[BD_ERASURE_MAX_SHARDS];
    size_t slice = rows > ONE_PASS ? SLICE : MAX_LENGTH;
    for (size_t at = 0; at < length; at += slice) {
        size_t piece = length - at < slice ? length - at : slice;
        for (unsigned i = 0; i < data; i++)
            in[i] = (uint8_t *)inputs[i] + at; /* ISA-L only reads it */
        for (unsigned i = 0; i < rows; i++)
            out[i] = outputs[i] + at;
        ec_encode_data((int)piece, (int)data, (int)rows, (uint8_t *)tables, in, out);
    }
}

void bd_erasure_encode(struct bd_erasure *code, size_t length, const uint8_t *const *data,
                       uint8_t *const *parity)
{
    multiply(code->data, code->parity, length, code->encode_tables, data, parity);
}

/* The coefficients of the wanted shards over those that are read. With R the rows of the matrix
 * that belong to the read shards, these are R x data, so data is R^-1 x these, and shard i is row i
 * of the matrix times that. */
static void make_tables(const struct bd_erasure *code, const struct pattern *pattern,
                        uint8_t *tables)
{
    unsigned data = code->data, shards = data + code->parity, rows = 0;
    uint8_t read[MAX_CELLS], inverse[MAX_CELLS], coefficients[MAX_CELLS] = {0};
    for (unsigned shard = 0; shard < shards; shard++)
        if (pattern->read >> shard & 1)
            memcpy(read + data * rows++, code->matrix + data * shard, data);
    if (gf_invert_matrix(read, inverse, (int)data) != 0)
        abort(); /* a Cauchy matrix has no such part: memory is not what we left in it */
    rows = 0;
    for (unsigned shard = 0; shard < shards; shard++) {
        if (!(pattern->wanted >> shard & 1))
            continue;
        for (unsigned column = 0; column < data; column++)
            for (unsigned i = 0; i < data; i++)
                coefficients[data * rows + column] ^=
                    gf_mul(code->matrix[data * shard + i], inverse[data * i + column]);
        rows++;
    }
    ec_init_tables((int)data, (int)rows, coefficients, tables);
}

/* A copy, for the slot may get another pattern as soon as the lock is free. */
static void find_tables(struct bd_erasure *code, uint32_t read, uint32_t wanted, uint8_t *tables)
{
    bd_lock(&code->lock);
    int slot = 0;
    bool found = false;
    for (int i = 0; i < BD_ERASURE_PATTERNS && !found; i++) {
        const struct pattern *pattern = &code->patterns[i];
        found = pattern->read == read && pattern->wanted == wanted;
        if (found || pattern->used_at < code->patterns[slot].used_at)
            slot = i;
    }
    struct pattern *pattern = &code->patterns[slot];
    uint8_t *kept = code->tables + (size_t)slot * table_bytes(code);
    if (!found) {
        *pattern = (struct pattern){.read = read, .wanted = wanted};
        make_tables(code, pattern, kept);
        code->made++;
    }
    pattern->used_at = ++code->clock;
    memcpy(tables, kept, (size_t)__builtin_popcount(wanted) * code->data * TABLE_BYTES);
    pthread_mutex_unlock(&code->lock);
}

int bd_erasure_reconstruct(struct bd_erasure *code, size_t length, const uint8_t *const *shards,
                           uint8_t *const *into)
{
    const uint8_t *inputs[BD_ERASURE_MAX_SHARDS];
    uint8_t *outputs[BD_ERASURE_MAX_SHARDS];
    unsigned there = 0, rows = 0;
    uint32_t read = 0, wanted = 0;
    for (unsigned shard = 0; shard < code->data + code->parity; shard++) {
        if (shards[shard] != NULL && into[shard] != NULL)
            return -EINVAL;
        if (shards[shard] != NULL && there < code->data) {
            inputs[there++] = shards[shard];
            read |= UINT32_C(1) << shard;
        } else if (into[shard] != NULL) {
            outputs[rows++] = into[shard];
            wanted |= UINT32_C(1) << shard;
        }
    }
    if (there < code->data)
        return -ENODATA;
    if (rows == 0)
        return 0;
    uint8_t tables[MAX_TABLES];
    find_tables(code, read, wanted, tables);
    multiply(code->data, rows, length, tables, inputs, outputs);
    return 0;
}
