#include "account_py.h"

#include "request.h"

typedef struct {
    PyObject_HEAD struct bd_account account;
} account_object;

static const char *const op_names[BD_OPS] = {"read",         "write", "flush",        "unmap",
                                             "write_zeroes", "cache", "block_status", "other"};

static struct bd_account *self_of(PyObject *object)
{
    return &((account_object *)object)->account;
}

int bd_account_of(PyObject *object, struct bd_account **account)
{
    *account = NULL;
    if (object == Py_None)
        return 0;
    if (!PyObject_TypeCheck(object, &bd_account_type)) {
        PyErr_SetString(PyExc_TypeError, "neither an Account nor None");
        return -1;
    }
    *account = self_of(object);
    return 0;
}

static PyObject *account_record(PyObject *object, PyObject *args)
{
    unsigned int op;
    unsigned long long length;
    int failed;
    unsigned long long elapsed_ns;
    if (!PyArg_ParseTuple(args, "IKpK:record", &op, &length, &failed, &elapsed_ns))
        return NULL;
    if (op >= BD_OPS) {
        PyErr_Format(PyExc_ValueError, "op %u: ACCOUNT_OPS has %d", op, BD_OPS);
        return NULL;
    }
    bd_account_record(self_of(object), op, length, failed != 0, elapsed_ns);
    Py_RETURN_NONE;
}

static uint64_t load(const atomic_uint_fast64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static PyObject *snapshot_of_op(const struct bd_account *account, int op)
{
    PyObject *buckets = PyTuple_New(BD_ACCOUNT_BUCKETS);
    if (buckets == NULL)
        return NULL;
    uint64_t requests = 0;
    for (int i = 0; i < BD_ACCOUNT_BUCKETS; i++) {
        uint64_t count = load(&account->ops[op].buckets[i]);
        requests += count;
        PyObject *number = PyLong_FromUnsignedLongLong(count);
        if (number == NULL) {
            Py_DECREF(buckets);
            return NULL;
        }
        PyTuple_SET_ITEM(buckets, i, number);
    }
    return Py_BuildValue("(KKKKN)", (unsigned long long)requests,
                         (unsigned long long)load(&account->ops[op].bytes),
                         (unsigned long long)load(&account->ops[op].errors),
                         (unsigned long long)load(&account->ops[op].sum_ns), buckets);
}

static PyObject *account_snapshot(PyObject *object, PyObject *unused)
{
    (void)unused;
    PyObject *all = PyTuple_New(BD_OPS);
    for (int op = 0; all != NULL && op < BD_OPS; op++) {
        PyObject *one = snapshot_of_op(self_of(object), op);
        if (one == NULL)
            Py_CLEAR(all);
        else
            PyTuple_SET_ITEM(all, op, one);
    }
    return all;
}

static PyObject *account_in_flight(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_account *account = self_of(object);
    return Py_BuildValue("(KK)", (unsigned long long)load(&account->requests_in_flight),
                         (unsigned long long)load(&account->bytes_in_flight));
}

/* Requests that were counted in, or are to be, and their payload. */
struct crowd {
    uint64_t requests;
    uint64_t payload;
};

/* The i-th of a list of Requests; NULL with TypeError. */
static bd_request *request_at(PyObject *list, Py_ssize_t i)
{
    PyObject *item = PyList_GET_ITEM(list, i);
    if (!PyObject_TypeCheck(item, &bd_request_type)) {
        PyErr_SetString(PyExc_TypeError, "not a Request");
        return NULL;
    }
    return (bd_request *)item;
}

static PyObject *account_begin(PyObject *object, PyObject *args)
{
    PyObject *list;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "O!K:begin", &PyList_Type, &list, &now_ns))
        return NULL;
    struct crowd crowd = {0, 0};
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        bd_request *request = request_at(list, i);
        if (request == NULL)
            break;
        request->begun_ns = now_ns;
        crowd.requests++;
        crowd.payload += bd_payload(request->op, request->length);
    }
    bd_account_enter(self_of(object), crowd.requests, crowd.payload);
    if (PyErr_Occurred() != NULL)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *account_end(PyObject *object, PyObject *args)
{
    PyObject *list;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "O!K:end", &PyList_Type, &list, &now_ns))
        return NULL;
    struct bd_account *account = self_of(object);
    struct crowd crowd = {0, 0};
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        bd_request *request = request_at(list, i);
        if (request == NULL)
            break;
        enum bd_op op = request->op < BD_OP_OTHER ? (enum bd_op)request->op : BD_OP_OTHER;
        uint64_t payload = bd_payload(op, request->length);
        uint64_t elapsed_ns = now_ns > request->begun_ns ? now_ns - request->begun_ns : 0;
        crowd.requests++;
        crowd.payload += payload;
        bd_account_record(account, op, request->error == 0 ? payload : 0, request->error != 0,
                          elapsed_ns);
    }
    bd_account_leave(account, crowd.requests, crowd.payload);
    if (PyErr_Occurred() != NULL)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *account_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (!PyArg_ParseTuple(args, ":Account") || (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0)) {
        PyErr_SetString(PyExc_TypeError, "Account() takes no arguments");
        return NULL;
    }
    return type->tp_alloc(type, 0); /* all zeros */
}

static PyMethodDef account_methods[] = {
    {"record", account_record, METH_VARARGS, NULL},
    {"snapshot", account_snapshot, METH_NOARGS, NULL},
    {"in_flight", account_in_flight, METH_NOARGS, NULL},
    {"begin", account_begin, METH_VARARGS, NULL},
    {"end", account_end, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyTypeObject bd_account_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Account",
    .tp_basicsize = sizeof(account_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "What the clients of one volume asked for by one protocol, and how long it took.",
    .tp_new = account_new,
    .tp_methods = account_methods,
};

static PyObject *ops_tuple(void)
{
    PyObject *ops = PyTuple_New(BD_OPS);
    for (int op = 0; ops != NULL && op < BD_OPS; op++) {
        PyObject *name = PyUnicode_InternFromString(op_names[op]);
        if (name == NULL)
            Py_CLEAR(ops);
        else
            PyTuple_SET_ITEM(ops, op, name);
    }
    return ops;
}

static PyObject *bounds_tuple(void)
{
    PyObject *bounds = PyTuple_New(BD_ACCOUNT_BOUNDS);
    for (unsigned i = 0; bounds != NULL && i < BD_ACCOUNT_BOUNDS; i++) {
        PyObject *bound = PyLong_FromUnsignedLongLong(bd_account_bound_ns(i));
        if (bound == NULL)
            Py_CLEAR(bounds);
        else
            PyTuple_SET_ITEM(bounds, i, bound);
    }
    return bounds;
}

int bd_account_register(PyObject *module)
{
    PyObject *ops = ops_tuple();
    PyObject *bounds = bounds_tuple();
    int failed = ops == NULL || bounds == NULL || PyType_Ready(&bd_account_type) < 0 ||
                 PyModule_AddIntConstant(module, "OP_OTHER", BD_OP_OTHER) < 0 ||
                 PyModule_AddObjectRef(module, "ACCOUNT_OPS", ops) < 0 ||
                 PyModule_AddObjectRef(module, "ACCOUNT_BOUNDS_NS", bounds) < 0 ||
                 PyModule_AddObjectRef(module, "Account", (PyObject *)&bd_account_type) < 0;
    Py_XDECREF(ops);
    Py_XDECREF(bounds);
    return failed ? -1 : 0;
}
