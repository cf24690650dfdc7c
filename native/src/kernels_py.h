#ifndef BLOCKD_KERNELS_PY_H
#define BLOCKD_KERNELS_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_kernels_register(PyObject *module);

#endif
