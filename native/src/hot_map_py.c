/* What a volume's hot maps have, for the destager, for readers of past versions and for cloned
 * ranges: methods of VolumeCore. */
#include "volume_py.h"

#include <errno.h>
#include <string.h>

#include "locks.h"

/* Of a hot map, which may reach beyond the volume's end: it was larger when it was filled. */
static int check_map_range(unsigned long long offset, unsigned long long length)
{
    if (offset <= BD_MAX_VOLUME_BYTES && length <= BD_MAX_VOLUME_BYTES - offset)
        return 0;
    PyErr_Format(PyExc_ValueError, "range %llu+%llu is past the end of any volume", offset, length);
    return -1;
}

/* Layered extents of the hot maps: (start, length, kind), kind -1 where nothing hot is. */
struct extent_list {
    PyObject *list;
    Py_ssize_t limit;
};

static int push_extent(struct extent_list *out, uint64_t start, uint64_t length, int kind)
{
    PyObject *item =
        Py_BuildValue("(KKi)", (unsigned long long)start, (unsigned long long)length, kind);
    if (item == NULL)
        return -1;
    int result = PyList_Append(out->list, item);
    Py_DECREF(item);
    return result;
}

static int walk_extents(struct bd_volume *volume, struct bd_extent_map *map,
                        struct extent_list *out, uint64_t offset, uint64_t end)
{
    if (map == NULL)
        return push_extent(out, offset, end - offset, -1);
    struct bd_extent_map *below = map == volume->active ? volume->frozen : NULL;
    struct bd_map_cursor at = bd_map_find(map, offset);
    while (offset < end && PyList_GET_SIZE(out->list) < out->limit) {
        const struct bd_extent *extent = bd_map_get(map, at);
        uint64_t gap_end = extent == NULL || extent->start > end ? end : extent->start;
        if (offset < gap_end) {
            if (walk_extents(volume, below, out, offset, gap_end) < 0)
                return -1;
            offset = gap_end;
            continue;
        }
        uint64_t stop = extent->start + extent->length;
        if (stop > end)
            stop = end;
        if (push_extent(out, offset, stop - offset, (int)bd_place_kind(extent->place)) < 0)
            return -1;
        offset = stop;
        at = bd_map_next(map, at);
    }
    return 0;
}

PyObject *bd_py_hot_extents(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    unsigned long long length;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "KKn:hot_extents", &offset, &length, &limit))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
    if (check_map_range(offset, length) < 0)
        return NULL;
    struct extent_list out = {PyList_New(0), limit};
    if (out.list == NULL)
        return NULL;
    bd_lock(&volume->lock);
    int error = walk_extents(volume, volume->active, &out, offset, offset + length);
    pthread_mutex_unlock(&volume->lock);
    if (error < 0) {
        Py_DECREF(out.list);
        return NULL;
    }
    return out.list;
}

/* Rows of three u64 each, native order, in a bytearray that grows by doubling: a map of a large
 * volume has many more runs than objects of Python's are good for. */
struct run_rows {
    PyObject *bytes;
    Py_ssize_t used;
};

static int push_run(struct run_rows *rows, uint64_t first, uint64_t end, int kind)
{
    if (first >= end)
        return 0;
    const uint64_t row[3] = {first, end - first, (uint64_t)kind};
    Py_ssize_t room = PyByteArray_GET_SIZE(rows->bytes);
    if (room - rows->used < (Py_ssize_t)sizeof row) {
        Py_ssize_t larger = room == 0 ? (Py_ssize_t)(64 * sizeof row) : 2 * room;
        if (room > PY_SSIZE_T_MAX / 2 || PyByteArray_Resize(rows->bytes, larger) < 0)
            return -1;
    }
    memcpy(PyByteArray_AS_STRING(rows->bytes) + rows->used, row, sizeof row);
    rows->used += (Py_ssize_t)sizeof row;
    return 0;
}

/* The chunks that the frozen map touches, as runs (first, count, kind of place), a row each: a zero
 * run is wholly unmapped, one that refers does so with one record and as a whole, the others have
 * to be put together. Ascending, without overlap. */
PyObject *bd_py_frozen_runs(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_volume *volume = bd_volume_of(self);
    struct run_rows rows = {PyByteArray_FromStringAndSize(NULL, 0), 0};
    if (rows.bytes == NULL)
        return NULL;
    uint64_t size = volume->chunk_size;
    uint64_t first = 0; /* the data run that is being gathered: [first, end) */
    uint64_t end = 0;
    int error = 0;
    /* Only the destager changes `frozen`, and it is the caller: no lock. */
    struct bd_extent_map *map = volume->frozen;
    struct bd_map_cursor at = {0, 0};
    const struct bd_extent *extent;
    while (map != NULL && error == 0 && (extent = bd_map_get(map, at)) != NULL) {
        uint64_t from = extent->start / size;
        uint64_t to = (extent->start + extent->length - 1) / size + 1;
        uint64_t whole_from = to;
        uint64_t whole_to = to;
        int kind = (int)bd_place_kind(extent->place);
        if (kind != BD_PLACE_DATA &&
            (extent->start + size - 1) / size < (extent->start + extent->length) / size) {
            whole_from = (extent->start + size - 1) / size;
            whole_to = (extent->start + extent->length) / size;
        }
        /* [from, whole_from) data, [whole_from, whole_to) of that kind, [whole_to, to) data */
        if (from < end)
            from = end;
        if (from < whole_from) {
            if (from != end) {
                error = push_run(&rows, first, end, BD_PLACE_DATA);
                first = from;
            }
            end = whole_from;
        }
        if (error == 0 && whole_from < whole_to) {
            error = push_run(&rows, first, end, BD_PLACE_DATA);
            if (error == 0)
                error = push_run(&rows, whole_from, whole_to, kind);
            first = whole_to;
            end = whole_to;
        }
        if (whole_to < to)
            end = to;
        at = bd_map_next(map, at);
    }
    if (error == 0)
        error = push_run(&rows, first, end, BD_PLACE_DATA);
    if (error == 0)
        error = PyByteArray_Resize(rows.bytes, rows.used);
    if (error < 0)
        Py_CLEAR(rows.bytes);
    return rows.bytes;
}

