/* Python face of the journal: its segments, its records, its state. Segment files come in as
 * descriptors or as simulated files. What looks at all volumes at one moment is in cut_py.c, what
 * reads the log back in replay_py.c. */
#include "journal_py.h"

#include <errno.h>

#include "crc32c.h"
#include "extent_map.h"
#include "file_py.h"
#include "locks.h"

/* Ready segments that `queue` tells of: more than the pool keeps ready. */
enum { BD_QUEUE_SHOWN = 256 };

PyObject *bd_raise_errno(int error)
{
    errno = -error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static PyObject *journal_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    Py_buffer uuid;
    unsigned long long segment_bytes;
    unsigned int node_epoch;
    if (!PyArg_ParseTuple(args, "y*KI:Journal", &uuid, &segment_bytes, &node_epoch))
        return NULL;
    PyObject *result = NULL;
    if (uuid.len != 16 || segment_bytes % BD_PAGE != 0 ||
        segment_bytes < BD_SEGMENT_HEADER + 3 * BD_PAGE ||
        segment_bytes > (1u << BD_PLACE_OFFSET_BITS)) {
        PyErr_SetString(PyExc_ValueError,
                        "a journal takes a 16-byte uuid and segments of 16 KiB to 64 MiB, a "
                        "multiple of 4 KiB");
    } else {
        bd_journal_object *self = (bd_journal_object *)type->tp_alloc(type, 0);
        if (self != NULL) {
            self->journal = bd_journal_new(uuid.buf, segment_bytes, node_epoch);
            if (self->journal == NULL) {
                Py_DECREF(self);
                PyErr_NoMemory();
            } else {
                result = (PyObject *)self;
            }
        }
    }
    PyBuffer_Release(&uuid);
    return result;
}

static void journal_dealloc(PyObject *self)
{
    if (bd_journal_of(self) != NULL)
        bd_journal_free(bd_journal_of(self));
    Py_TYPE(self)->tp_free(self);
}

static PyObject *journal_add_ready(PyObject *self, PyObject *args)
{
    unsigned int slot;
    PyObject *object;
    struct bd_file file;
    if (!PyArg_ParseTuple(args, "IO:add_ready", &slot, &object) ||
        bd_file_from_object(&file, object) < 0)
        return NULL;
    int error = bd_journal_add_ready(bd_journal_of(self), slot, file);
    if (error < 0) {
        file.ops->close(&file);
        return bd_raise_errno(error);
    }
    Py_RETURN_NONE;
}

static PyObject *journal_adopt(PyObject *self, PyObject *args)
{
    unsigned int slot;
    PyObject *object;
    unsigned long long sequence;
    struct bd_file file;
    if (!PyArg_ParseTuple(args, "IOK:adopt", &slot, &object, &sequence) ||
        bd_file_from_object(&file, object) < 0)
        return NULL;
    int error = bd_journal_adopt(bd_journal_of(self), slot, file, sequence);
    if (error < 0) {
        file.ops->close(&file);
        return bd_raise_errno(error);
    }
    Py_RETURN_NONE;
}

