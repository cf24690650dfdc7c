#ifndef BLOCKD_TABLE_PY_H
#define BLOCKD_TABLE_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "place_table.h"

typedef struct {
    PyObject_HEAD struct bd_place_table *table;
} bd_table_object;

typedef struct {
    PyObject_HEAD struct bd_pack *pack;
} bd_pack_object;

extern PyTypeObject bd_table_type;
extern PyTypeObject bd_pack_type;

int bd_table_register(PyObject *module);

#endif
