/* Python face of the journal. Segment files come in as descriptors or as simulated files. */
#include "bytes.h"
#include "journal_py.h"

#include <errno.h>

#include "crc32c.h"
#include "extent_map.h"
#include "file_py.h"
#include "locks.h"
#include "volume_py.h"

PyObject *bd_raise_errno(int error)
{
    errno = -error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

static struct bd_journal *journal_of(PyObject *self)
{
    return ((bd_journal_object *)self)->journal;
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
    if (journal_of(self) != NULL)
        bd_journal_free(journal_of(self));
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
    int error = bd_journal_add_ready(journal_of(self), slot, file);
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
    int error = bd_journal_adopt(journal_of(self), slot, file, sequence);
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
    int error = bd_journal_recycle(journal_of(self), slot);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *journal_remove(PyObject *self, PyObject *args)
{
    unsigned int slot;
    if (!PyArg_ParseTuple(args, "I:remove", &slot))
        return NULL;
    int error = bd_journal_remove(journal_of(self), slot);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

static PyObject *journal_sync(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_journal *journal = journal_of(self);
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
    bd_journal_seal(journal_of(self), error > 0 ? error : EIO);
    Py_RETURN_NONE;
}

static PyObject *journal_release(PyObject *self, PyObject *args)
{
    unsigned long long lsn;
    if (!PyArg_ParseTuple(args, "K:release", &lsn))
        return NULL;
    struct bd_journal *journal = journal_of(self);
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

static PyObject *cut_tuple(struct bd_cut cut)
{
    return Py_BuildValue("(KKKI)", (unsigned long long)cut.lsn, (unsigned long long)cut.sequence,
                         (unsigned long long)cut.position, (unsigned int)cut.chain);
}

static PyObject *journal_cut(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_journal *journal = journal_of(self);
    bd_lock(&journal->lock);
    struct bd_cut cut = bd_journal_cut(journal);
    pthread_mutex_unlock(&journal->lock);
    return cut_tuple(cut);
}

/* All or none. The journal's lock is held. */
static int freeze_all(struct bd_volume **cores, Py_ssize_t count, unsigned long long *seqs)
{
    int error = 0;
    Py_ssize_t frozen = 0;
    while (frozen < count && error == 0) {
        struct bd_volume *volume = cores[frozen];
        bd_lock(&volume->lock);
        error = bd_volume_freeze(volume);
        seqs[frozen] = volume->seq;
        pthread_mutex_unlock(&volume->lock);
        if (error == 0)
            frozen++;
    }
    while (error < 0 && frozen > 0) {
        struct bd_volume *volume = cores[--frozen];
        bd_lock(&volume->lock);
        bd_volume_thaw(volume);
        pthread_mutex_unlock(&volume->lock);
    }
    return error;
}

static PyObject *seq_list(const unsigned long long *seqs, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *seq = PyLong_FromUnsignedLongLong(seqs[i]);
        if (seq == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, seq);
    }
    return list;
}

enum {
    max_point_volumes = 1024,
    max_point_tail = 64 * 1024,
};

static int look_at_all(struct bd_volume **cores, Py_ssize_t count, unsigned long long *seqs)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        bd_lock(&cores[i]->lock);
        seqs[i] = cores[i]->seq;
        pthread_mutex_unlock(&cores[i]->lock);
    }
    return 0;
}

/* Volumes of this journal, from a sequence of VolumeCore objects that *keep holds on to: their
 * count, or -1 with an exception. The arrays are PyMem's. */
static Py_ssize_t take_volumes(PyObject *self, PyObject *sequence, PyObject **keep,
                               struct bd_volume ***cores, unsigned long long **seqs)
{
    *cores = NULL;
    *seqs = NULL;
    *keep = PySequence_Tuple(sequence); /* our own: nobody takes volumes out of it */
    if (*keep == NULL)
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(*keep);
    *cores = PyMem_New(struct bd_volume *, count + 1);
    *seqs = PyMem_New(unsigned long long, count + 1);
    if (*cores == NULL || *seqs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(*keep, i);
        if (!PyObject_TypeCheck(item, &bd_volume_type)) {
            PyErr_SetString(PyExc_TypeError, "a list of VolumeCore objects is wanted");
            return -1;
        }
        (*cores)[i] = ((bd_volume_object *)item)->volume;
        if ((*cores)[i]->journal != journal_of(self)) {
            PyErr_SetString(PyExc_ValueError, "volumes of this journal are wanted");
            return -1;
        }
    }
    return count;
}

/* (cut, seqs) of the given volumes, all at one position of the log, where `visit` looks at them. */
static PyObject *at_one_point(PyObject *self, PyObject *sequence,
                              int (*visit)(struct bd_volume **, Py_ssize_t, unsigned long long *))
{
    PyObject *keep;
    struct bd_volume **cores;
    unsigned long long *seqs;
    PyObject *result = NULL;
    Py_ssize_t count = take_volumes(self, sequence, &keep, &cores, &seqs);
    if (count >= 0) {
        struct bd_journal *journal = journal_of(self);
        bd_lock(&journal->lock);
        struct bd_cut cut = bd_journal_cut(journal);
        int error = visit(cores, count, seqs);
        pthread_mutex_unlock(&journal->lock);
        PyObject *list = error < 0 ? bd_raise_errno(error) : seq_list(seqs, count);
        if (list != NULL)
            result = Py_BuildValue("(NN)", cut_tuple(cut), list);
    }
    PyMem_Free(cores);
    PyMem_Free(seqs);
    Py_XDECREF(keep);
    return result;
}

/* Freeze the hot maps of all given volumes at one position of the log. */
static PyObject *journal_freeze(PyObject *self, PyObject *volumes)
{
    return at_one_point(self, volumes, freeze_all);
}

/* Where the log and the given volumes are, at one moment. */
static PyObject *journal_point(PyObject *self, PyObject *volumes)
{
    return at_one_point(self, volumes, look_at_all);
}

/* A POINT record: count (4), of each volume its number (4) and seq (8), then the caller's bytes. */
static PyObject *journal_append_point(PyObject *self, PyObject *args)
{
    PyObject *sequence;
    Py_buffer tail;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "Oy*K:append_point", &sequence, &tail, &now_ns))
        return NULL;
    PyObject *keep;
    struct bd_volume **cores;
    unsigned long long *seqs;
    uint8_t *payload = NULL;
    PyObject *result = NULL;
    Py_ssize_t count = take_volumes(self, sequence, &keep, &cores, &seqs);
    if (count < 0)
        goto out;
    if (count > max_point_volumes || tail.len > max_point_tail) {
        bd_raise_errno(-EFBIG);
        goto out;
    }
    size_t head = 4 + (size_t)count * 12;
    payload = PyMem_Malloc(head + (size_t)tail.len);
    if (payload == NULL) {
        PyErr_NoMemory();
        goto out;
    }
    memcpy(payload + head, tail.buf, (size_t)tail.len);
    struct bd_journal *journal = journal_of(self);
    struct bd_record record = {.op = BD_RECORD_POINT, .length = head + (uint64_t)tail.len};
    bd_lock(&journal->lock);
    look_at_all(cores, count, seqs);
    bd_put32(payload, (uint32_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        bd_put32(payload + 4 + i * 12, cores[i]->number);
        bd_put64(payload + 8 + i * 12, seqs[i]);
    }
    int error = bd_journal_add(journal, NULL, record, payload, now_ns, NULL);
    if (error == 0)
        error = bd_journal_commit(journal);
    unsigned long long lsn = journal->next_lsn - 1;
    pthread_mutex_unlock(&journal->lock);
    PyObject *list = error < 0 ? bd_raise_errno(error) : seq_list(seqs, count);
    if (list != NULL)
        result = Py_BuildValue("(KN)", lsn, list);
out:
    PyMem_Free(payload);
    PyMem_Free(cores);
    PyMem_Free(seqs);
    Py_XDECREF(keep);
    PyBuffer_Release(&tail);
    return result;
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
    struct bd_journal *journal = journal_of(self);
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
    struct bd_journal *journal = journal_of(self);
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

enum { max_rows = 1 << 20 }; /* 48 MiB; who wants more asks in pieces */

static PyObject *row_list(const struct bd_replay *replay)
{
    uint64_t count = replay->row_count;
    uint64_t first = count > replay->row_capacity ? count - replay->row_capacity : 0;
    PyObject *list = PyList_New((Py_ssize_t)(count - first));
    for (uint64_t i = first; list != NULL && i < count; i++) {
        const struct bd_log_row *row = &replay->rows[i % replay->row_capacity];
        PyObject *item = Py_BuildValue(
            "(KKKiKKI)", (unsigned long long)row->lsn, (unsigned long long)row->seq,
            (unsigned long long)row->time_ns, (int)row->op, (unsigned long long)row->offset,
            (unsigned long long)row->length, (unsigned int)row->epoch);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)(i - first), item);
    }
    return list;
}

