#include "request.h"

#include <limits.h>
#include <stddef.h>
#include <structmember.h>

/* "O&" converters: PyArg's own K and I take -1 and 2**64 for what they are modulo 2**64. */
static int to_u64(PyObject *object, void *out)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (value == ULLONG_MAX && PyErr_Occurred())
        return 0;
    *(uint64_t *)out = value;
    return 1;
}

static int to_u32(PyObject *object, void *out)
{
    unsigned long value = PyLong_AsUnsignedLong(object);
    if (value == ULONG_MAX && PyErr_Occurred())
        return 0;
    if (value > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "Python int too large for 32 bits");
        return 0;
    }
    *(uint32_t *)out = (uint32_t)value;
    return 1;
}

static int request_init(PyObject *self_object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"op", "offset", "length", "data", "flags", "cookie", NULL};
    bd_request *self = (bd_request *)self_object;
    uint32_t op = 0;
    uint32_t flags = 0;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t cookie = 0;
    PyObject *data = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O&O&OO&O&:Request", names, to_u32, &op,
                                     to_u64, &offset, to_u64, &length, &data, to_u32, &flags,
                                     to_u64, &cookie))
        return -1;
    self->op = op;
    self->flags = flags;
    self->offset = offset;
    self->length = length;
    self->cookie = cookie;
    self->seq = 0;
    self->begun_ns = 0;
    self->wait_seq = 0;
    self->waits = self->wait_durable = 0;
    self->error = 0;
    Py_INCREF(data);
    Py_XSETREF(self->data, data);
    Py_INCREF(Py_None);
    Py_XSETREF(self->message, Py_None);
    return 0;
}

static PyObject *request_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)args;
    (void)kwargs;
    bd_request *self = (bd_request *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    Py_INCREF(Py_None);
    self->data = Py_None;
    Py_INCREF(Py_None);
    self->message = Py_None;
    return (PyObject *)self;
}

static int request_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(((bd_request *)self)->data);
    Py_VISIT(((bd_request *)self)->message);
    return 0;
}

static int request_clear(PyObject *self_object)
{
    bd_request *self = (bd_request *)self_object;
    Py_INCREF(Py_None);
    Py_XSETREF(self->data, Py_None);
    Py_INCREF(Py_None);
    Py_XSETREF(self->message, Py_None);
    return 0;
}

static void request_dealloc(PyObject *self_object)
{
    bd_request *self = (bd_request *)self_object;
    PyObject_GC_UnTrack(self_object);
    Py_CLEAR(self->data);
    Py_CLEAR(self->message);
    Py_TYPE(self_object)->tp_free(self_object);
}

static PyObject *request_repr(PyObject *self_object)
{
    static const char *const names[] = {"READ",         "WRITE", "FLUSH",       "UNMAP",
                                        "WRITE_ZEROES", "CACHE", "BLOCK_STATUS"};
    bd_request *self = (bd_request *)self_object;
    const char *name = self->op < sizeof names / sizeof *names ? names[self->op] : "?";
    return PyUnicode_FromFormat(
        "<Request %s cookie=%llu offset=%llu length=%llu flags=%u error=%d>", name,
        (unsigned long long)self->cookie, (unsigned long long)self->offset,
        (unsigned long long)self->length, self->flags, self->error);
}

static PyMemberDef request_members[] = {
    {"op", T_UINT, offsetof(bd_request, op), 0, NULL},
    {"flags", T_UINT, offsetof(bd_request, flags), 0, NULL},
    {"cookie", T_ULONGLONG, offsetof(bd_request, cookie), 0, NULL},
    {"offset", T_ULONGLONG, offsetof(bd_request, offset), 0, NULL},
    {"length", T_ULONGLONG, offsetof(bd_request, length), 0, NULL},
    {"seq", T_ULONGLONG, offsetof(bd_request, seq), 0, NULL},
    {"data", T_OBJECT_EX, offsetof(bd_request, data), 0, NULL},
    {"waits", T_BOOL, offsetof(bd_request, waits), READONLY, NULL},
    {"wait_seq", T_ULONGLONG, offsetof(bd_request, wait_seq), READONLY, NULL},
    {"wait_durable", T_BOOL, offsetof(bd_request, wait_durable), READONLY, NULL},
    {"error", T_INT, offsetof(bd_request, error), 0, NULL},
    {"message", T_OBJECT_EX, offsetof(bd_request, message), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyTypeObject bd_request_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Request",
    .tp_basicsize = sizeof(bd_request),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_doc = "One block request.",
    .tp_new = request_new,
    .tp_init = request_init,
    .tp_dealloc = request_dealloc,
    .tp_traverse = request_traverse,
    .tp_clear = request_clear,
    .tp_repr = request_repr,
    .tp_members = request_members,
};

int bd_request_register(PyObject *module)
{
    if (PyType_Ready(&bd_request_type) < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "OP_READ", BD_OP_READ) < 0 ||
        PyModule_AddIntConstant(module, "OP_WRITE", BD_OP_WRITE) < 0 ||
        PyModule_AddIntConstant(module, "OP_FLUSH", BD_OP_FLUSH) < 0 ||
        PyModule_AddIntConstant(module, "OP_UNMAP", BD_OP_UNMAP) < 0 ||
        PyModule_AddIntConstant(module, "OP_WRITE_ZEROES", BD_OP_WRITE_ZEROES) < 0 ||
        PyModule_AddIntConstant(module, "OP_CACHE", BD_OP_CACHE) < 0 ||
        PyModule_AddIntConstant(module, "OP_BLOCK_STATUS", BD_OP_BLOCK_STATUS) < 0 ||
        PyModule_AddIntConstant(module, "FLAG_FUA", BD_FLAG_FUA) < 0 ||
        PyModule_AddIntConstant(module, "FLAG_NO_HOLE", BD_FLAG_NO_HOLE) < 0 ||
        PyModule_AddIntConstant(module, "FLAG_FAST_ZERO", BD_FLAG_FAST_ZERO) < 0 ||
        PyModule_AddIntConstant(module, "FLAG_IF_SEQ", BD_FLAG_IF_SEQ) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Request", (PyObject *)&bd_request_type);
}
