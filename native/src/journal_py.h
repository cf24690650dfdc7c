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

/* Set OSError from -errno; returns NULL. */
PyObject *bd_raise_errno(int error);

#endif
