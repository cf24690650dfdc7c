#ifndef BLOCKD_ISCSI_CLIENT_PY_H
#define BLOCKD_ISCSI_CLIENT_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_iscsi_register(PyObject *module);

#endif
