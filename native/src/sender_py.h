#ifndef BLOCKD_SENDER_PY_H
#define BLOCKD_SENDER_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_sender_register(PyObject *module);

#endif
