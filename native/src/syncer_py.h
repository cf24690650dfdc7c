/* Python face of syncers. */
#ifndef BLOCKD_SYNCER_PY_H
#define BLOCKD_SYNCER_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int bd_syncer_register(PyObject *module);

#endif