static PyObject *journal_recycle(PyObject *self, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I:recycle", &slot))
        return NULL;
    int error = bd_journal_recycle(bd_journal_of(self), slot);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *journal_withdraw(PyObject *self, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I:withdraw", &slot))
        return NULL;
    int error = bd_journal_withdraw(bd_journal_of(self), slot);
    if (error < 0 && error != -ENOENT && error != -EAGAIN)
        return bd_raise_errno(error);
    return PyBool_FromLong(error == 0);
}

static PyObject *journal_move_on(PyObject *self, PyObject *unused)
{
    (void)unused;
    bd_journal_move_on(bd_journal_of(self));
    Py_RETURN_NONE;
}

/* (current or None, [ready]): slots */
static PyObject *journal_queue(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_journal *journal = bd_journal_of(self);
    uint32_t slots[BD_QUEUE_SHOWN];
    bd_lock(&journal->lock);
    bool has_current = journal->current != NULL;
    unsigned int current = has_current ? journal->current->slot : 0;
    uint32_t count = journal->ready_count < BD_QUEUE_SHOWN ? journal->ready_count : BD_QUEUE_SHOWN;
    for (uint32_t i = 0; i < count; i++)
        slots[i] = journal->ready[(journal->ready_head + i) % BD_MAX_SLOTS];
    pthread_mutex_unlock(&journal->lock);
    PyObject *ready = PyList_New(count);
    for (uint32_t i = 0; ready != NULL && i < count; i++) {
        PyObject *slot = PyLong_FromUnsignedLong(slots[i]);
        if (slot == NULL)
            Py_CLEAR(ready);
        else
            PyList_SET_ITEM(ready, i, slot);
    }
    if (ready == NULL)
        return NULL;
    return has_current ? Py_BuildValue("(IN)", current, ready)
                       : Py_BuildValue("(ON)", Py_None, ready);
}

static PyObject *journal_remove(PyObject *self, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I:remove", &slot))
        return NULL;
    int error = bd_journal_remove(bd_journal_of(self), slot);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *journal_sync(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_journal *journal = bd_journal_of(self);
    uint64_t synced = 0;
    int error;
    Py_BEGIN_ALLOW_THREADS;
    error = bd_journal_sync(journal, &synced);
    Py_END_ALLOW_THREADS;
    if (error < 0)
        return bd_raise_errno(error);
    return PyLong_FromUnsignedLongLong(synced);
}

static PyObject *journal_seal(PyObject *self, PyObject *args)
{
    int error;
    if (!PyArg_ParseTuple(args, "i:seal", &error))
        return NULL;
    bd_journal_seal(bd_journal_of(self), error > 0 ? error : EIO);
    Py_RETURN_NONE;
}

static PyObject *journal_release(PyObject *self, PyObject *args)
{
    unsigned long long lsn;
    if (!PyArg_ParseTuple(args, "K:release", &lsn))
        return NULL;
    struct bd_journal *journal = bd_journal_of(self);
    uint32_t slots[256]; /* what is not freed now is freed by the next call */
    uint32_t count = bd_journal_release(journal, lsn, slots, 256);
    PyObject *list = PyList_New(count);
    for (uint32_t i = 0; list != NULL && i < count; i++) {
        PyObject *slot = PyLong_FromUnsignedLong(slots[i]);
        if (slot == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, slot);
    }
    return list;
}

static PyObject *journal_append_head(PyObject *self, PyObject *args)
{
    unsigned int number;
    unsigned int epoch;
    unsigned long long seq;
    Py_buffer payload;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "IIKy*K:append_head", &number, &epoch, &seq, &payload, &now_ns))
        return NULL;
    struct bd_journal *journal = bd_journal_of(self);
    int error = -EINVAL;
    int status = 0;
    if (payload.len > 0 && payload.len <= BD_RECORD_MAX_PAYLOAD) {
        struct bd_record record = {.op = BD_RECORD_HEAD,
                                   .volume = number,
                                   .volume_epoch = epoch,
                                   .seq = seq,
                                   .length = (uint64_t)payload.len};
        bd_lock(&journal->lock);
        error = bd_journal_add(journal, NULL, record, payload.buf, now_ns, &status);
        if (error == 0)
            error = bd_journal_commit(journal);
        pthread_mutex_unlock(&journal->lock);
    }
    PyBuffer_Release(&payload);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *journal_append_mark(PyObject *self, PyObject *args)
{
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "K:append_mark", &now_ns))
        return NULL;
    struct bd_journal *journal = bd_journal_of(self);
    bd_lock(&journal->lock);
    struct bd_record record = {.op = BD_RECORD_MARK, .offset = now_ns, .seq = journal->synced_lsn};
    journal->marked_lsn = journal->synced_lsn; /* this record is the mark: no second one */
    journal->marked_ns = now_ns;
    int error = bd_journal_add(journal, NULL, record, NULL, now_ns, NULL);
    if (error == 0)
        error = bd_journal_commit(journal);
    pthread_mutex_unlock(&journal->lock);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *journal_resume(PyObject *self, PyObject *args)
{
    unsigned int slot;
    unsigned long long position;
    unsigned long long lsn;
    unsigned int chain;
    if (!PyArg_ParseTuple(args, "IKKI:resume", &slot, &position, &lsn, &chain))
        return NULL;
    int error = bd_journal_resume(bd_journal_of(self), slot, position, lsn, chain);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *journal_begin(PyObject *self, PyObject *args)
{
    unsigned long long lsn;
    unsigned long long sequence;
    unsigned int chain;
    if (!PyArg_ParseTuple(args, "KKI:begin", &lsn, &sequence, &chain))
        return NULL;
    struct bd_journal *journal = bd_journal_of(self);
    bd_lock(&journal->lock);
    journal->next_lsn = lsn;
    if (sequence > journal->next_sequence)
        journal->next_sequence = sequence;
    journal->chain = chain;
    pthread_mutex_unlock(&journal->lock);
    Py_RETURN_NONE;
}

static PyObject *journal_set_delay(PyObject *self, PyObject *argument)
{
    unsigned long long delay_ns = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred() != NULL)
        return NULL;
    atomic_store(&bd_journal_of(self)->delay_ns, delay_ns);
    Py_RETURN_NONE;
}

