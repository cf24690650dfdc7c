/* Python face of a volume: its life, and what is below its hot maps. Batches of requests are in
 * submit_py.c, the hot maps in hot_map_py.c. */
#include "volume_py.h"

#include <errno.h>

#include "gate_py.h"
#include "locks.h"
#include "member_py.h"
#include "request.h"
#include "table_py.h"
#include "tap.h"
#include "warm_py.h"

enum {
    MAX_MISSING = 1024,
    MAX_CHUNK_SIZE = 16 << 20,
};

PyObject *bd_read_fault_error;

PyObject *bd_raise_fault(const struct bd_read_fault *fault)
{
    PyObject *args =
        Py_BuildValue("(KIKO)", (unsigned long long)fault->offset, fault->slot,
                      (unsigned long long)fault->place, fault->in_pack ? Py_True : Py_False);
    if (args != NULL) {
        PyErr_SetObject(bd_read_fault_error, args);
        Py_DECREF(args);
    }
    return NULL;
}

static PyObject *volume_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *journal;
    PyObject *table;
    unsigned int number;
    unsigned int epoch;
    unsigned int chunk_size;
    unsigned long long size;
    unsigned long long seq;
    unsigned long long generation;
    if (!PyArg_ParseTuple(args, "O!O!IIIKKK:VolumeCore", &bd_journal_type, &journal, &bd_table_type,
                          &table, &number, &epoch, &chunk_size, &size, &seq, &generation))
        return NULL;
    if (chunk_size < 4096 || (chunk_size & (chunk_size - 1)) != 0 || size > BD_MAX_VOLUME_BYTES ||
        chunk_size > MAX_CHUNK_SIZE) {
        PyErr_SetString(PyExc_ValueError,
                        "a chunk size is a power of two from 4096 to 16 MiB, and a volume is "
                        "at most 4 EiB");
        return NULL;
    }
    bd_volume_object *self = (bd_volume_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->volume =
        bd_volume_new(((bd_journal_object *)journal)->journal, ((bd_table_object *)table)->table,
                      number, epoch, chunk_size, size, seq, generation);
    if (self->volume == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->journal = Py_NewRef(journal);
    self->table = Py_NewRef(table);
    return (PyObject *)self;
}

static void volume_dealloc(PyObject *self_object)
{
    bd_volume_object *self = (bd_volume_object *)self_object;
    if (self->volume != NULL)
        bd_volume_free(self->volume);
    Py_XDECREF(self->journal);
    Py_XDECREF(self->table);
    Py_TYPE(self_object)->tp_free(self_object);
}

/* Slow path and destager */

static int check_range(const struct bd_volume *volume, unsigned long long offset,
                       unsigned long long length)
{
    uint64_t end = (volume->size + volume->chunk_size - 1) / volume->chunk_size *
                   volume->chunk_size; /* the destager fills the last chunk up */
    if (offset <= end && length <= end - offset)
        return 0;
    PyErr_Format(PyExc_ValueError, "range %llu+%llu is past the end of the volume", offset, length);
    return -1;
}

/* fill(request, start, length): a part of a READ that submit() left waiting, into its own bytes. */
static PyObject *volume_fill(PyObject *self, PyObject *args)
{
    bd_request *request;
    unsigned long long start;
    unsigned long long length;
    if (!PyArg_ParseTuple(args, "O!KK:fill", &bd_request_type, &request, &start, &length))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
    if (request->op != BD_OP_READ || request->data == NULL || !PyBytes_Check(request->data) ||
        (uint64_t)PyBytes_GET_SIZE(request->data) != request->length || start > request->length ||
        length > request->length - start) {
        PyErr_SetString(PyExc_ValueError, "fill() takes a READ as submit() left it, and a part");
        return NULL;
    }
    if (check_range(volume, request->offset, request->length) < 0)
        return NULL;
    PyObject *bytes = Py_NewRef(request->data); /* nobody else has seen it yet */
    int error;
    struct bd_read_fault fault = {0};
    Py_BEGIN_ALLOW_THREADS;
    error = bd_volume_read(volume, request->offset + start, length,
                           (uint8_t *)PyBytes_AS_STRING(bytes) + start, false, &fault);
    Py_END_ALLOW_THREADS;
    Py_DECREF(bytes);
    if (error == -EIO)
        return bd_raise_fault(&fault);
    if (error < 0 && error != -EAGAIN)
        return bd_raise_errno(error);
    return PyBool_FromLong(error == 0);
}

static PyObject *volume_missing(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    unsigned long long length;
    if (!PyArg_ParseTuple(args, "KK:missing", &offset, &length))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
    if (check_range(volume, offset, length) < 0)
        return NULL;
    uint64_t indexes[MAX_MISSING];
    int count = bd_volume_missing(volume, offset, length, indexes, MAX_MISSING);
    if (count < 0)
        return bd_raise_errno(count);
    PyObject *list = PyList_New(count);
    for (int i = 0; list != NULL && i < count; i++) {
        PyObject *index = PyLong_FromUnsignedLongLong(indexes[i]);
        if (index == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, index);
    }
    return list;
}

/* Whether a chunk's place that was found for `generation` may be put into the table: of the tree of
 * that generation, or of what the record of that seq refers to. The lock is held. */
static bool is_current(const struct bd_volume *volume, uint64_t index, uint64_t generation)
{
    if ((index & BD_REFERRED) == 0)
        return volume->generation == generation;
    index &= ~BD_REFERRED;
    const struct bd_refer *refer = bd_volume_refer(volume, volume->active, index);
    if (refer == NULL)
        refer = bd_volume_refer(volume, volume->frozen, index);
    return refer != NULL && refer->seq == generation;
}

/* put_place(index, generation, kind, pack|None, data_offset, length, payload, codec=0,
 * stored_length=0) -> bool */
static PyObject *volume_put_place(PyObject *self_object, PyObject *args)
{
    bd_volume_object *self = (bd_volume_object *)self_object;
    unsigned long long index;
    unsigned long long generation;
    unsigned char kind;
    PyObject *pack;
    unsigned long long data_offset;
    unsigned int length;
    Py_buffer payload;
    unsigned char codec = 0;
    unsigned int stored_length = 0;
    if (!PyArg_ParseTuple(args, "KKbOKIy*|bI:put_place", &index, &generation, &kind, &pack,
                          &data_offset, &length, &payload, &codec, &stored_length))
        return NULL;
    struct bd_volume *volume = self->volume;
    int error = -EINVAL;
    bool current = false;
    bool packed = kind == BD_CHUNK_PACKED;
    bool stored = packed || kind == BD_CHUNK_RAW;
    if ((stored == (pack != Py_None)) && (!stored || PyObject_TypeCheck(pack, &bd_pack_type)) &&
        kind <= BD_CHUNK_PACKED) {
        struct bd_pack *file = stored ? ((bd_pack_object *)pack)->pack : NULL;
        bd_lock(&volume->lock);
        current = is_current(volume, index, generation);
        error = 0;
        if (current && packed)
            error =
                bd_table_put_packed(volume->table, volume->number, index, file, data_offset, length,
                                    codec, stored_length, payload.buf, (size_t)payload.len);
        else if (current)
            error = bd_table_put(volume->table, volume->number, index, kind, file, data_offset,
                                 length, payload.buf, (size_t)payload.len);
        pthread_mutex_unlock(&volume->lock);
    }
    PyBuffer_Release(&payload);
    if (error < 0)
        return bd_raise_errno(error);
    return PyBool_FromLong(current);
}

static PyObject *volume_commit(PyObject *self, PyObject *args)
{
    unsigned long long generation;
    if (!PyArg_ParseTuple(args, "K:commit", &generation))
        return NULL;
    bd_volume_commit(bd_volume_of(self), generation);
    Py_RETURN_NONE;
}

static PyObject *volume_retire(PyObject *self, PyObject *unused)
{
    (void)unused;
    bd_volume_retire(bd_volume_of(self), true);
    Py_RETURN_NONE;
}

static PyObject *volume_revive(PyObject *self, PyObject *unused)
{
    (void)unused;
    bd_volume_retire(bd_volume_of(self), false);
    Py_RETURN_NONE;
}

static PyObject *volume_resize(PyObject *self, PyObject *args)
{
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "K:resize", &size))
        return NULL;
    if (size > BD_MAX_VOLUME_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a volume's size is at most 4 EiB");
        return NULL;
    }
    struct bd_volume *volume = bd_volume_of(self);
    bd_lock(&volume->lock);
    volume->size = size;
    pthread_mutex_unlock(&volume->lock);
    Py_RETURN_NONE;
}

