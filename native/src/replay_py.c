/* Python face of reading the log back: segment headers, and the records in segments. */
#include "bytes.h"
#include "journal_py.h"
#include "volume_py.h"

#include <errno.h>

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
        PyObject *item =
            Py_BuildValue("(KIKy#)", (unsigned long long)bd_get64(point), bd_get32(point + 12),
                          (unsigned long long)bd_get64(point + 16),
                          (const char *)point + BD_REPLAY_POINT_HEAD, (Py_ssize_t)length);
        if (item == NULL || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
        at += BD_REPLAY_POINT_HEAD + length;
    }
    return list;
}

static PyObject *head_list(const struct bd_replay *replay)
{
    PyObject *list = PyList_New((Py_ssize_t)replay->head_count);
    for (size_t i = 0; list != NULL && i < replay->head_count; i++) {
        const struct bd_log_head *head = &replay->heads[i];
        PyObject *item =
            Py_BuildValue("(KIIKI)", (unsigned long long)head->lsn, head->volume, head->epoch,
                          (unsigned long long)head->seq, head->node_epoch);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
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
PyObject *bd_py_replay(PyObject *self, PyObject *args, PyObject *keywords)
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
    struct bd_replay replay = {.journal = bd_journal_of(self),
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
    PyObject *heads = error < 0 ? NULL : head_list(&replay);
    PyMem_Free(replay.rows);
    free(replay.points);
    free(replay.heads);
    if (error < 0)
        return bd_raise_errno(error);
    if (rows == NULL || points == NULL || heads == NULL) {
        Py_XDECREF(rows);
        Py_XDECREF(points);
        Py_XDECREF(heads);
        return NULL;
    }
    return Py_BuildValue("((KIIK)KKKNNNN)", (unsigned long long)replay.next_lsn, replay.chain,
                         replay.node_epoch, (unsigned long long)replay.position,
                         (unsigned long long)replay.records, (unsigned long long)replay.skipped,
                         (unsigned long long)replay.last_ns, PyBool_FromLong(replay.ended), rows,
                         points, heads);
}

/* copy_records(slot, state, end_lsn, (volume, epoch, seq, end), buffer): see the stub. */
PyObject *bd_py_copy_records(PyObject *self, PyObject *args)
{
    unsigned int slot;
    unsigned long long lsn;
    unsigned int chain;
    unsigned int node_epoch;
    unsigned long long position;
    unsigned long long end_lsn;
    unsigned int volume;
    unsigned int epoch;
    unsigned long long seq;
    unsigned long long end;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(args, "I(KIIK)K(IIKK)w*:copy_records", &slot, &lsn, &chain, &node_epoch,
                          &position, &end_lsn, &volume, &epoch, &seq, &end, &buffer))
        return NULL;
    struct bd_replay replay = {.journal = bd_journal_of(self),
                               .next_lsn = lsn,
                               .chain = chain,
                               .node_epoch = node_epoch,
                               .position = position,
                               .end_lsn = end_lsn,
                               .copy_volume = volume,
                               .copy_epoch = epoch,
                               .copy_seq = seq,
                               .copy_end = end,
                               .copy = buffer.buf,
                               .copy_capacity = (size_t)buffer.len};
    int error;
    Py_BEGIN_ALLOW_THREADS;
    error = bd_replay_segment(&replay, slot);
    Py_END_ALLOW_THREADS;
    PyBuffer_Release(&buffer);
    if (error < 0)
        return bd_raise_errno(error);
    return Py_BuildValue("((KIIK)NnK)", (unsigned long long)replay.next_lsn, replay.chain,
                         replay.node_epoch, (unsigned long long)replay.position,
                         PyBool_FromLong(replay.ended), (Py_ssize_t)replay.copy_length,
                         (unsigned long long)replay.copy_seq);
}

PyObject *bd_py_proves(PyObject *self, PyObject *args)
{
    unsigned int slot;
    unsigned long long position;
    unsigned long long lsn;
    if (!PyArg_ParseTuple(args, "IKK:proves", &slot, &position, &lsn))
        return NULL;
    struct bd_journal *journal = bd_journal_of(self);
    int result;
    Py_BEGIN_ALLOW_THREADS;
    result = bd_replay_proves(journal, slot, position, lsn);
    Py_END_ALLOW_THREADS;
    if (result < 0)
        return bd_raise_errno(result);
    return PyBool_FromLong(result);
}

PyObject *bd_py_decode_segment_header(PyObject *self, PyObject *args)
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
