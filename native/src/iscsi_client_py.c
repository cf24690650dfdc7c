/* Python face of iSCSI clients of the loop: functions on a Loop and its LoopClients. */
#include "iscsi_client_py.h"

#include <errno.h>
#include <unistd.h>

#include "account_py.h"
#include "iscsi_serve.h"
#include "limit_py.h"
#include "loop_py.h"
#include "volume_py.h"

/* The iSCSI client of a LoopClient; NULL with an exception. */
static struct bd_client *client_of(PyObject *object)
{
    if (!PyObject_TypeCheck(object, &bd_loop_client_type) ||
        !bd_iscsi_client_is(bd_loop_client_of(object))) {
        PyErr_SetString(PyExc_TypeError, "not an iSCSI client of a Loop");
        return NULL;
    }
    return bd_loop_client_of(object);
}

static bool terms_of(PyObject *tuple, struct bd_iscsi_terms *terms)
{
    int initial_r2t;
    int immediate_data;
    int header_digest;
    int data_digest;
    unsigned long long max_held;
    if (!PyArg_ParseTuple(tuple, "IIIIIppppK:terms", &terms->their_max_recv, &terms->our_max_recv,
                          &terms->max_burst, &terms->first_burst, &terms->max_bursts, &initial_r2t,
                          &immediate_data, &header_digest, &data_digest, &max_held))
        return false;
    terms->initial_r2t = initial_r2t;
    terms->immediate_data = immediate_data;
    terms->header_digest = header_digest;
    terms->data_digest = data_digest;
    terms->max_held = max_held;
    bool good = terms->their_max_recv > 0 && terms->their_max_recv <= BD_ISCSI_MAX_SEGMENT &&
                terms->our_max_recv > 0 && terms->our_max_recv <= BD_ISCSI_MAX_SEGMENT &&
                terms->max_burst > 0 && terms->max_bursts > 0 &&
                terms->max_bursts <= BD_ISCSI_MAX_BURSTS && max_held > 0;
    if (!good)
        PyErr_SetString(PyExc_ValueError, "iscsi_add: no such terms");
    return good;
}

/* One of (lun, core, account, limit, size, block_size, read_only); the objects are in `kept` then.
 */