static PyObject *point_list(const struct bd_replay *replay)
{
    PyObject *list = PyList_New(0);
    size_t at = 0;
    while (list != NULL && at < replay->points_length) {
        const uint8_t *point = replay->points + at;
        uint32_t length = bd_get32(point + 8);
        PyObject *item = Py_BuildValue("(Ky#)", (unsigned long long)bd_get64(point),
                                       (const char *)point + 12, (Py_ssize_t)length);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
        at += 12 + length;
    }
    return list;
}

/* The volumes of a dict by number, as an array for bd_replay; NULL with an exception. */
static struct bd_volume **volumes_by_number(PyObject *dict, uint32_t *count)
{
    unsigned long limit = 0;
    Py_ssize_t at = 0;
    PyObject *key;
    PyObject *value;
    while (PyDict_Next(dict, &at, &key, &value)) {
        unsigned long number = PyLong_AsUnsignedLong(key);
        if (PyErr_Occurred())
            return NULL;
        if (!PyObject_TypeCheck(value, &bd_volume_type) || number >= UINT32_MAX) {
            PyErr_SetString(PyExc_TypeError, "replay() takes a dict of VolumeCore by number");
            return NULL;
        }
        if (number >= limit)
            limit = number + 1;
    }
    struct bd_volume **volumes = PyMem_Calloc(limit + 1, sizeof(struct bd_volume *));
    if (volumes == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    at = 0;
    while (PyDict_Next(dict, &at, &key, &value))
        volumes[PyLong_AsUnsignedLong(key)] = ((bd_volume_object *)value)->volume;
    *count = (uint32_t)limit;
    return volumes;
}

/* See the stub for arguments and result. */
static PyObject *journal_replay(PyObject *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"slot",      "state",      "volumes", "end_lsn",
                            "end_ns",    "end_volume", "end_seq", "rows_volume",
                            "row_limit", "points",     NULL};
    unsigned int slot;
    unsigned long long lsn;
    unsigned int chain;
    unsigned int node_epoch;
    unsigned long long position;
    PyObject *dict;
    unsigned long long end_lsn = 0;
    unsigned long long end_ns = 0;
    unsigned int end_volume = 0;
    unsigned long long end_seq = 0;
    unsigned int rows_volume = 0;
    unsigned int row_limit = 0;
    int want_points = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "I(KIIK)O!|$KKIKIIp:replay", names, &slot,
                                     &lsn, &chain, &node_epoch, &position, &PyDict_Type, &dict,
                                     &end_lsn, &end_ns, &end_volume, &end_seq, &rows_volume,
                                     &row_limit, &want_points))
        return NULL;
    if (row_limit > max_rows) {
        PyErr_Format(PyExc_ValueError, "row_limit %u: %u are the most", row_limit, max_rows);
        return NULL;
    }
    struct bd_replay replay = {.journal = journal_of(self),
                               .next_lsn = lsn,
                               .chain = chain,
                               .node_epoch = node_epoch,
                               .position = position,
                               .end_lsn = end_lsn,
                               .end_ns = end_ns,
                               .end_volume = end_volume,
                               .end_seq = end_seq,
                               .rows_volume = rows_volume,
                               .row_capacity = row_limit,
                               .want_points = want_points};
    replay.volumes = volumes_by_number(dict, &replay.volume_count);
    if (replay.volumes == NULL)
        return NULL;
    if (row_limit > 0 && (replay.rows = PyMem_New(struct bd_log_row, row_limit)) == NULL) {
        PyMem_Free(replay.volumes);
        return PyErr_NoMemory();
    }
    int error;
    Py_BEGIN_ALLOW_THREADS;
    error = bd_replay_segment(&replay, slot);
    Py_END_ALLOW_THREADS;
    PyMem_Free(replay.volumes);
    PyObject *rows = error < 0 ? NULL : row_list(&replay);
    PyObject *points = error < 0 ? NULL : point_list(&replay);
    PyMem_Free(replay.rows);
    free(replay.points);
    if (error < 0)
        return bd_raise_errno(error);
    if (rows == NULL || points == NULL) {
        Py_XDECREF(rows);
        Py_XDECREF(points);
        return NULL;
    }
    return Py_BuildValue("((KIIK)KKKNNN)", (unsigned long long)replay.next_lsn, replay.chain,
                         replay.node_epoch, (unsigned long long)replay.position,
                         (unsigned long long)replay.records, (unsigned long long)replay.skipped,
                         (unsigned long long)replay.last_ns, PyBool_FromLong(replay.ended), rows,
                         points);
}

