#ifndef BLOCKD_SITES_PY_H
#define BLOCKD_SITES_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_sites_register(PyObject *module);

#endif
