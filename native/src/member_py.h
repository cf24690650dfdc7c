#ifndef BLOCKD_MEMBER_PY_H
#define BLOCKD_MEMBER_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Methods of VolumeCore: a volume whose records go to other nodes, or come from one. */
PyObject *bd_py_tap(PyObject *self, PyObject *args);
PyObject *bd_py_untap(PyObject *self, PyObject *unused);
PyObject *bd_py_tap_again(PyObject *self, PyObject *unused);
PyObject *bd_py_take(PyObject *self, PyObject *args);
PyObject *bd_py_append_records(PyObject *self, PyObject *args);
PyObject *bd_py_append_plain(PyObject *self, PyObject *args);
PyObject *bd_py_take_plain(PyObject *self, PyObject *args);
PyObject *bd_py_tell_durable(PyObject *self, PyObject *args);
PyObject *bd_py_answered_ns(PyObject *self, PyObject *unused);
PyObject *bd_py_begin_epoch(PyObject *self, PyObject *args);

#endif
