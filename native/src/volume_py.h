#ifndef BLOCKD_VOLUME_PY_H
#define BLOCKD_VOLUME_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "journal_py.h"
#include "volume.h"

typedef struct {
    PyObject_HEAD struct bd_volume *volume;
    PyObject *journal; /* kept alive */
    PyObject *table;
} bd_volume_object;

extern PyTypeObject bd_volume_type;
extern PyObject *bd_read_fault_error;

int bd_volume_register(PyObject *module);
PyObject *bd_raise_fault(const struct bd_read_fault *fault);

#endif
