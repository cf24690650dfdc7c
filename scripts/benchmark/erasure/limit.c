/* ISA-L's erasure code without anything around it: what it reaches on this core, as its own
 * benchmark (erasure_code_perf.c) measures it: tables made before, then one call after the other on
 * the same buffers. A shared library, so that it runs on the very buffers, and in the very process,
 * that blockd's code runs on. */
#define _GNU_SOURCE
#include <isa-l/erasure_code.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { MAX = 32 };

static double thread_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static double call(int length, int inputs, int outputs, unsigned char *tables, uint8_t **from,
                   uint8_t **into, int rounds)
{
    double began = thread_seconds();
    for (int i = 0; i < rounds; i++)
        ec_encode_data(length, inputs, outputs, tables, from, into);
    return thread_seconds() - began;
}

/* CPU seconds of `rounds` encodings of `data` buffers into `parity` others. */
double limit_encode(int data, int parity, int length, uint8_t **shards, int rounds)
{
    unsigned char matrix[MAX * MAX], tables[32 * MAX * MAX];
    gf_gen_cauchy1_matrix(matrix, data + parity, data);
    ec_init_tables(data, parity, matrix + data * data, tables);
    return call(length, data, parity, tables, shards, shards + data, rounds);
}

/* CPU seconds of `rounds` decodings of the first `lost` data shards, from the first `data` of the
 * others, into `into`. Negative when that cannot be. */
double limit_decode(int data, int parity, int length, int lost, uint8_t **shards, uint8_t **into,
                    int rounds)
{
    unsigned char matrix[MAX * MAX], part[MAX * MAX], inverse[MAX * MAX], tables[32 * MAX * MAX];
    gf_gen_cauchy1_matrix(matrix, data + parity, data);
    memcpy(part, matrix + data * lost, (size_t)(data * data));
    if (gf_invert_matrix(part, inverse, data) != 0)
        return -1;
    ec_init_tables(data, lost, inverse, tables);
    return call(length, data, lost, tables, shards + lost, into, rounds);
}
