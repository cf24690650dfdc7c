/* Python face of what comes with every write between nodes. */
#ifndef BLOCKD_PEER_PY_H
#define BLOCKD_PEER_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_peer_register(PyObject *module);

#endif
