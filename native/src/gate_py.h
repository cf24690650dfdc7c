#ifndef BLOCKD_GATE_PY_H
#define BLOCKD_GATE_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Methods of VolumeCore: when clients of a volume that other nodes have as well are answered. */
PyObject *bd_py_gate(PyObject *self, PyObject *unused);
PyObject *bd_py_gate_open(PyObject *self, PyObject *args);
PyObject *bd_py_gate_shut(PyObject *self, PyObject *unused);
PyObject *bd_py_gate_advance(PyObject *self, PyObject *args);
PyObject *bd_py_gate_lease(PyObject *self, PyObject *args);
PyObject *bd_py_gate_expire(PyObject *self, PyObject *unused);
PyObject *bd_py_gate_want(PyObject *self, PyObject *args);
PyObject *bd_py_gate_seen(PyObject *self, PyObject *args);
PyObject *bd_py_gate_state(PyObject *self, PyObject *unused);

#endif