static bool take_lun(PyObject *tuple, struct bd_iscsi_lun *luns, PyObject *kept)
{
    unsigned int lun;
    PyObject *core;
    PyObject *counted;
    struct bd_account *account;
    PyObject *limited;
    struct bd_limit *limit;
    unsigned long long size;
    unsigned int block_size;
    int read_only;
    if (!PyArg_ParseTuple(tuple, "IO!OOKIp:lun", &lun, &bd_volume_type, &core, &counted, &limited,
                          &size, &block_size, &read_only) ||
        bd_account_of(counted, &account) < 0 || bd_limit_of(limited, &limit) < 0)
        return false;
    if (lun >= BD_ISCSI_LUNS || block_size == 0 || (block_size & (block_size - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "iscsi_add: no such unit");
        return false;
    }
    luns[lun] = (struct bd_iscsi_lun){.volume = ((bd_volume_object *)core)->volume,
                                      .account = account,
                                      .limit = limit,
                                      .size = size,
                                      .block_shift = (uint32_t)__builtin_ctz(block_size),
                                      .read_only = read_only != 0};
    return PyList_Append(kept, core) == 0 && PyList_Append(kept, counted) == 0 &&
           PyList_Append(kept, limited) == 0;
}

static bool take_luns(PyObject *sequence, struct bd_iscsi_lun *luns, PyObject *kept)
{
    PyObject *fast = PySequence_Fast(sequence, "iscsi_add: luns");
    if (fast == NULL)
        return false;
    bool taken = true;
    for (Py_ssize_t i = 0; taken && i < PySequence_Fast_GET_SIZE(fast); i++)
        taken = take_lun(PySequence_Fast_GET_ITEM(fast, i), luns, kept);
    if (taken && PyList_GET_SIZE(kept) == 0) {
        PyErr_SetString(PyExc_ValueError, "iscsi_add: no unit");
        taken = false;
    }
    Py_DECREF(fast);
    return taken;
}

static bool take_bursts(PyObject *sequence, struct bd_iscsi_command *command)
{
    PyObject *fast = PySequence_Fast(sequence, "iscsi_add: bursts");
    if (fast == NULL)
        return false;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(fast);
    bool taken = count <= BD_ISCSI_MAX_BURSTS;
    if (!taken)
        PyErr_SetString(PyExc_ValueError, "iscsi_add: too many bursts");
    for (Py_ssize_t i = 0; taken && i < count; i++) {
        struct bd_iscsi_burst *burst = &command->bursts[i];
        taken = PyArg_ParseTuple(PySequence_Fast_GET_ITEM(fast, i), "IIII:burst", &burst->ttt,
                                 &burst->at, &burst->end, &burst->data_sn) != 0;
    }
    command->burst_count = (unsigned)count;
    Py_DECREF(fast);
    return taken;
}

/* One of (bhs, data, asked, r2t_sn, unsolicited, unsolicited_sn, bursts). */
static bool take_command(PyObject *tuple, struct bd_client *client)
{
    struct bd_iscsi_command command = {0};
    Py_buffer bhs;
    Py_buffer data;
    int unsolicited;
    PyObject *bursts;
    if (!PyArg_ParseTuple(tuple, "y*y*IIpIO:command", &bhs, &data, &command.asked, &command.r2t_sn,
                          &unsolicited, &command.unsolicited_sn, &bursts))
        return false;
    bool taken = take_bursts(bursts, &command);
    if (taken) {
        int error = -EINVAL;
        if (bhs.len == BD_ISCSI_BHS && data.len <= BD_ISCSI_MAX_TRANSFER) {
            memcpy(command.bhs, bhs.buf, BD_ISCSI_BHS);
            command.got = (uint32_t)data.len;
            command.unsolicited = unsolicited != 0;
            error = bd_iscsi_client_import(client, &command, data.buf);
        }
        taken = error == 0;
        if (error == -ENOMEM)
            PyErr_NoMemory();
        else if (error < 0)
            PyErr_SetString(PyExc_ValueError, "iscsi_add: not a command that is served here");
    }
    PyBuffer_Release(&bhs);
    PyBuffer_Release(&data);
    return taken;
}

static bool take_commands(PyObject *sequence, struct bd_client *client)
{
    PyObject *fast = PySequence_Fast(sequence, "iscsi_add: commands");
    if (fast == NULL)
        return false;
    bool taken = true;
    for (Py_ssize_t i = 0; taken && i < PySequence_Fast_GET_SIZE(fast); i++)
        taken = take_command(PySequence_Fast_GET_ITEM(fast, i), client);
    Py_DECREF(fast);
    return taken;
}

static PyObject *iscsi_add(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *loop;
    int fd;
    PyObject *terms_tuple;
    PyObject *luns_sequence;
    PyObject *commands;
    Py_buffer input;
    PyObject *owner;
    struct bd_iscsi_numbers numbers;
    struct bd_iscsi_terms terms;
    if (!PyArg_ParseTuple(args, "O!iO!(IIII)OOy*O:iscsi_add", &bd_loop_type, &loop, &fd,
                          &PyTuple_Type, &terms_tuple, &numbers.exp_cmd_sn, &numbers.max_cmd_sn,
                          &numbers.stat_sn, &numbers.next_ttt, &luns_sequence, &commands, &input,
                          &owner))
        return NULL;
    PyObject *added = NULL;
    struct bd_client *client = NULL;
    struct bd_iscsi_lun *luns = PyMem_Calloc(BD_ISCSI_LUNS, sizeof *luns);
    PyObject *kept = PyList_New(0);
    int copy = -1;
    if (((bd_loop_object *)loop)->loop == NULL)
        PyErr_SetString(PyExc_ValueError, "the loop is closed");
    else if (luns == NULL || kept == NULL)
        PyErr_NoMemory();
    else if (terms_of(terms_tuple, &terms) && take_luns(luns_sequence, luns, kept))
        copy = bd_loop_duplicate(fd);
    if (copy >= 0) {
        client = bd_iscsi_client_new(copy, &terms, &numbers, luns, input.buf, (size_t)input.len);
        if (client == NULL) {
            close(copy);
            PyErr_NoMemory();
        }
    }
    if (client != NULL) {
        if (take_commands(commands, client))
            added = bd_loop_client_add((bd_loop_object *)loop, client, kept, owner);
        else
            bd_client_release(client);
    }
    PyMem_Free(luns);
    Py_XDECREF(kept);
    PyBuffer_Release(&input);
    return added;
}

static PyObject *iscsi_interrupt(PyObject *module, PyObject *object)
{
    (void)module;
    struct bd_client *client = client_of(object);
    if (client == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    bd_iscsi_client_interrupt(client);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

static PyObject *iscsi_give(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *object;
    unsigned int itt;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "OIz*:iscsi_give", &object, &itt, &data))
        return NULL;
    struct bd_client *client = client_of(object);
    PyObject *given = NULL;
    if (client != NULL)
        given = PyBool_FromLong(bd_iscsi_client_give(client, itt, data.buf, (size_t)data.len));
    PyBuffer_Release(&data);
    return given;
}

static PyObject *bursts_of(const struct bd_iscsi_command *command)
{
    PyObject *list = PyList_New(0);
    for (unsigned i = 0; list != NULL && i < command->burst_count; i++) {
        const struct bd_iscsi_burst *burst =
            &command->bursts[(command->first_burst + i) % BD_ISCSI_MAX_BURSTS];
        PyObject *tuple =
            Py_BuildValue("(IIII)", burst->ttt, burst->at, burst->end, burst->data_sn);
        if (tuple == NULL || PyList_Append(list, tuple) < 0)
            Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    return list;
}

/* The place of a command that waits for limits goes along; None for others. */
static PyObject *place_of(struct bd_client *client, struct bd_iscsi_command *command)
{
    if (!command->reservation.made)
        return Py_NewRef(Py_None);
    return bd_reservation_move(bd_iscsi_client_limit(client, command), &command->reservation);
}

static PyObject *command_of(struct bd_client *client, struct bd_iscsi_command *command)
{
    PyObject *bursts = bursts_of(command);
    PyObject *place = place_of(client, command);
    if (bursts == NULL || place == NULL) {
        Py_XDECREF(bursts);
        Py_XDECREF(place);
        return NULL;
    }
    Py_ssize_t length = command->action.data == NULL ? 0 : (Py_ssize_t)command->got;
    return Py_BuildValue("(iy#y#IIOINN)", (int)command->state, (const char *)command->bhs,
                         (Py_ssize_t)BD_ISCSI_BHS,
                         length > 0 ? (const char *)command->action.data : "", length,
                         command->asked, command->r2t_sn, command->unsolicited ? Py_True : Py_False,
                         command->unsolicited_sn, bursts, place);
}

static PyObject *iscsi_state(PyObject *module, PyObject *object)
{
    (void)module;
    struct bd_client *client = client_of(object);
    if (client == NULL)
        return NULL;
    if (!bd_iscsi_client_stopped(client)) {
        PyErr_SetString(PyExc_RuntimeError, "iscsi_state() of a client that is in the loop");
        return NULL;
    }
    if (bd_iscsi_client_unwind(client) < 0)
        return PyErr_NoMemory();
    PyObject *list = PyList_New(0);
    struct bd_iscsi_command *command = bd_iscsi_client_commands(client);
    for (; list != NULL && command != NULL; command = command->next) {
        PyObject *tuple = command_of(client, command);
        if (tuple == NULL || PyList_Append(list, tuple) < 0)
            Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    if (list == NULL)
        return NULL;
    struct bd_iscsi_numbers numbers = bd_iscsi_client_numbers(client);
    return Py_BuildValue("((IIII)N)", numbers.exp_cmd_sn, numbers.max_cmd_sn, numbers.stat_sn,
                         numbers.next_ttt, list);
}

static PyObject *iscsi_open(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *object;
    int lun = -1;
    if (!PyArg_ParseTuple(args, "O|i:iscsi_open", &object, &lun))
        return NULL;
    struct bd_client *client = client_of(object);
    return client == NULL ? NULL : PyLong_FromUnsignedLong(bd_iscsi_client_open(client, lun));
}

static PyObject *iscsi_heard(PyObject *module, PyObject *object)
{
    (void)module;
    struct bd_client *client = client_of(object);
    return client == NULL ? NULL : PyBool_FromLong(bd_iscsi_client_heard(client));
}

static PyMethodDef functions[] = {
    {"iscsi_add", iscsi_add, METH_VARARGS, NULL},
    {"iscsi_interrupt", iscsi_interrupt, METH_O, NULL},
    {"iscsi_give", iscsi_give, METH_VARARGS, NULL},
    {"iscsi_state", iscsi_state, METH_O, NULL},
    {"iscsi_open", iscsi_open, METH_VARARGS, NULL},
    {"iscsi_heard", iscsi_heard, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int bd_iscsi_register(PyObject *module)
{
    if (PyModule_AddIntConstant(module, "ISCSI_COLLECTING", BD_ISCSI_COLLECTING) < 0 ||
        PyModule_AddIntConstant(module, "ISCSI_MAILED", BD_ISCSI_MAILED) < 0 ||
        PyModule_AddIntConstant(module, "ISCSI_FAILED", BD_ISCSI_FAILED) < 0 ||
        PyModule_AddIntConstant(module, "ISCSI_UNSYNCED", BD_ISCSI_UNSYNCED) < 0 ||
        PyModule_AddIntConstant(module, "ISCSI_WAITING", BD_ISCSI_WAITING) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
