#include "loop_py.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "account_py.h"
#include "limit_py.h"
#include "locks.h"
#include "nbd_serve.h"
#include "volume_py.h"

typedef struct {
    PyObject_HEAD struct bd_client *client;
    PyObject *kept;
    PyObject *owner;
    bool in_loop; /* the loop has a reference to this object, until it has told that it stopped */
} client_object;

struct bd_client *bd_loop_client_of(PyObject *object)
{
    return ((client_object *)object)->client;
}

int bd_loop_duplicate(int fd)
{
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0)
        PyErr_SetFromErrno(PyExc_OSError);
    return copy;
}

PyObject *bd_loop_client_add(bd_loop_object *loop, struct bd_client *client, PyObject *kept,
                             PyObject *owner)
{
    client_object *self = PyObject_GC_New(client_object, &bd_loop_client_type);
    if (self == NULL) {
        bd_client_release(client);
        return NULL;
    }
    self->client = client;
    self->kept = Py_NewRef(kept);
    self->owner = Py_NewRef(owner);
    self->in_loop = true;
    client->owner = self;
    PyObject_GC_Track((PyObject *)self);
    Py_INCREF(self);
    bd_loop_add(loop->loop, client);
    return (PyObject *)self;
}

/* LoopClient */

static int client_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(((client_object *)object)->kept);
    Py_VISIT(((client_object *)object)->owner);
    return 0;
}

static int client_clear(PyObject *object)
{
    Py_CLEAR(((client_object *)object)->owner);
    return 0; /* `kept` stays as long as C may use it */
}

static void client_dealloc(PyObject *object)
{
    client_object *self = (client_object *)object;
    PyObject_GC_UnTrack(object);
    self->client->owner = NULL; /* it may have news all the same: see take_news */
    bd_client_release(self->client);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->kept);
    PyObject_GC_Del(self);
}

static PyObject *client_take_mail(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_client *client = bd_loop_client_of(object);
    bd_lock(&client->lock);
    uint8_t *mail = client->mail;
    size_t length = client->mail_length;
    client->mail = NULL;
    client->mail_length = client->mail_capacity = 0;
    bd_loop_relieve(client);
    pthread_mutex_unlock(&client->lock);
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)mail, (Py_ssize_t)length);
    free(mail);
    return bytes;
}

/* take_paid() -> (reads, bytes of reads, writes and what counts as these, bytes of writes) */
static PyObject *client_take_paid(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_client *client = bd_loop_client_of(object);
    bd_lock(&client->lock);
    struct bd_tally paid = client->paid;
    client->paid = (struct bd_tally){0};
    pthread_mutex_unlock(&client->lock);
    uint64_t writes =
        paid.requests[BD_OP_WRITE] + paid.requests[BD_OP_UNMAP] + paid.requests[BD_OP_WRITE_ZEROES];
    return Py_BuildValue("(KKKK)", (unsigned long long)paid.requests[BD_OP_READ],
                         (unsigned long long)paid.bytes[BD_OP_READ], (unsigned long long)writes,
                         (unsigned long long)paid.bytes[BD_OP_WRITE]);
}

/* send(buffers) -> bytes that are unsent now */
static PyObject *client_send(PyObject *object, PyObject *argument)
{
    struct bd_client *client = bd_loop_client_of(object);
    PyObject *sequence = PySequence_Tuple(argument);
    if (sequence == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_GET_SIZE(sequence);
    size_t unsent = 0;
    bd_lock(&client->lock);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_buffer view;
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(sequence, i), &view, PyBUF_SIMPLE) < 0)
            break;
        struct iovec piece = {view.buf, (size_t)view.len};
        bd_client_send(client, &piece, view.len > 0, NULL);
        PyBuffer_Release(&view);
    }
    unsent = client->unsent;
    pthread_mutex_unlock(&client->lock);
    Py_DECREF(sequence);
    return PyErr_Occurred() != NULL ? NULL : PyLong_FromSize_t(unsent);
}

