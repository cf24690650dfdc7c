/* Python face of a volume's hot path. */
#include "volume_py.h"

#include <errno.h>
#include <string.h>

#include "batch.h"
#include "locks.h"
#include "member_py.h"
#include "request.h"
#include "table_py.h"
#include "warm_py.h"
#include "gate_py.h"
#include "tap.h"

enum {
    INLINE_ACTIONS = 128,
    RELEASE_GIL_ABOVE = 256 * 1024, /* bytes in a batch; below, the hand-over costs more */
    SLOW_READ_ABOVE = 4 << 20,      /* bytes: longer reads leave the event loop's thread */
    MAX_MISSING = 1024,
    MAX_CHUNK_SIZE = 16 << 20,
};

/* No end of a chunk beyond it wraps around. */
static const uint64_t MAX_VOLUME_BYTES = UINT64_C(1) << 62;

PyObject *bd_read_fault_error;

static struct bd_volume *volume_of(PyObject *self)
{
    return ((bd_volume_object *)self)->volume;
}

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
    if (chunk_size < 4096 || (chunk_size & (chunk_size - 1)) != 0 || size > MAX_VOLUME_BYTES ||
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

/* submit */

struct submission {
    PyObject *requests; /* a tuple of our own: other threads may change a list */
    Py_ssize_t count;
    struct bd_action *actions;
    Py_buffer *buffers; /* of writes; of reads only obj, their bytes; obj is NULL elsewhere */
    uint64_t bytes;
};

static int range_error(const struct bd_volume *volume, const bd_request *request)
{
    if (request->offset <= volume->size && request->length <= volume->size - request->offset)
        return 0;
    return request->op == BD_OP_WRITE || request->op == BD_OP_WRITE_ZEROES ? -ENOSPC : -EINVAL;
}

/* One request -> one action; the slow path is told by state WAIT_READ. -1 with an exception. */
static int prepare(struct bd_volume *volume, struct submission *submission, Py_ssize_t i)
{
    PyObject *item = PyTuple_GET_ITEM(submission->requests, i);
    struct bd_action *action = &submission->actions[i];
    *action = (struct bd_action){.kind = BD_ACTION_NONE, .state = BD_ACTION_DONE};
    if (!PyObject_TypeCheck(item, &bd_request_type)) {
        PyErr_SetString(PyExc_TypeError, "submit() takes a sequence of Request");
        return -1;
    }
    bd_request *request = (bd_request *)item;
    action->offset = request->offset;
    action->length = request->length;
    action->sync = (request->flags & BD_FLAG_FUA) != 0;
    action->if_seq = (request->flags & BD_FLAG_IF_SEQ) != 0;
    action->seq = request->seq;
    if (request->op != BD_OP_FLUSH) {
        action->status = range_error(volume, request);
        if (action->status < 0)
            return 0;
    }
    if (request->length == 0 && request->op != BD_OP_FLUSH && request->op != BD_OP_READ)
        return 0;
    switch (request->op) {
    case BD_OP_READ: {
        PyObject *bytes = request->length > PY_SSIZE_T_MAX
                              ? PyErr_NoMemory()
                              : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)request->length);
        if (bytes == NULL)
            return -1;
        submission->buffers[i].obj = bytes; /* into the request when the batch is done */
        action->kind = BD_ACTION_READ;
        action->data = (uint8_t *)PyBytes_AS_STRING(bytes);
        submission->bytes += request->length;
        if (request->length > SLOW_READ_ABOVE) {
            action->kind = BD_ACTION_NONE;
            action->state = BD_ACTION_WAIT_READ;
        }
        return 0;
    }
    case BD_OP_WRITE: {
        Py_buffer *buffer = &submission->buffers[i];
        PyObject *data = request->data != NULL ? request->data : Py_None; /* del request.data */
        if (PyObject_GetBuffer(data, buffer, PyBUF_SIMPLE) < 0)
            return -1;
        if ((uint64_t)buffer->len != request->length) {
            PyErr_Format(PyExc_ValueError, "a WRITE of %llu bytes carries %zd",
                         (unsigned long long)request->length, buffer->len);
            return -1;
        }
        action->kind = BD_ACTION_WRITE;
        action->data = buffer->buf;
        submission->bytes += request->length;
        return 0;
    }
    case BD_OP_FLUSH:
        action->kind = BD_ACTION_FLUSH;
        return 0;
    case BD_OP_UNMAP:
        action->kind = BD_ACTION_UNMAP;
        return 0;
    case BD_OP_WRITE_ZEROES:
        action->kind = BD_ACTION_ZERO;
        return 0;
    case BD_OP_CACHE:
        return 0;
    case BD_OP_BLOCK_STATUS:
        action->state = BD_ACTION_WAIT_READ;
        return 0;
    default:
        action->status = -EINVAL;
        return 0;
    }
}

