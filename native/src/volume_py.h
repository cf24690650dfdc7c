#ifndef BLOCKD_VOLUME_PY_H
#define BLOCKD_VOLUME_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "journal_py.h"
#include "volume.h"

typedef struct {
    PyObject_HEAD struct bd_volume *volume;
    PyObject *journal; /* kept alive */
    PyObject *table;
} bd_volume_object;

/* No end of a chunk beyond it wraps around. */

extern PyTypeObject bd_volume_type;
extern PyObject *bd_read_fault_error;

int bd_volume_register(PyObject *module);
PyObject *bd_raise_fault(const struct bd_read_fault *fault);

static inline struct bd_volume *bd_volume_of(PyObject *self)
{
    return ((bd_volume_object *)self)->volume;
}

/* Methods of VolumeCore, in submit_py.c and hot_map_py.c. */
PyObject *bd_py_submit(PyObject *self, PyObject *args);
PyObject *bd_py_hot_extents(PyObject *self, PyObject *args);
PyObject *bd_py_frozen_runs(PyObject *self, PyObject *unused);
PyObject *bd_py_frozen_covers(PyObject *self, PyObject *args);
PyObject *bd_py_referred(PyObject *self, PyObject *args);
PyObject *bd_py_frozen_referred(PyObject *self, PyObject *args);
PyObject *bd_py_refer(PyObject *self, PyObject *args);
PyObject *bd_py_overlay_frozen(PyObject *self, PyObject *args);

#endif
