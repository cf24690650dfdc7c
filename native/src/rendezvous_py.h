#ifndef BLOCKD_RENDEZVOUS_PY_H
#define BLOCKD_RENDEZVOUS_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_rendezvous_register(PyObject *module);

#endif