/* After bd_batch_execute: results into the requests, and each into the list of its state. */
static PyObject *collect(struct submission *submission)
{
    PyObject *lists[4] = {PyList_New(0), PyList_New(0), PyList_New(0), PyList_New(0)};
    int failed = 0;
    for (int i = 0; i < 4; i++)
        failed |= lists[i] == NULL;
    for (Py_ssize_t i = 0; i < submission->count && !failed; i++) {
        PyObject *item = PyTuple_GET_ITEM(submission->requests, i);
        struct bd_action *action = &submission->actions[i];
        bd_request *request = (bd_request *)item;
        request->error = action->state == BD_ACTION_DONE ? -action->status : 0;
        request->waits = action->state == BD_ACTION_WAIT_ACKS;
        request->wait_durable = request->waits && action->wait_durable;
        request->wait_seq = request->waits ? action->wait_seq : 0;
        if (request->op == BD_OP_READ) {
            PyObject *bytes = request->error == 0 ? submission->buffers[i].obj : NULL;
            Py_XSETREF(request->data, Py_NewRef(bytes != NULL ? bytes : Py_None));
        }
        failed = PyList_Append(lists[request->waits ? BD_ACTION_DONE : action->state], item) < 0;
    }
    if (failed) {
        for (int i = 0; i < 4; i++)
            Py_XDECREF(lists[i]);
        return NULL;
    }
    return Py_BuildValue("(NNNN)", lists[0], lists[1], lists[2], lists[3]);
}

static void execute(struct bd_volume *volume, struct submission *submission, uint64_t now_ns)
{
    /* Actions that are decided already (range errors, slow ones) keep their state. */
    struct bd_action *actions = submission->actions;
    Py_ssize_t i = 0;
    while (i < submission->count) {
        if (actions[i].kind == BD_ACTION_NONE) {
            i++;
            continue;
        }
        Py_ssize_t from = i;
        while (i < submission->count && actions[i].kind != BD_ACTION_NONE)
            i++;
        bd_batch_execute(volume, actions + from, (int)(i - from), now_ns);
    }
}

static PyObject *volume_submit(PyObject *self, PyObject *args)
{
    PyObject *sequence;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "OK:submit", &sequence, &now_ns))
        return NULL;
    struct bd_volume *volume = volume_of(self);
    struct submission submission = {0};
    submission.requests = PySequence_Tuple(sequence);
    if (submission.requests == NULL)
        return NULL;
    submission.count = PyTuple_GET_SIZE(submission.requests);
    struct bd_action inline_actions[INLINE_ACTIONS];
    Py_buffer inline_buffers[INLINE_ACTIONS];
    submission.actions = inline_actions;
    submission.buffers = inline_buffers;
    PyObject *result = NULL;
    if (submission.count > INLINE_ACTIONS) {
        submission.actions = PyMem_New(struct bd_action, submission.count);
        submission.buffers = PyMem_New(Py_buffer, submission.count);
        if (submission.actions == NULL || submission.buffers == NULL) {
            PyErr_NoMemory();
            goto out;
        }
    }
    for (Py_ssize_t i = 0; i < submission.count; i++)
        submission.buffers[i].obj = NULL;
    int prepared = 0;
    for (Py_ssize_t i = 0; i < submission.count && prepared == 0; i++)
        prepared = prepare(volume, &submission, i);
    if (prepared == 0) {
        if (submission.bytes > RELEASE_GIL_ABOVE) {
            Py_BEGIN_ALLOW_THREADS;
            execute(volume, &submission, now_ns);
            Py_END_ALLOW_THREADS;
        } else {
            execute(volume, &submission, now_ns);
        }
        result = collect(&submission);
    }
    for (Py_ssize_t i = 0; i < submission.count; i++)
        if (submission.buffers[i].obj != NULL)
            PyBuffer_Release(&submission.buffers[i]);
out:
    if (submission.actions != inline_actions)
        PyMem_Free(submission.actions);
    if (submission.buffers != inline_buffers)
        PyMem_Free(submission.buffers);
    Py_DECREF(submission.requests);
    return result;
}

/* Slow path and destager */

/* Of a hot map, which may reach beyond the volume's end: it was larger when it was filled. */
static int check_map_range(unsigned long long offset, unsigned long long length)
{
    if (offset <= MAX_VOLUME_BYTES && length <= MAX_VOLUME_BYTES - offset)
        return 0;
    PyErr_Format(PyExc_ValueError, "range %llu+%llu is past the end of any volume", offset, length);
    return -1;
}

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
    struct bd_volume *volume = volume_of(self);
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
    struct bd_volume *volume = volume_of(self);
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

