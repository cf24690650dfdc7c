#ifndef BLOCKD_JOURNAL_PY_H
#define BLOCKD_JOURNAL_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "journal.h"

typedef struct {
    PyObject_HEAD struct bd_journal *journal;
} bd_journal_object;

extern PyTypeObject bd_journal_type;

int bd_journal_register(PyObject *module);

static inline struct bd_journal *bd_journal_of(PyObject *self)
{
    return ((bd_journal_object *)self)->journal;
}

/* Methods of Journal, in cut_py.c, note_py.c and replay_py.c. */
PyObject *bd_py_cut(PyObject *self, PyObject *unused);
PyObject *bd_py_freeze(PyObject *self, PyObject *volumes);
PyObject *bd_py_point(PyObject *self, PyObject *volumes);
PyObject *bd_py_append_point(PyObject *self, PyObject *args);
PyObject *bd_py_append_notes(PyObject *self, PyObject *args);
PyObject *bd_py_replay(PyObject *self, PyObject *args, PyObject *keywords);
PyObject *bd_py_copy_records(PyObject *self, PyObject *args);
PyObject *bd_py_proves(PyObject *self, PyObject *args);
/* A function of the module. */
PyObject *bd_py_decode_segment_header(PyObject *self, PyObject *args);

/* Set OSError from -errno; returns NULL. */
PyObject *bd_raise_errno(int error);

#endif