static PyObject *journal_limits(PyObject *self, PyObject *args)
{
    long long space_left;
    unsigned int reserve;
    if (!PyArg_ParseTuple(args, "LI:set_limits", &space_left, &reserve))
        return NULL;
    struct bd_journal *journal = bd_journal_of(self);
    bd_lock(&journal->lock);
    journal->space_left = space_left < 0 ? 0 : space_left;
    journal->reserve = reserve;
    pthread_mutex_unlock(&journal->lock);
    Py_RETURN_NONE;
}

/* (lsn, synced_lsn, sealed, ready, full, position, space_left) */
static PyObject *journal_state(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_journal *journal = bd_journal_of(self);
    bd_lock(&journal->lock);
    unsigned long long lsn = journal->next_lsn - 1;
    unsigned long long synced = journal->synced_lsn;
    int sealed = journal->sealed;
    unsigned int ready = journal->ready_count;
    unsigned int full = journal->full_count;
    unsigned long long position = journal->current != NULL ? journal->position : 0;
    long long space_left = journal->space_left;
    pthread_mutex_unlock(&journal->lock);
    return Py_BuildValue("(KKiIIKL)", lsn, synced, sealed, ready, full, position, space_left);
}

static PyObject *journal_write_behind(PyObject *self, PyObject *unused)
{
    (void)unused;
    bool did;
    Py_BEGIN_ALLOW_THREADS;
    did = bd_journal_write_behind(bd_journal_of(self));
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(did);
}

static PyObject *journal_whole_pages(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyBool_FromLong(atomic_load(&bd_journal_of(self)->whole_pages));
}

static PyObject *journal_oldest(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(bd_journal_oldest(bd_journal_of(self)));
}

static PyMethodDef journal_methods[] = {
    {"write_behind", journal_write_behind, METH_NOARGS, NULL},
    {"add_ready", journal_add_ready, METH_VARARGS, NULL},
    {"adopt", journal_adopt, METH_VARARGS, NULL},
    {"recycle", journal_recycle, METH_VARARGS, NULL},
    {"withdraw", journal_withdraw, METH_VARARGS, NULL},
    {"move_on", journal_move_on, METH_NOARGS, NULL},
    {"queue", journal_queue, METH_NOARGS, NULL},
    {"remove", journal_remove, METH_VARARGS, NULL},
    {"sync", journal_sync, METH_NOARGS, NULL},
    {"seal", journal_seal, METH_VARARGS, NULL},
    {"release", journal_release, METH_VARARGS, NULL},
    {"cut", bd_py_cut, METH_NOARGS, NULL},
    {"freeze", bd_py_freeze, METH_O, NULL},
    {"point", bd_py_point, METH_O, NULL},
    {"append_point", bd_py_append_point, METH_VARARGS, NULL},
    {"append_notes", bd_py_append_notes, METH_VARARGS, NULL},
    {"append_head", journal_append_head, METH_VARARGS, NULL},
    {"append_mark", journal_append_mark, METH_VARARGS, NULL},
    {"replay", (PyCFunction)(void (*)(void))bd_py_replay, METH_VARARGS | METH_KEYWORDS, NULL},
    {"whole_pages", journal_whole_pages, METH_NOARGS, NULL},
    {"oldest", journal_oldest, METH_NOARGS, NULL},
    {"copy_records", bd_py_copy_records, METH_VARARGS, NULL},
    {"proves", bd_py_proves, METH_VARARGS, NULL},
    {"resume", journal_resume, METH_VARARGS, NULL},
    {"begin", journal_begin, METH_VARARGS, NULL},
    {"set_limits", journal_limits, METH_VARARGS, NULL},
    {"set_delay", journal_set_delay, METH_O, NULL},
    {"state", journal_state, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject bd_journal_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Journal",
    .tp_basicsize = sizeof(bd_journal_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The journal of a data directory.",
    .tp_new = journal_new,
    .tp_dealloc = journal_dealloc,
    .tp_methods = journal_methods,
};

static PyMethodDef journal_functions[] = {
    {"decode_segment_header", bd_py_decode_segment_header, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int bd_journal_register(PyObject *module)
{
    if (PyType_Ready(&bd_journal_type) < 0 || PyModule_AddFunctions(module, journal_functions) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Journal", (PyObject *)&bd_journal_type);
}
