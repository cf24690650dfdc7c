/* Python face of rendezvous: devices are checked when an object is made, and do not change. */
#include "rendezvous_py.h"

#include <endian.h>
#include <stdint.h>
#include <string.h>

#include "rendezvous.h"

enum {
    ID_BYTES = 32,           /* of a pack */
    RELEASE_GIL_ABOVE = 4096 /* packs times devices; below, the handover costs more */
};

typedef struct {
    PyObject_HEAD size_t count;
    struct bd_device *devices;
} rendezvous_object;

static int take_number(PyObject *number, unsigned long long most, uint64_t *value)
{
    *value = PyLong_AsUnsignedLongLong(number); /* raises for what is no int, or is negative */
    if (*value == UINT64_MAX && PyErr_Occurred())
        return -1;
    if (*value <= most)
        return 0;
    PyErr_Format(PyExc_ValueError, "%R is above %llu", number, most);
    return -1;
}

/* One (key, weight, domain); -1 with an exception. */
static int take_device(PyObject *item, struct bd_device *device)
{
    uint64_t domain;
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 3) {
        PyErr_SetString(PyExc_TypeError, "a device is a tuple (key, weight, domain)");
        return -1;
    }
    if (take_number(PyTuple_GET_ITEM(item, 0), UINT64_MAX, &device->key) < 0 ||
        take_number(PyTuple_GET_ITEM(item, 1), UINT64_C(1) << BD_RENDEZVOUS_MAX_WEIGHT_BITS,
                    &device->weight) < 0 ||
        take_number(PyTuple_GET_ITEM(item, 2), UINT32_MAX, &domain) < 0)
        return -1;
    device->domain = (uint32_t)domain;
    if (device->weight > 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "a device of weight 0 can have nothing; leave it out");
    return -1;
}

static PyObject *rendezvous_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *sequence;
    if (!PyArg_ParseTuple(args, "O:Rendezvous", &sequence))
        return NULL;
    PyObject *items = PySequence_Fast(sequence, "devices are given as a sequence");
    if (items == NULL)
        return NULL;
    rendezvous_object *self = NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
    if (count > BD_RENDEZVOUS_MAX_DEVICES) {
        PyErr_Format(PyExc_ValueError, "%zd devices; %d are the most", count,
                     BD_RENDEZVOUS_MAX_DEVICES);
        goto failed;
    }
    self = (rendezvous_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        goto failed;
    self->devices = PyMem_Calloc((size_t)count + 1, sizeof *self->devices);
    if (self->devices == NULL) {
        PyErr_NoMemory();
        goto failed;
    }
    self->count = (size_t)count;
    for (Py_ssize_t i = 0; i < count; i++)
        if (take_device(PySequence_Fast_GET_ITEM(items, i), &self->devices[i]) < 0)
            goto failed;
    Py_DECREF(items);
    return (PyObject *)self;
failed:
    Py_DECREF(items);
    Py_XDECREF(self);
    return NULL;
}

static void rendezvous_dealloc(PyObject *self)
{
    PyMem_Free(((rendezvous_object *)self)->devices);
    Py_TYPE(self)->tp_free(self);
}

static uint64_t key_of(const uint8_t *id)
{
    uint64_t key;
    memcpy(&key, id, sizeof key);
    return le64toh(key);
}

/* The chosen of each pack as a tuple of indices. */
static PyObject *as_tuples(const uint32_t *chosen, const uint8_t *found, size_t packs,
                           unsigned count)
{
    PyObject *list = PyList_New((Py_ssize_t)packs);
    for (size_t i = 0; list != NULL && i < packs; i++) {
        PyObject *tuple = PyTuple_New(found[i]);
        if (tuple == NULL)
            Py_CLEAR(list);
        for (unsigned j = 0; tuple != NULL && j < found[i]; j++) {
            PyObject *index = PyLong_FromUnsignedLong(chosen[i * count + j]);
            if (index == NULL)
                Py_CLEAR(tuple);
            else
                PyTuple_SET_ITEM(tuple, j, index);
        }
        if (tuple == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, tuple);
    }
    return list;
}

/* choose(pack_ids, count) -> list of tuples */
static PyObject *rendezvous_choose(PyObject *self, PyObject *args)
{
    rendezvous_object *of = (rendezvous_object *)self;
    Py_buffer ids;
    int count;
    if (!PyArg_ParseTuple(args, "y*i:choose", &ids, &count))
        return NULL;
    PyObject *list = NULL;
    uint32_t *chosen = NULL;
    uint8_t *found = NULL;
    if (count < 1 || count > BD_RENDEZVOUS_MAX_CHOSEN || ids.len % ID_BYTES != 0) {
        PyErr_Format(PyExc_ValueError, "%d devices for %zd bytes of ids: 1 to %d, ids of %d bytes",
                     count, ids.len, BD_RENDEZVOUS_MAX_CHOSEN, ID_BYTES);
        goto done;
    }
    size_t packs = (size_t)ids.len / ID_BYTES, want = (unsigned)count;
    chosen = PyMem_Malloc(packs * want * sizeof *chosen + 1);
    found = PyMem_Malloc(packs + 1);
    if (chosen == NULL || found == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    PyThreadState *state = packs * of->count > RELEASE_GIL_ABOVE ? PyEval_SaveThread() : NULL;
    for (size_t i = 0; i < packs; i++)
        found[i] = (uint8_t)bd_rendezvous_choose(of->devices, of->count,
                                                 key_of((const uint8_t *)ids.buf + i * ID_BYTES),
                                                 (unsigned)want, chosen + i * want);
    if (state != NULL)
        PyEval_RestoreThread(state);
    list = as_tuples(chosen, found, packs, (unsigned)want);
done:
    PyMem_Free(chosen);
    PyMem_Free(found);
    PyBuffer_Release(&ids);
    return list;
}

/* rendezvous_cost(pack, device) -> int */
static PyObject *py_cost(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long pack, device;
    if (!PyArg_ParseTuple(args, "KK:rendezvous_cost", &pack, &device))
        return NULL;
    return PyLong_FromUnsignedLongLong(bd_rendezvous_cost(bd_rendezvous_hash(pack, device)));
}

static PyMethodDef rendezvous_methods[] = {
    {"choose", rendezvous_choose, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMethodDef functions[] = {
    {"rendezvous_cost", py_cost, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject rendezvous_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Rendezvous",
    .tp_basicsize = sizeof(rendezvous_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Which of some weighted devices have the shards of a pack.",
    .tp_new = rendezvous_new,
    .tp_dealloc = rendezvous_dealloc,
    .tp_methods = rendezvous_methods,
};

int bd_rendezvous_register(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "RENDEZVOUS_MAX_DEVICES", BD_RENDEZVOUS_MAX_DEVICES) < 0 ||
        PyModule_AddIntConstant(module, "RENDEZVOUS_MAX_CHOSEN", BD_RENDEZVOUS_MAX_CHOSEN) < 0 ||
        PyModule_AddIntConstant(module, "RENDEZVOUS_MAX_WEIGHT_BITS",
                                BD_RENDEZVOUS_MAX_WEIGHT_BITS) < 0 ||
        PyModule_AddFunctions(module, functions) < 0)
        return -1;
    return PyModule_AddType(module, &rendezvous_type);
}