static PyObject *client_stop(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_client *client = bd_loop_client_of(object);
    bd_lock(&client->lock);
    client->asked = true;
    bd_client_stop(client);
    pthread_mutex_unlock(&client->lock);
    Py_RETURN_NONE;
}

static PyObject *client_cut(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_client *client = bd_loop_client_of(object);
    bd_lock(&client->lock);
    bd_client_cut(client);
    pthread_mutex_unlock(&client->lock);
    Py_RETURN_NONE;
}

/* leftover() -> (input, unsent): after it has stopped */
static PyObject *client_leftover(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_client *client = bd_loop_client_of(object);
    bd_lock(&client->lock);
    bool stopped = client->stopped;
    pthread_mutex_unlock(&client->lock);
    if (!stopped) {
        PyErr_SetString(PyExc_RuntimeError, "leftover() of a client that is in the loop");
        return NULL;
    }
    /* Nobody else has anything to do with it any more. */
    PyObject *input =
        PyBytes_FromStringAndSize((const char *)client->input.data + client->input.start,
                                  (Py_ssize_t)(client->input.end - client->input.start));
    client->input.start = client->input.end;
    PyObject *output = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)client->unsent);
    if (input == NULL || output == NULL) {
        Py_XDECREF(input);
        Py_XDECREF(output);
        return NULL;
    }
    char *at = PyBytes_AS_STRING(output);
    for (const struct bd_unsent *unsent = client->first_unsent; unsent != NULL;
         unsent = unsent->next) {
        memcpy(at, unsent->data, unsent->length);
        at += unsent->length;
    }
    return Py_BuildValue("(NN)", input, output);
}

static PyObject *client_counters(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_client *client = bd_loop_client_of(object);
    bd_lock(&client->lock);
    struct bd_tally counters = client->counters;
    pthread_mutex_unlock(&client->lock);
    return Py_BuildValue("(KKKKKKK)", (unsigned long long)counters.requests[BD_OP_READ],
                         (unsigned long long)counters.bytes[BD_OP_READ],
                         (unsigned long long)counters.requests[BD_OP_WRITE],
                         (unsigned long long)counters.bytes[BD_OP_WRITE],
                         (unsigned long long)counters.requests[BD_OP_FLUSH],
                         (unsigned long long)counters.requests[BD_OP_UNMAP],
                         (unsigned long long)counters.requests[BD_OP_WRITE_ZEROES]);
}

enum field { FIELD_STOPPED, FIELD_CUT, FIELD_ASKED, FIELD_STALLED, FIELD_UNSENT, FIELD_JOBS };

static PyObject *client_get(PyObject *object, void *closure)
{
    struct bd_client *client = bd_loop_client_of(object);
    bd_lock(&client->lock);
    bool stopped = client->stopped;
    bool cut = client->cut;
    bool asked = client->asked;
    bool stalled = client->stalled;
    size_t unsent = client->unsent;
    unsigned jobs = client->jobs;
    pthread_mutex_unlock(&client->lock);
    switch ((enum field)(intptr_t)closure) {
    case FIELD_STOPPED:
        return PyBool_FromLong(stopped);
    case FIELD_CUT:
        return PyBool_FromLong(cut);
    case FIELD_ASKED:
        return PyBool_FromLong(asked);
    case FIELD_STALLED:
        return PyBool_FromLong(stalled);
    case FIELD_UNSENT:
        return PyLong_FromSize_t(unsent);
    default:
        return PyLong_FromUnsignedLong(jobs);
    }
}

static PyObject *client_owner(PyObject *object, void *closure)
{
    (void)closure;
    PyObject *owner = ((client_object *)object)->owner;
    return Py_NewRef(owner != NULL ? owner : Py_None);
}