/* (seq, generation, size, hot bytes, extents, memory bytes, frozen) */
static PyObject *volume_state(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_volume *volume = bd_volume_of(self);
    bd_lock(&volume->lock);
    unsigned long long seq = volume->seq;
    unsigned long long generation = volume->generation;
    unsigned long long size = volume->size;
    unsigned long long hot = volume->active->data_bytes;
    Py_ssize_t extents = (Py_ssize_t)volume->active->extent_count;
    Py_ssize_t memory = (Py_ssize_t)bd_map_memory(volume->active);
    bool frozen = volume->frozen != NULL;
    if (frozen) {
        hot += volume->frozen->data_bytes;
        extents += (Py_ssize_t)volume->frozen->extent_count;
        memory += (Py_ssize_t)bd_map_memory(volume->frozen);
    }
    pthread_mutex_unlock(&volume->lock);
    return Py_BuildValue("(KKKKnnO)", seq, generation, size, hot, extents, memory,
                         frozen ? Py_True : Py_False);
}

static PyMethodDef volume_methods[] = {
    {"submit", bd_py_submit, METH_VARARGS, NULL},
    {"fill", volume_fill, METH_VARARGS, NULL},
    {"missing", volume_missing, METH_VARARGS, NULL},
    {"put_place", volume_put_place, METH_VARARGS, NULL},
    {"warm", bd_volume_warm_py, METH_VARARGS, NULL},
    {"hot_extents", bd_py_hot_extents, METH_VARARGS, NULL},
    {"frozen_runs", bd_py_frozen_runs, METH_NOARGS, NULL},
    {"frozen_covers", bd_py_frozen_covers, METH_VARARGS, NULL},
    {"referred", bd_py_referred, METH_VARARGS, NULL},
    {"frozen_referred", bd_py_frozen_referred, METH_VARARGS, NULL},
    {"refer", bd_py_refer, METH_VARARGS, NULL},
    {"overlay_frozen", bd_py_overlay_frozen, METH_VARARGS, NULL},
    {"commit", volume_commit, METH_VARARGS, NULL},
    {"retire", volume_retire, METH_NOARGS, NULL},
    {"revive", volume_revive, METH_NOARGS, NULL},
    {"resize", volume_resize, METH_VARARGS, NULL},
    {"state", volume_state, METH_NOARGS, NULL},
    {"tap", bd_py_tap, METH_VARARGS, NULL},
    {"untap", bd_py_untap, METH_NOARGS, NULL},
    {"tap_again", bd_py_tap_again, METH_NOARGS, NULL},
    {"take", bd_py_take, METH_VARARGS, NULL},
    {"append_records", bd_py_append_records, METH_VARARGS, NULL},
    {"append_plain", bd_py_append_plain, METH_VARARGS, NULL},
    {"take_plain", bd_py_take_plain, METH_VARARGS, NULL},
    {"tell_durable", bd_py_tell_durable, METH_VARARGS, NULL},
    {"answered_ns", bd_py_answered_ns, METH_NOARGS, NULL},
    {"begin_epoch", bd_py_begin_epoch, METH_VARARGS, NULL},
    {"gate", bd_py_gate, METH_NOARGS, NULL},
    {"gate_open", bd_py_gate_open, METH_VARARGS, NULL},
    {"gate_shut", bd_py_gate_shut, METH_NOARGS, NULL},
    {"gate_advance", bd_py_gate_advance, METH_VARARGS, NULL},
    {"gate_lease", bd_py_gate_lease, METH_VARARGS, NULL},
    {"gate_expire", bd_py_gate_expire, METH_NOARGS, NULL},
    {"gate_want", bd_py_gate_want, METH_VARARGS, NULL},
    {"gate_seen", bd_py_gate_seen, METH_VARARGS, NULL},
    {"gate_state", bd_py_gate_state, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject bd_volume_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.VolumeCore",
    .tp_basicsize = sizeof(bd_volume_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Hot path of one volume's head.",
    .tp_new = volume_new,
    .tp_dealloc = volume_dealloc,
    .tp_methods = volume_methods,
};

int bd_volume_register(PyObject *module)
{
    bd_read_fault_error = PyErr_NewException("native._native.ReadFault", NULL, NULL);
    if (bd_read_fault_error == NULL || PyType_Ready(&bd_volume_type) < 0 ||
        PyModule_AddObjectRef(module, "ReadFault", bd_read_fault_error) < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "PLACE_DATA", BD_PLACE_DATA) < 0 ||
        PyModule_AddIntConstant(module, "PLACE_ZERO", BD_PLACE_ZERO) < 0 ||
        PyModule_AddIntConstant(module, "PLACE_REFER", BD_PLACE_REFER) < 0 ||
        PyModule_AddIntConstant(module, "REFERRED", (long)BD_REFERRED) < 0 ||
        PyModule_AddIntConstant(module, "TAP_MIN_BUFFER", BD_TAP_MIN_BUFFER) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "VolumeCore", (PyObject *)&bd_volume_type);
}