static PyObject *volume_hot_extents(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    unsigned long long length;
    Py_ssize_t limit;
    if (!PyArg_ParseTuple(args, "KKn:hot_extents", &offset, &length, &limit))
        return NULL;
    struct bd_volume *volume = volume_of(self);
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

static int push_run(PyObject *list, uint64_t first, uint64_t end, int kind)
{
    if (first >= end)
        return 0;
    PyObject *run =
        Py_BuildValue("(KKi)", (unsigned long long)first, (unsigned long long)(end - first), kind);
    if (run == NULL)
        return -1;
    int result = PyList_Append(list, run);
    Py_DECREF(run);
    return result;
}

/* The chunks that the frozen map touches, as runs (first, count, kind of place): a zero run is
 * wholly unmapped, one that refers does so with one record and as a whole, the others have to be
 * put together. Ascending, without overlap. */
static PyObject *volume_frozen_runs(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_volume *volume = volume_of(self);
    PyObject *list = PyList_New(0);
    if (list == NULL)
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
                error = push_run(list, first, end, BD_PLACE_DATA);
                first = from;
            }
            end = whole_from;
        }
        if (error == 0 && whole_from < whole_to) {
            error = push_run(list, first, end, BD_PLACE_DATA);
            if (error == 0)
                error = push_run(list, whole_from, whole_to, kind);
            first = whole_to;
            end = whole_to;
        }
        if (whole_to < to)
            end = to;
        at = bd_map_next(map, at);
    }
    if (error == 0)
        error = push_run(list, first, end, BD_PLACE_DATA);
    if (error < 0)
        Py_CLEAR(list);
    return list;
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
    struct bd_volume *volume = volume_of(self);
    if (index >= MAX_VOLUME_BYTES / volume->chunk_size) {
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

static PyObject *volume_referred(PyObject *self, PyObject *args)
{
    return referred(self, args, false);
}

static PyObject *volume_frozen_referred(PyObject *self, PyObject *args)
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
static PyObject *volume_refer(PyObject *self, PyObject *args)
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
    struct bd_volume *volume = volume_of(self);
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

static PyObject *volume_frozen_covers(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    unsigned long long length;
    if (!PyArg_ParseTuple(args, "KK:frozen_covers", &offset, &length))
        return NULL;
    struct bd_volume *volume = volume_of(self);
    if (check_map_range(offset, length) < 0)
        return NULL;
    return PyBool_FromLong(volume->frozen != NULL && bd_map_covers(volume->frozen, offset, length));
}

static PyObject *volume_overlay_frozen(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "Kw*:overlay_frozen", &offset, &data))
        return NULL;
    struct bd_volume *volume = volume_of(self);
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

static PyObject *volume_commit(PyObject *self, PyObject *args)
{
    unsigned long long generation;
    if (!PyArg_ParseTuple(args, "K:commit", &generation))
        return NULL;
    bd_volume_commit(volume_of(self), generation);
    Py_RETURN_NONE;
}

static PyObject *volume_retire(PyObject *self, PyObject *unused)
{
    (void)unused;
    bd_volume_retire(volume_of(self), true);
    Py_RETURN_NONE;
}

static PyObject *volume_revive(PyObject *self, PyObject *unused)
{
    (void)unused;
    bd_volume_retire(volume_of(self), false);
    Py_RETURN_NONE;
}

static PyObject *volume_resize(PyObject *self, PyObject *args)
{
    unsigned long long size;
    if (!PyArg_ParseTuple(args, "K:resize", &size))
        return NULL;
    if (size > MAX_VOLUME_BYTES) {
        PyErr_SetString(PyExc_ValueError, "a volume's size is at most 4 EiB");
        return NULL;
    }
    struct bd_volume *volume = volume_of(self);
    bd_lock(&volume->lock);
    volume->size = size;
    pthread_mutex_unlock(&volume->lock);
    Py_RETURN_NONE;
}

/* (seq, generation, size, hot bytes, extents, memory bytes, frozen) */
static PyObject *volume_state(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_volume *volume = volume_of(self);
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
    {"submit", volume_submit, METH_VARARGS, NULL},
    {"fill", volume_fill, METH_VARARGS, NULL},
    {"missing", volume_missing, METH_VARARGS, NULL},
    {"put_place", volume_put_place, METH_VARARGS, NULL},
    {"warm", bd_volume_warm_py, METH_VARARGS, NULL},
    {"hot_extents", volume_hot_extents, METH_VARARGS, NULL},
    {"frozen_runs", volume_frozen_runs, METH_NOARGS, NULL},
    {"frozen_covers", volume_frozen_covers, METH_VARARGS, NULL},
    {"referred", volume_referred, METH_VARARGS, NULL},
    {"frozen_referred", volume_frozen_referred, METH_VARARGS, NULL},
    {"refer", volume_refer, METH_VARARGS, NULL},
    {"overlay_frozen", volume_overlay_frozen, METH_VARARGS, NULL},
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
