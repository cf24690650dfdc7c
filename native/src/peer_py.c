/* Python face of what comes with every write between nodes. */
#include "peer_py.h"

#include "member.h"
#include "peer.h"
#include "volume_py.h"

/* The volume of an APPEND among `cores`, uuid -> VolumeCore: a new reference; NULL: there is none,
 * perhaps with an exception. */
static PyObject *core_of(PyObject *cores, const struct bd_peer_append *append)
{
    PyObject *key = PyBytes_FromStringAndSize((const char *)append->volume, BD_PEER_VOLUME);
    if (key == NULL)
        return NULL;
    PyObject *core = PyDict_GetItemWithError(cores, key); /* borrowed */
    Py_DECREF(key);
    if (core == NULL)
        return NULL;
    if (!PyObject_TypeCheck(core, &bd_volume_type)) {
        PyErr_SetString(PyExc_TypeError, "cores: VolumeCores are wanted");
        return NULL;
    }
    return Py_NewRef(core);
}

/* The ACK, or None; NULL with an exception. */
static PyObject *answer(PyObject *cores, const struct bd_peer_session *session,
                        const Py_buffer *head, const Py_buffer *records, uint64_t now_ns,
                        uint64_t boot_ns)
{
    struct bd_peer_append append;
    if (records->len > BD_PEER_AT_ONCE ||
        !bd_peer_is_append(head->buf, (size_t)head->len, session, &append))
        Py_RETURN_NONE;
    PyObject *core = core_of(cores, &append);
    if (core == NULL) {
        if (PyErr_Occurred())
            return NULL;
        Py_RETURN_NONE;
    }
    struct bd_member_plain asked = {append.epoch, append.written, append.first_seq,
                                    append.last_seq};
    uint64_t durable;
    bool taken;
    Py_BEGIN_ALLOW_THREADS;
    taken = bd_member_append_plain(bd_volume_of(core), &asked, records->buf, (size_t)records->len,
                                   now_ns, boot_ns, &durable);
    Py_END_ALLOW_THREADS;
    Py_DECREF(core);
    if (!taken)
        Py_RETURN_NONE;
    PyObject *ack = PyBytes_FromStringAndSize(NULL, BD_PEER_ACK_BYTES);
    if (ack != NULL)
        bd_peer_ack((uint8_t *)PyBytes_AS_STRING(ack), session, append.request, append.epoch,
                    append.last_seq, durable);
    return ack;
}

static PyObject *answer_append(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *cores;
    unsigned long long theirs, mine, now_ns, boot_ns;
    Py_buffer head;
    Py_buffer records;
    if (!PyArg_ParseTuple(args, "O!KKy*y*KK:answer_append", &PyDict_Type, &cores, &theirs, &mine,
                          &head, &records, &now_ns, &boot_ns))
        return NULL;
    struct bd_peer_session session = {.theirs = theirs, .mine = mine};
    PyObject *result = answer(cores, &session, &head, &records, now_ns, boot_ns);
    PyBuffer_Release(&head);
    PyBuffer_Release(&records);
    return result;
}

static PyObject *read_ack(PyObject *module, PyObject *args)
{
    (void)module;
    unsigned long long theirs, mine;
    Py_buffer head;
    if (!PyArg_ParseTuple(args, "KKy*:read_ack", &theirs, &mine, &head))
        return NULL;
    struct bd_peer_session session = {.theirs = theirs, .mine = mine};
    struct bd_peer_acked ack;
    bool is = bd_peer_is_ack(head.buf, (size_t)head.len, &session, &ack);
    PyBuffer_Release(&head);
    if (!is)
        Py_RETURN_NONE;
    return Py_BuildValue("(KKKK)", (unsigned long long)ack.request, (unsigned long long)ack.epoch,
                         (unsigned long long)ack.received, (unsigned long long)ack.durable);
}

static PyMethodDef functions[] = {
    {"read_ack", read_ack, METH_VARARGS, NULL},
    {"answer_append", answer_append, METH_VARARGS, NULL},
    {0},
};

int bd_peer_register(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "PEER_AT_ONCE", BD_PEER_AT_ONCE) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