/* (seq, root, height, chunk index in that tree) of a chunk of the volume. */
static PyObject *refer_tuple(const struct bd_volume *volume, const struct bd_refer *refer,
                             uint64_t index)
{
    uint64_t size = volume->chunk_size;
    uint64_t source = refer->source / size + (index - refer->start / size);
    return Py_BuildValue("(Ky#BK)", (unsigned long long)refer->seq, (const char *)refer->root,
                         (Py_ssize_t)sizeof refer->root, refer->height, (unsigned long long)source);
}

static PyObject *referred(PyObject *self, PyObject *args, bool frozen_only)
{
    unsigned long long index;
    if (!PyArg_ParseTuple(args, "K:referred", &index))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
    if (index >= BD_MAX_VOLUME_BYTES / volume->chunk_size) {
        PyErr_Format(PyExc_ValueError, "chunk %llu is past the end of any volume", index);
        return NULL;
    }
    struct bd_refer copy;
    bd_lock(&volume->lock);
    const struct bd_refer *found = NULL;
    if (!frozen_only)
        found = bd_volume_refer(volume, volume->active, index);
    if (found == NULL)
        found = bd_volume_refer(volume, volume->frozen, index);
    if (found != NULL)
        copy = *found;
    pthread_mutex_unlock(&volume->lock);
    if (found == NULL)
        Py_RETURN_NONE;
    return refer_tuple(volume, &copy, index);
}

PyObject *bd_py_referred(PyObject *self, PyObject *args)
{
    return referred(self, args, false);
}

PyObject *bd_py_frozen_referred(PyObject *self, PyObject *args)
{
    return referred(self, args, true);
}

/* The journal's lock is taken. */
static int append_refer(struct bd_volume *volume, struct bd_record record, const uint8_t *payload,
                        uint64_t now_ns, unsigned long long *lsn)
{
    struct bd_journal *journal = volume->journal;
    int status = 0;
    bd_lock(&journal->lock);
    int error = volume->retired ? -ESHUTDOWN : 0;
    if (error == 0 &&
        (record.offset > volume->size || record.length > volume->size - record.offset))
        error = -EINVAL; /* it has shrunk */
    if (error == 0)
        error = bd_journal_add(journal, volume, record, payload, now_ns, &status);
    if (error == 0)
        error = bd_journal_commit(journal);
    *lsn = journal->next_lsn - 1;
    pthread_mutex_unlock(&journal->lock);
    return error;
}

/* refer(offset, length, root, height, source, now_ns) -> lsn */
PyObject *bd_py_refer(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    unsigned long long length;
    Py_buffer root;
    unsigned char height;
    unsigned long long source;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "KKy*bKK:refer", &offset, &length, &root, &height, &source,
                          &now_ns))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
    struct bd_record record = {.op = BD_RECORD_REFER, .offset = offset, .length = length};
    struct bd_refer refer = {.height = height, .source = source};
    uint8_t payload[BD_REFER_PAYLOAD];
    bool good = (size_t)root.len == sizeof refer.root && length > 0;
    if (good) {
        memcpy(refer.root, root.buf, sizeof refer.root);
        bd_refer_encode(&refer, payload);
        good = bd_volume_can_refer(volume, &record, payload);
    }
    PyBuffer_Release(&root);
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "refer() takes whole chunks, a root of 32 bytes and the "
                                          "height of its tree");
        return NULL;
    }
    unsigned long long lsn;
    int error = append_refer(volume, record, payload, now_ns, &lsn);
    if (error < 0)
        return bd_raise_errno(error);
    return PyLong_FromUnsignedLongLong(lsn);
}

PyObject *bd_py_frozen_covers(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    unsigned long long length;
    if (!PyArg_ParseTuple(args, "KK:frozen_covers", &offset, &length))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
    if (check_map_range(offset, length) < 0)
        return NULL;
    return PyBool_FromLong(volume->frozen != NULL && bd_map_covers(volume->frozen, offset, length));
}

PyObject *bd_py_overlay_frozen(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "Kw*:overlay_frozen", &offset, &data))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
    int error = -EINVAL;
    struct bd_read_fault fault = {0};
    if (check_map_range(offset, (unsigned long long)data.len) == 0) {
        Py_BEGIN_ALLOW_THREADS;
        error = bd_volume_read_frozen(volume, offset, (uint64_t)data.len, data.buf, &fault);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&data);
    if (PyErr_Occurred())
        return NULL;
    if (error == -EIO)
        return bd_raise_fault(&fault);
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}
