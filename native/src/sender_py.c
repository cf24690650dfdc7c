/* Python face of senders. What waits for the journal's lock, or ends jobs, does so without the GIL;
 * a sender is for one thread, so nobody looks at it meanwhile. */
#include "sender_py.h"

#include <errno.h>
#include <string.h>

#include "sender.h"
#include "volume_py.h"

typedef struct {
    PyObject_HEAD PyObject *core; /* keeps the volume */
    struct bd_sender *sender;
} bd_sender_object;

static PyTypeObject sender_type;

static struct bd_sender *sender_of(PyObject *self)
{
    return ((bd_sender_object *)self)->sender;
}

static PyObject *sender_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *core;
    unsigned long long epoch;
    if (!PyArg_ParseTuple(args, "O!K:Sender", &bd_volume_type, &core, &epoch))
        return NULL;
    if (bd_volume_of(core)->gate == NULL)
        return bd_raise_errno(-ENOENT);
    bd_sender_object *self = (bd_sender_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->sender = bd_sender_new(bd_volume_of(core), epoch);
    if (self->sender == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->core = Py_NewRef(core);
    return (PyObject *)self;
}

static void sender_dealloc(PyObject *self_object)
{
    bd_sender_object *self = (bd_sender_object *)self_object;
    bd_sender_free(self->sender);
    Py_XDECREF(self->core);
    Py_TYPE(self_object)->tp_free(self_object);
}

static PyObject *sender_begin(PyObject *self, PyObject *args)
{
    struct bd_sender *sender = sender_of(self);
    int wanted;
    unsigned long long own_durable, taken, acked, durable, next_tag, room;
    PyObject *members;
    if (!PyArg_ParseTuple(args, "iKKKKKKO!:begin", &wanted, &own_durable, &taken, &acked, &durable,
                          &next_tag, &room, &PyTuple_Type, &members))
        return NULL;
    if (sender->on) {
        PyErr_SetString(PyExc_ValueError, "it is lent already");
        return NULL;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(members);
    if (count > BD_SENDER_MEMBERS)
        Py_RETURN_FALSE;
    for (Py_ssize_t i = 0; i < count; i++) {
        int counts, in_step, busy;
        unsigned long long sent, received, synced;
        PyObject *member = PyTuple_GET_ITEM(members, i);
        if (!PyTuple_Check(member) || !PyArg_ParseTuple(member, "pppKKK:member", &counts, &in_step,
                                                        &busy, &sent, &received, &synced))
            return NULL;
        sender->members[i] = (struct bd_sender_member){.counts = counts != 0,
                                                       .in_step = in_step != 0,
                                                       .busy = busy != 0,
                                                       .sent = sent,
                                                       .received = received,
                                                       .durable = synced};
    }
    sender->member_count = (int)count;
    sender->wanted = wanted;
    sender->own_durable = own_durable;
    sender->taken = taken;
    sender->acked = acked;
    sender->durable = durable;
    sender->next_tag = next_tag;
    sender->room = (size_t)room;
    return PyBool_FromLong(bd_sender_begin(sender));
}

static PyObject *members_of(const struct bd_sender *sender)
{
    PyObject *list = PyList_New(sender->member_count);
    for (int i = 0; list != NULL && i < sender->member_count; i++) {
        const struct bd_sender_member *member = &sender->members[i];
        PyObject *each = Py_BuildValue(
            "(KKKKKK)", (unsigned long long)member->tag, (unsigned long long)member->sent,
            (unsigned long long)member->received, (unsigned long long)member->durable,
            (unsigned long long)member->sent_ns, (unsigned long long)member->answered_ns);
        if (each == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, each);
    }
    return list;
}

static PyObject *batches_of(const struct bd_sender *sender)
{
    PyObject *list = PyList_New(sender->batch_count);
    for (uint32_t i = 0; list != NULL && i < sender->batch_count; i++) {
        const struct bd_sender_batch *batch = &sender->batches[i];
        PyObject *each = Py_BuildValue("(KKy#)", (unsigned long long)batch->first,
                                       (unsigned long long)batch->last, (const char *)batch->bytes,
                                       (Py_ssize_t)batch->length);
        if (each == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, each);
    }
    return list;
}

static PyObject *sender_end(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_sender *sender = sender_of(self);
    if (!sender->on)
        Py_RETURN_NONE;
    PyObject *members = members_of(sender);
    PyObject *batches = members == NULL ? NULL : batches_of(sender);
    if (batches == NULL) {
        Py_XDECREF(members);
        return NULL;
    }
    bd_sender_end(sender);
    return Py_BuildValue("(KKKKKKNN)", (unsigned long long)sender->taken,
                         (unsigned long long)sender->newest, (unsigned long long)sender->acked,
                         (unsigned long long)sender->durable, (unsigned long long)sender->next_tag,
                         (unsigned long long)sender->taken_bytes, members, batches);
}

/* The bytes of some batches, joined. */
static PyObject *payload_of(const struct bd_sender *sender, const struct bd_sender_send *send)
{
    const struct bd_sender_batch *batches = sender->batches + send->from;
    size_t length = 0;
    for (uint32_t i = 0; i < send->count; i++)
        length += batches[i].length;
    PyObject *payload = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (payload == NULL)
        return NULL;
    char *to = PyBytes_AS_STRING(payload);
    for (uint32_t i = 0; i < send->count; i++) {
        memcpy(to, batches[i].bytes, batches[i].length);
        to += batches[i].length;
    }
    return payload;
}

/* ([(member, tag, first, last, records)], whether it is still lent and nothing else is to do). */
static PyObject *sends_of(const struct bd_sender *sender, int error)
{
    PyObject *list = PyList_New(sender->send_count);
    PyObject *payload = NULL;
    for (int i = 0; list != NULL && i < sender->send_count; i++) {
        const struct bd_sender_send *send = &sender->sends[i];
        bool same = i > 0 && send->from == send[-1].from && send->count == send[-1].count;
        if (!same)
            Py_XSETREF(payload, payload_of(sender, send));
        PyObject *each = payload == NULL
                             ? NULL
                             : Py_BuildValue("(iKKKO)", send->member, (unsigned long long)send->tag,
                                             (unsigned long long)send->first,
                                             (unsigned long long)send->last, payload);
        if (each == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, each);
    }
    Py_XDECREF(payload);
    return list == NULL ? NULL : Py_BuildValue("(NO)", list, error == 0 ? Py_True : Py_False);
}

static PyObject *sender_turn(PyObject *self, PyObject *args)
{
    struct bd_sender *sender = sender_of(self);
    unsigned long long now_ns;
    int error;
    if (!PyArg_ParseTuple(args, "K:turn", &now_ns))
        return NULL;
    if (!sender->on)
        Py_RETURN_NONE;
    Py_BEGIN_ALLOW_THREADS;
    error = bd_sender_turn(sender, now_ns);
    Py_END_ALLOW_THREADS;
    return sends_of(sender, error);
}

static PyObject *sender_acked(PyObject *self, PyObject *args)
{
    struct bd_sender *sender = sender_of(self);
    unsigned long long tag, epoch, received, durable, now_ns;
    int error;
    if (!PyArg_ParseTuple(args, "KKKKK:acked", &tag, &epoch, &received, &durable, &now_ns))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    error = bd_sender_acked(sender, tag, epoch, received, durable, now_ns);
    Py_END_ALLOW_THREADS;
    if (error == -ENOENT)
        Py_RETURN_NONE;
    return sends_of(sender, error);
}

static PyObject *sender_progress(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_sender *sender = sender_of(self);
    return Py_BuildValue("(KK)", (unsigned long long)sender->acked,
                         (unsigned long long)sender->durable);
}

static PyObject *sender_on(PyObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(sender_of(self)->on);
}

static PyMethodDef sender_methods[] = {
    {"begin", sender_begin, METH_VARARGS, NULL},      {"end", sender_end, METH_NOARGS, NULL},
    {"turn", sender_turn, METH_VARARGS, NULL},        {"acked", sender_acked, METH_VARARGS, NULL},
    {"progress", sender_progress, METH_NOARGS, NULL}, {0},
};

static PyGetSetDef sender_attributes[] = {{"on", sender_on, NULL, NULL, NULL}, {0}};

static PyTypeObject sender_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Sender",
    .tp_basicsize = sizeof(bd_sender_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = sender_new,
    .tp_dealloc = sender_dealloc,
    .tp_methods = sender_methods,
    .tp_getset = sender_attributes,
};

int bd_sender_register(PyObject *module)
{
    return PyModule_AddType(module, &sender_type);
}
