/* VolumeCore.submit: a batch of requests is carried out, and sorted by what is to come of each. */
#include "volume_py.h"

#include <errno.h>

#include "batch.h"
#include "request.h"

enum {
    INLINE_ACTIONS = 128,
    RELEASE_GIL_ABOVE = 256 * 1024, /* bytes in a batch; below, the hand-over costs more */
    SLOW_READ_ABOVE = 4 << 20,      /* bytes: longer reads leave the event loop's thread */
};

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

PyObject *bd_py_submit(PyObject *self, PyObject *args)
{
    PyObject *sequence;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "OK:submit", &sequence, &now_ns))
        return NULL;
    struct bd_volume *volume = bd_volume_of(self);
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
