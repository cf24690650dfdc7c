/* Request: one block request as Python and C both see it. Owned by the front end; the volume
 * fills in error, message and (for reads) data. See native/_native.pyi for the contract. */
#ifndef BLOCKD_REQUEST_H
#define BLOCKD_REQUEST_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#include "op.h"

enum bd_request_flag {
    BD_FLAG_FUA = 1,
    BD_FLAG_NO_HOLE = 2,
    BD_FLAG_FAST_ZERO = 4,
    BD_FLAG_IF_SEQ = 8, /* WRITE, UNMAP, WRITE_ZEROES: only if nothing was written since `seq` */
};

typedef struct {
    PyObject_HEAD uint64_t cookie;
    uint64_t offset;
    uint64_t length;
    uint64_t seq;      /* of the volume, for BD_FLAG_IF_SEQ */
    uint64_t begun_ns; /* of whatever clock Account.begin was given */
    uint32_t op;
    uint32_t flags;
    uint64_t wait_seq; /* with `waits`: what other nodes have to have, ... */
    int32_t error;
    char waits;        /* done, and to be told when they have (gate.h) */
    char wait_durable; /* ... on their disks */
    PyObject *data;    /* never NULL */
    PyObject *message; /* never NULL: None or str */
} bd_request;

extern PyTypeObject bd_request_type;

int bd_request_register(PyObject *module);

#endif
