#ifndef BLOCKD_ERASURE_PY_H
#define BLOCKD_ERASURE_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_erasure_register(PyObject *module);

#endif
