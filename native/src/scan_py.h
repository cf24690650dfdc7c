#ifndef BLOCKD_SCAN_PY_H
#define BLOCKD_SCAN_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_scan_register(PyObject *module);

#endif