static PyObject *journal_proves(PyObject *self, PyObject *args)
{
    unsigned int slot;
    unsigned long long position;
    unsigned long long lsn;
    if (!PyArg_ParseTuple(args, "IKK:proves", &slot, &position, &lsn))
        return NULL;
    struct bd_journal *journal = journal_of(self);
    int result;
    Py_BEGIN_ALLOW_THREADS;
    result = bd_replay_proves(journal, slot, position, lsn);
    Py_END_ALLOW_THREADS;
    if (result < 0)
        return bd_raise_errno(result);
    return PyBool_FromLong(result);
}

static PyObject *journal_resume(PyObject *self, PyObject *args)
{
    unsigned int slot;
    unsigned long long position;
    unsigned long long lsn;
    unsigned int chain;
    if (!PyArg_ParseTuple(args, "IKKI:resume", &slot, &position, &lsn, &chain))
        return NULL;
    int error = bd_journal_resume(journal_of(self), slot, position, lsn, chain);
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
    struct bd_journal *journal = journal_of(self);
    bd_lock(&journal->lock);
    journal->next_lsn = lsn;
    if (sequence > journal->next_sequence)
        journal->next_sequence = sequence;
    journal->chain = chain;
    pthread_mutex_unlock(&journal->lock);
    Py_RETURN_NONE;
}

