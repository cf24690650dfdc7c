/* Python faces of the place table and of open packs. */
#include "table_py.h"

#include "file_py.h"
#include "locks.h"
#include "view.h"

static PyObject *pack_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *object;
    unsigned int number;
    if (!PyArg_ParseTuple(args, "OI:PackFile", &object, &number))
        return NULL;
    struct bd_file file;
    if (bd_file_from_object(&file, object) < 0)
        return NULL;
    bd_pack_object *self = (bd_pack_object *)type->tp_alloc(type, 0);
    if (self != NULL)
        self->pack = bd_pack_new(file, number);
    if (self == NULL || self->pack == NULL) {
        file.ops->close(&file);
        Py_XDECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void pack_dealloc(PyObject *self)
{
    struct bd_pack *pack = ((bd_pack_object *)self)->pack;
    if (pack != NULL)
        bd_pack_release(pack);
    Py_TYPE(self)->tp_free(self);
}

PyTypeObject bd_pack_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.PackFile",
    .tp_basicsize = sizeof(bd_pack_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "An open pack, shared by the cached places of its chunks.",
    .tp_new = pack_new,
    .tp_dealloc = pack_dealloc,
};

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "n:PlaceTable", &limit))
        return NULL;
    if (limit < 0) {
        PyErr_SetString(PyExc_ValueError, "negative cache limit");
        return NULL;
    }
    bd_table_object *self = (bd_table_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->table = bd_table_new((size_t)limit);
    if (self->table == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void table_dealloc(PyObject *self)
{
    struct bd_place_table *table = ((bd_table_object *)self)->table;
    if (table != NULL)
        bd_table_free(table);
    Py_TYPE(self)->tp_free(self);
}

static PyObject *table_drop_pack(PyObject *self, PyObject *args)
{
    unsigned int number;
    if (!PyArg_ParseTuple(args, "I:drop_pack", &number))
        return NULL;
    bd_table_drop_pack(((bd_table_object *)self)->table, number);
    Py_RETURN_NONE;
}

static PyObject *table_drop_volume(PyObject *self, PyObject *args)
{
    unsigned int volume;
    if (!PyArg_ParseTuple(args, "I:drop_volume", &volume))
        return NULL;
    bd_table_drop_range(((bd_table_object *)self)->table, volume, 0, UINT64_MAX);
    Py_RETURN_NONE;
}

static PyObject *table_clear(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_place_table *table = ((bd_table_object *)self)->table;
    Py_BEGIN_ALLOW_THREADS;
    bd_table_clear(table);
    bd_view_idle();
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *table_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_place_table *table = ((bd_table_object *)self)->table;
    bd_lock(&table->lock);
    size_t entries = table->entry_count;
    size_t bytes = table->bytes;
    size_t limit = table->limit;
    uint64_t hits = table->hits;
    uint64_t misses = table->misses;
    pthread_mutex_unlock(&table->lock);
    return Py_BuildValue("(nnnKK)", (Py_ssize_t)entries, (Py_ssize_t)bytes, (Py_ssize_t)limit,
                         (unsigned long long)hits, (unsigned long long)misses);
}

static PyObject *table_take_read_packs(PyObject *self, PyObject *unused)
{
    (void)unused;
    PyObject *bits = PyBytes_FromStringAndSize(NULL, BD_READ_PACKS / 8);
    if (bits != NULL)
        bd_table_take_read_packs(((bd_table_object *)self)->table,
                                 (uint8_t *)PyBytes_AS_STRING(bits));
    return bits;
}

/* spliced_bytes() -> int */
static PyObject *spliced_bytes(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyLong_FromUnsignedLongLong(bd_view_spliced());
}

static PyMethodDef table_functions[] = {
    {"spliced_bytes", spliced_bytes, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef table_methods[] = {
    {"clear", table_clear, METH_NOARGS, NULL},
    {"drop_pack", table_drop_pack, METH_VARARGS, NULL},
    {"drop_volume", table_drop_volume, METH_VARARGS, NULL},
    {"stats", table_stats, METH_NOARGS, NULL},
    {"take_read_packs", table_take_read_packs, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject bd_table_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.PlaceTable",
    .tp_basicsize = sizeof(bd_table_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Cache of chunk places, shared by all volumes of a store.",
    .tp_new = table_new,
    .tp_dealloc = table_dealloc,
    .tp_methods = table_methods,
};

int bd_table_register(PyObject *module)
{
    if (PyType_Ready(&bd_pack_type) < 0 || PyType_Ready(&bd_table_type) < 0 ||
        PyModule_AddFunctions(module, table_functions) < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "CHUNK_HOLE", BD_CHUNK_HOLE) < 0 ||
        PyModule_AddIntConstant(module, "CHUNK_RAW", BD_CHUNK_RAW) < 0 ||
        PyModule_AddIntConstant(module, "CHUNK_DECODED", BD_CHUNK_DECODED) < 0 ||
        PyModule_AddIntConstant(module, "CHUNK_PACKED", BD_CHUNK_PACKED) < 0)
        return -1;
    if (PyModule_AddObjectRef(module, "PackFile", (PyObject *)&bd_pack_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "PlaceTable", (PyObject *)&bd_table_type);
}
