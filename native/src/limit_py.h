/* Python face of limits: Limit, Reservation. */
#ifndef BLOCKD_LIMIT_PY_H
#define BLOCKD_LIMIT_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "limit.h"

extern PyTypeObject bd_limit_type;

/* The limit of a Limit, for as long as that lives; NULL for None. -1 with an exception. */
int bd_limit_of(PyObject *object, struct bd_limit **limit);

/* A Reservation with what `reservation` has, which is none any more; `limit` is that of a Limit.
 * NULL with an exception. */
PyObject *bd_reservation_move(struct bd_limit *limit, struct bd_reservation *reservation);

int bd_limit_register(PyObject *module);

#endif
