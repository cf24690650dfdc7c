#ifndef BLOCKD_WARM_PY_H
#define BLOCKD_WARM_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Method `warm` of VolumeCore: (generation, indexes, ids, places, packs) -> how many are done. */
PyObject *bd_volume_warm_py(PyObject *self, PyObject *args);

#endif