static PyObject *journal_limits(PyObject *self, PyObject *args)
{
    long long space_left;
    unsigned int reserve;
    if (!PyArg_ParseTuple(args, "LI:set_limits", &space_left, &reserve))
        return NULL;
    struct bd_journal *journal = journal_of(self);
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
    struct bd_journal *journal = journal_of(self);
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
    did = bd_journal_write_behind(journal_of(self));
    Py_END_ALLOW_THREADS;
    return PyBool_FromLong(did);
}

static PyMethodDef journal_methods[] = {
    {"write_behind", journal_write_behind, METH_NOARGS, NULL},
    {"add_ready", journal_add_ready, METH_VARARGS, NULL},
    {"adopt", journal_adopt, METH_VARARGS, NULL},
    {"recycle", journal_recycle, METH_VARARGS, NULL},
    {"remove", journal_remove, METH_VARARGS, NULL},
    {"sync", journal_sync, METH_NOARGS, NULL},
    {"seal", journal_seal, METH_VARARGS, NULL},
    {"release", journal_release, METH_VARARGS, NULL},
    {"cut", journal_cut, METH_NOARGS, NULL},
    {"freeze", journal_freeze, METH_O, NULL},
    {"point", journal_point, METH_O, NULL},
    {"append_point", journal_append_point, METH_VARARGS, NULL},
    {"append_head", journal_append_head, METH_VARARGS, NULL},
    {"append_mark", journal_append_mark, METH_VARARGS, NULL},
    {"replay", (PyCFunction)(void (*)(void))journal_replay, METH_VARARGS | METH_KEYWORDS, NULL},
    {"proves", journal_proves, METH_VARARGS, NULL},
    {"resume", journal_resume, METH_VARARGS, NULL},
    {"begin", journal_begin, METH_VARARGS, NULL},
    {"set_limits", journal_limits, METH_VARARGS, NULL},
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

static PyObject *py_decode_segment_header(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*:decode_segment_header", &data))
        return NULL;
    struct bd_segment_header header;
    int error = -EBADMSG;
    if (data.len >= BD_SEGMENT_HEADER_USED)
        error = bd_segment_header_decode(data.buf, &header);
    PyBuffer_Release(&data);
    if (error == -EBADMSG)
        Py_RETURN_NONE;
    if (error < 0)
        return bd_raise_errno(error);
    return Py_BuildValue("(y#IIKKKIK)", (const char *)header.store_uuid, (Py_ssize_t)16,
                         header.slot, header.node_epoch, (unsigned long long)header.sequence,
                         (unsigned long long)header.first_lsn,
                         (unsigned long long)header.synced_lsn, header.chain,
                         (unsigned long long)header.segment_bytes);
}

static PyMethodDef journal_functions[] = {
    {"decode_segment_header", py_decode_segment_header, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int bd_journal_register(PyObject *module)
{
    if (PyType_Ready(&bd_journal_type) < 0 || PyModule_AddFunctions(module, journal_functions) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "Journal", (PyObject *)&bd_journal_type);
}