static PyMethodDef client_methods[] = {
    {"take_mail", client_take_mail, METH_NOARGS, NULL},
    {"take_paid", client_take_paid, METH_NOARGS, NULL},
    {"send", client_send, METH_O, NULL},
    {"stop", client_stop, METH_NOARGS, NULL},
    {"cut", client_cut, METH_NOARGS, NULL},
    {"leftover", client_leftover, METH_NOARGS, NULL},
    {"counters", client_counters, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef client_getset[] = {
    {"owner", client_owner, NULL, NULL, NULL},
    {"stopped", client_get, NULL, NULL, (void *)FIELD_STOPPED},
    {"was_cut", client_get, NULL, NULL, (void *)FIELD_CUT},
    {"was_asked", client_get, NULL, NULL, (void *)FIELD_ASKED},
    {"stalled", client_get, NULL, NULL, (void *)FIELD_STALLED},
    {"unsent", client_get, NULL, NULL, (void *)FIELD_UNSENT},
    {"jobs", client_get, NULL, NULL, (void *)FIELD_JOBS},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject bd_loop_client_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.LoopClient",
    .tp_basicsize = sizeof(client_object),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "One client's socket in a Loop.",
    .tp_dealloc = client_dealloc,
    .tp_traverse = client_traverse,
    .tp_clear = client_clear,
    .tp_methods = client_methods,
    .tp_getset = client_getset,
};

/* Loop */

static PyObject *loop_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    unsigned int workers;
    unsigned int readers;
    unsigned int pollers;
    if (!PyArg_ParseTuple(args, "III:Loop", &workers, &readers, &pollers))
        return NULL;
    bd_loop_object *self = (bd_loop_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->loop = bd_loop_new(workers, readers, pollers);
    if (self->loop == NULL) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* All clients that have news, as LoopClients. */
static PyObject *take_news(struct bd_loop *loop)
{
    PyObject *list = PyList_New(0);
    struct bd_client *client;
    while (list != NULL && (client = bd_loop_news(loop)) != NULL) {
        client_object *object = client->owner; /* with the GIL: nobody frees it meanwhile */
        if (object == NULL) {                  /* news of one that had stopped and was let go */
            bd_client_release(client);
            continue;
        }
        Py_INCREF(object);
        if (PyList_Append(list, (PyObject *)object) < 0)
            Py_CLEAR(list); /* its news is lost, as is whoever had memory for it */
        bd_lock(&client->lock);
        bool stopped = client->stopped;
        pthread_mutex_unlock(&client->lock);
        bd_client_release(client);
        if (stopped && object->in_loop) {
            object->in_loop = false;
            Py_DECREF(object);
        }
        Py_DECREF(object);
    }
    return list;
}

static void end_loop(bd_loop_object *self)
{
    Py_BEGIN_ALLOW_THREADS;
    bd_loop_end(self->loop);
    Py_END_ALLOW_THREADS;
}

static void loop_dealloc(PyObject *object)
{
    bd_loop_object *self = (bd_loop_object *)object;
    if (self->loop != NULL) {
        end_loop(self);
        Py_XDECREF(take_news(self->loop));
        bd_loop_free(self->loop);
    }
    Py_TYPE(object)->tp_free(object);
}

static bool is_open(const bd_loop_object *self)
{
    if (self->loop == NULL)
        PyErr_SetString(PyExc_ValueError, "the loop is closed");
    return self->loop != NULL;
}

static PyObject *loop_fileno(PyObject *object, PyObject *unused)
{
    (void)unused;
    bd_loop_object *self = (bd_loop_object *)object;
    return is_open(self) ? PyLong_FromLong(bd_loop_fd(self->loop)) : NULL;
}

static PyObject *loop_news(PyObject *object, PyObject *unused)
{
    (void)unused;
    bd_loop_object *self = (bd_loop_object *)object;
    return is_open(self) ? take_news(self->loop) : NULL;
}

static PyObject *loop_close(PyObject *object, PyObject *unused)
{
    (void)unused;
    bd_loop_object *self = (bd_loop_object *)object;
    if (self->loop == NULL)
        return PyList_New(0);
    end_loop(self);
    struct bd_loop *loop = self->loop;
    self->loop = NULL;
    PyObject *news = take_news(loop);
    bd_loop_free(loop);
    return news;
}

/* add_nbd(core, account, limit, fd, replies, size, minimum_block, max_payload, read_only, input,
 * owner) */
static PyObject *loop_add_nbd(PyObject *object, PyObject *args)
{
    bd_loop_object *self = (bd_loop_object *)object;
    PyObject *core;
    PyObject *counted;
    struct bd_account *account;
    PyObject *limited;
    struct bd_limit *limit;
    int fd;
    unsigned int replies;
    unsigned long long size;
    unsigned int minimum_block;
    unsigned int max_payload;
    int read_only;
    Py_buffer input;
    PyObject *owner;
    if (!is_open(self) ||
        !PyArg_ParseTuple(args, "O!OOiIKIIpy*O:add_nbd", &bd_volume_type, &core, &counted, &limited,
                          &fd, &replies, &size, &minimum_block, &max_payload, &read_only, &input,
                          &owner))
        return NULL;
    PyObject *added = NULL;
    PyObject *kept = NULL;
    struct bd_nbd_terms terms = {.replies = replies,
                                 .read_only = read_only != 0,
                                 .size = size,
                                 .minimum_block = minimum_block,
                                 .max_payload = max_payload};
    int copy = -1;
    if (replies > BD_NBD_EXTENDED || minimum_block == 0 ||
        (minimum_block & (minimum_block - 1)) != 0 || max_payload == 0 || max_payload > 64 << 20)
        PyErr_SetString(PyExc_ValueError, "add_nbd: no such terms");
    else if (bd_account_of(counted, &account) == 0 && bd_limit_of(limited, &limit) == 0 &&
             (kept = PyTuple_Pack(3, core, counted, limited)) != NULL)
        copy = bd_loop_duplicate(fd);
    if (copy >= 0) {
        struct bd_client *client = bd_nbd_client_new(((bd_volume_object *)core)->volume, copy,
                                                     &terms, input.buf, (size_t)input.len);
        if (client == NULL) {
            close(copy);
            PyErr_NoMemory();
        } else {
            client->account = account;
            client->limit = limit;
            added = bd_loop_client_add(self, client, kept, owner);
        }
    }
    Py_XDECREF(kept);
    PyBuffer_Release(&input);
    return added;
}

static PyMethodDef loop_methods[] = {
    {"fileno", loop_fileno, METH_NOARGS, NULL},
    {"news", loop_news, METH_NOARGS, NULL},
    {"add_nbd", loop_add_nbd, METH_VARARGS, NULL},
    {"close", loop_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject bd_loop_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Loop",
    .tp_basicsize = sizeof(bd_loop_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Threads that serve clients' sockets without the interpreter.",
    .tp_new = loop_new,
    .tp_dealloc = loop_dealloc,
    .tp_methods = loop_methods,
};

int bd_loop_register(PyObject *module)
{
    if (PyType_Ready(&bd_loop_type) < 0 || PyType_Ready(&bd_loop_client_type) < 0 ||
        PyModule_AddIntConstant(module, "NBD_SIMPLE", BD_NBD_SIMPLE) < 0 ||
        PyModule_AddIntConstant(module, "NBD_STRUCTURED", BD_NBD_STRUCTURED) < 0 ||
        PyModule_AddIntConstant(module, "NBD_EXTENDED", BD_NBD_EXTENDED) < 0 ||
        PyModule_AddObjectRef(module, "Loop", (PyObject *)&bd_loop_type) < 0)
        return -1;
    return PyModule_AddObjectRef(module, "LoopClient", (PyObject *)&bd_loop_client_type);
}
