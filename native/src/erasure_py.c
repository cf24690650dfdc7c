/* Python face of the erasure code: buffers are checked here, for the kernel trusts what it gets. */
#include "erasure_py.h"

#include <errno.h>
#include <stdbool.h>

#include "erasure.h"

enum { RELEASE_GIL_ABOVE = 32 * 1024 }; /* in all inputs; below, the handover costs more */

typedef struct {
    PyObject_HEAD struct bd_erasure *code;
} erasure_object;

/* Buffers of one call, all of `length` bytes; those not `held` were None. What is behind `count` is
 * not set: zeroing all of it took a tenth of a call on small shards. */
struct buffers {
    Py_ssize_t length; /* -1: not known yet */
    unsigned count;
    bool held[2 * BD_ERASURE_MAX_SHARDS];
    bool written[2 * BD_ERASURE_MAX_SHARDS];
    Py_buffer views[2 * BD_ERASURE_MAX_SHARDS];
};

static void begin(struct buffers *buffers)
{
    buffers->length = -1;
    buffers->count = 0;
}

static void release(struct buffers *buffers)
{
    for (unsigned i = 0; i < buffers->count; i++)
        if (buffers->held[i])
            PyBuffer_Release(&buffers->views[i]);
}

/* Take `count` items of a sequence, and their addresses; -1 with an exception. */
static int take(struct buffers *buffers, PyObject *sequence, unsigned count, bool optional,
                bool written, const char *name, uint8_t **addresses)
{
    PyObject *items = PySequence_Fast(sequence, "buffers are given as a sequence");
    if (items == NULL)
        return -1;
    int result = -1;
    if (PySequence_Fast_GET_SIZE(items) != (Py_ssize_t)count) {
        PyErr_Format(PyExc_ValueError, "%s: %zd items instead of %u", name,
                     PySequence_Fast_GET_SIZE(items), count);
        goto done;
    }
    for (unsigned i = 0; i < count; i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(items, i);
        unsigned place = buffers->count;
        buffers->written[place] = written;
        buffers->held[place] = !(optional && item == Py_None);
        addresses[i] = NULL;
        Py_buffer *view = &buffers->views[place];
        if (buffers->held[place]) {
            if (PyObject_GetBuffer(item, view, written ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0)
                goto done;
            addresses[i] = view->buf;
        }
        buffers->count++; /* from here on, to be released */
        if (!buffers->held[place])
            continue;
        if (buffers->length < 0)
            buffers->length = view->len;
        if (view->len != buffers->length || view->len == 0) {
            PyErr_Format(PyExc_ValueError, "%s: item %u has %zd bytes, others %zd; none is empty",
                         name, i, view->len, buffers->length);
            goto done;
        }
    }
    result = 0;
done:
    Py_DECREF(items);
    return result;
}

/* An output that shares memory with another buffer would be read after it was written. */
static int refuse_overlap(const struct buffers *buffers)
{
    for (unsigned i = 0; i < buffers->count; i++) {
        for (unsigned j = 0; buffers->held[i] && buffers->written[i] && j < buffers->count; j++) {
            uintptr_t a = (uintptr_t)buffers->views[i].buf;
            uintptr_t b = (uintptr_t)buffers->views[j].buf;
            uintptr_t distance = a > b ? a - b : b - a;
            if (j != i && buffers->held[j] && distance < (uintptr_t)buffers->length) {
                PyErr_SetString(PyExc_ValueError, "an output overlaps another buffer");
                return -1;
            }
        }
    }
    return 0;
}

static PyObject *erasure_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    int data, parity;
    if (!PyArg_ParseTuple(args, "ii:ErasureCode", &data, &parity))
        return NULL;
    if (data < 1 || parity < 1 || data > BD_ERASURE_MAX_SHARDS ||
        parity > BD_ERASURE_MAX_SHARDS - data)
        return PyErr_Format(PyExc_ValueError,
                            "%d+%d: at least one of each, and at most %d shards in all", data,
                            parity, BD_ERASURE_MAX_SHARDS);
    erasure_object *self = (erasure_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->code = bd_erasure_new((unsigned)data, (unsigned)parity);
    if (self->code == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void erasure_dealloc(PyObject *self)
{
    struct bd_erasure *code = ((erasure_object *)self)->code;
    if (code != NULL)
        bd_erasure_free(code);
    Py_TYPE(self)->tp_free(self);
}

static int two_arguments(const char *name, Py_ssize_t count)
{
    if (count == 2)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes 2 arguments, not %zd", name, count);
    return -1;
}

/* encode(data, parity) */
static PyObject *erasure_encode(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct bd_erasure *code = ((erasure_object *)self)->code;
    unsigned data = bd_erasure_data(code), parity = bd_erasure_parity(code);
    if (two_arguments("encode", count) < 0)
        return NULL;
    struct buffers buffers;
    begin(&buffers);
    uint8_t *in[BD_ERASURE_MAX_SHARDS], *out[BD_ERASURE_MAX_SHARDS];
    bool good = take(&buffers, args[0], data, false, false, "data", in) == 0 &&
                take(&buffers, args[1], parity, false, true, "parity", out) == 0 &&
                refuse_overlap(&buffers) == 0;
    if (good) {
        size_t length = (size_t)buffers.length;
        PyThreadState *state = length > RELEASE_GIL_ABOVE / data ? PyEval_SaveThread() : NULL;
        bd_erasure_encode(code, length, (const uint8_t *const *)in, out);
        if (state != NULL)
            PyEval_RestoreThread(state);
    }
    release(&buffers);
    if (!good)
        return NULL;
    Py_RETURN_NONE;
}

/* reconstruct(shards, into) */
static PyObject *erasure_reconstruct(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    struct bd_erasure *code = ((erasure_object *)self)->code;
    unsigned data = bd_erasure_data(code), count = data + bd_erasure_parity(code);
    if (two_arguments("reconstruct", given) < 0)
        return NULL;
    struct buffers buffers;
    begin(&buffers);
    uint8_t *in[BD_ERASURE_MAX_SHARDS], *out[BD_ERASURE_MAX_SHARDS];
    int error = 0;
    bool good = take(&buffers, args[0], count, true, false, "shards", in) == 0 &&
                take(&buffers, args[1], count, true, true, "into", out) == 0 &&
                refuse_overlap(&buffers) == 0;
    if (good) {
        size_t length = buffers.length < 0 ? 0 : (size_t)buffers.length;
        PyThreadState *state = length > RELEASE_GIL_ABOVE / data ? PyEval_SaveThread() : NULL;
        error = bd_erasure_reconstruct(code, length, (const uint8_t *const *)in, out);
        if (state != NULL)
            PyEval_RestoreThread(state);
    }
    release(&buffers);
    if (!good)
        return NULL;
    if (error == -ENODATA)
        return PyErr_Format(PyExc_ValueError, "fewer than %u shards are there", data);
    if (error != 0)
        return PyErr_Format(PyExc_ValueError, "a shard that is there is wanted as well");
    Py_RETURN_NONE;
}

static PyObject *erasure_stats(PyObject *self, PyObject *unused)
{
    (void)unused;
    size_t patterns;
    uint64_t made;
    bd_erasure_stats(((erasure_object *)self)->code, &patterns, &made);
    return Py_BuildValue("(nK)", (Py_ssize_t)patterns, (unsigned long long)made);
}

static PyMethodDef erasure_methods[] = {
    {"encode", (PyCFunction)(void (*)(void))erasure_encode, METH_FASTCALL, NULL},
    {"reconstruct", (PyCFunction)(void (*)(void))erasure_reconstruct, METH_FASTCALL, NULL},
    {"stats", erasure_stats, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject erasure_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.ErasureCode",
    .tp_basicsize = sizeof(erasure_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Reed-Solomon code of some data and some parity shards.",
    .tp_new = erasure_new,
    .tp_dealloc = erasure_dealloc,
    .tp_methods = erasure_methods,
};

int bd_erasure_register(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "ERASURE_MAX_SHARDS", BD_ERASURE_MAX_SHARDS) < 0 ||
        PyModule_AddIntConstant(module, "ERASURE_PATTERNS", BD_ERASURE_PATTERNS) < 0)
        return -1;
    return PyModule_AddType(module, &erasure_type);
}
