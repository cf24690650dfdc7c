#include "limit_py.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct {
    PyObject_HEAD struct bd_limit limit;
} limit_object;

typedef struct {
    PyObject_HEAD PyObject *limit; /* a Limit */
    struct bd_reservation reservation;
} reservation_object;

static struct bd_limit *self_of(PyObject *object)
{
    return &((limit_object *)object)->limit;
}

int bd_limit_of(PyObject *object, struct bd_limit **limit)
{
    *limit = NULL;
    if (object == Py_None)
        return 0;
    if (!PyObject_TypeCheck(object, &bd_limit_type)) {
        PyErr_SetString(PyExc_TypeError, "neither a Limit nor None");
        return -1;
    }
    *limit = self_of(object);
    return 0;
}

static PyObject *limit_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (!PyArg_ParseTuple(args, ":Limit") || (kwargs != NULL && PyDict_GET_SIZE(kwargs) > 0)) {
        PyErr_SetString(PyExc_TypeError, "Limit() takes no arguments");
        return NULL;
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self != NULL)
        bd_limit_init(self_of(self));
    return self;
}

static void limit_dealloc(PyObject *object)
{
    bd_limit_destroy(self_of(object));
    Py_TYPE(object)->tp_free(object);
}

/* set((ops, read ops, write ops, bytes, read bytes, written bytes), burst_ns, now_ns) */
static PyObject *limit_set(PyObject *object, PyObject *args)
{
    unsigned long long given[BD_LIMITS];
    unsigned long long burst_ns;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "(KKKKKK)KK:set", &given[0], &given[1], &given[2], &given[3],
                          &given[4], &given[5], &burst_ns, &now_ns))
        return NULL;
    uint64_t rates[BD_LIMITS];
    bool good = burst_ns <= BD_LIMIT_MAX_BURST_NS;
    for (int kind = 0; kind < BD_LIMITS; kind++) {
        rates[kind] = given[kind];
        good = good && rates[kind] <= BD_LIMIT_MAX_RATE;
    }
    if (!good) {
        PyErr_SetString(PyExc_ValueError, "set: a rate or a burst beyond LIMIT_MAX_*");
        return NULL;
    }
    bd_limit_set(self_of(object), rates, burst_ns, now_ns);
    Py_RETURN_NONE;
}

static PyObject *limit_is_set(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(bd_limit_is_set(self_of(object)));
}

/* held() -> (reservations now, requests that waited, nanoseconds) */
static PyObject *limit_held(PyObject *object, PyObject *unused)
{
    (void)unused;
    struct bd_held held = bd_limit_held(self_of(object));
    return Py_BuildValue("(KKK)", (unsigned long long)held.waiting, (unsigned long long)held.count,
                         (unsigned long long)held.ns);
}

static PyMethodDef limit_methods[] = {
    {"set", limit_set, METH_VARARGS, NULL},
    {"held", limit_held, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef limit_getset[] = {
    {"is_set", limit_is_set, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject bd_limit_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Limit",
    .tp_basicsize = sizeof(limit_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "How much the clients of one volume may ask for.",
    .tp_new = limit_new,
    .tp_dealloc = limit_dealloc,
    .tp_methods = limit_methods,
    .tp_getset = limit_getset,
};

/* Reservation */

static PyTypeObject reservation_type;

static PyObject *reservation_of(PyObject *limit)
{
    PyObject *object = reservation_type.tp_alloc(&reservation_type, 0); /* all zeros */
    if (object != NULL)
        ((reservation_object *)object)->limit = Py_NewRef(limit);
    return object;
}

static PyObject *reservation_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)type; /* there are no others */
    (void)kwargs;
    PyObject *limit;
    if (!PyArg_ParseTuple(args, "O!:Reservation", &bd_limit_type, &limit))
        return NULL;
    return reservation_of(limit);
}

static void reservation_dealloc(PyObject *object)
{
    reservation_object *self = (reservation_object *)object;
    if (self->limit != NULL)
        bd_limit_give_up(self_of(self->limit), &self->reservation);
    Py_XDECREF(self->limit);
    Py_TYPE(object)->tp_free(object);
}

PyObject *bd_reservation_move(struct bd_limit *limit, struct bd_reservation *reservation)
{
    PyObject *owner = (PyObject *)((char *)limit - offsetof(limit_object, limit));
    PyObject *object = reservation_of(owner);
    if (object != NULL) {
        ((reservation_object *)object)->reservation = *reservation;
        reservation->made = false;
    }
    return object;
}

/* ask(op, length, now_ns) -> 0, or when to ask again */
static PyObject *reservation_ask(PyObject *object, PyObject *args)
{
    reservation_object *self = (reservation_object *)object;
    unsigned int op;
    unsigned long long length;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "IKK:ask", &op, &length, &now_ns))
        return NULL;
    uint64_t until_ns =
        bd_limit_ask(self_of(self->limit), &self->reservation,
                     op < BD_OP_OTHER ? (enum bd_op)op : BD_OP_OTHER, length, now_ns);
    return PyLong_FromUnsignedLongLong(until_ns);
}

static PyMethodDef reservation_methods[] = {
    {"ask", reservation_ask, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject reservation_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Reservation",
    .tp_basicsize = sizeof(reservation_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The place of the next request of one client.",
    .tp_new = reservation_new,
    .tp_dealloc = reservation_dealloc,
    .tp_methods = reservation_methods,
};

int bd_limit_register(PyObject *module)
{
    PyObject *most = PyLong_FromUnsignedLongLong(BD_LIMIT_MAX_RATE);
    PyObject *longest = PyLong_FromUnsignedLongLong(BD_LIMIT_MAX_BURST_NS);
    bool failed = most == NULL || longest == NULL || PyType_Ready(&reservation_type) < 0 ||
                  PyType_Ready(&bd_limit_type) < 0 ||
                  PyModule_AddObjectRef(module, "LIMIT_MAX_RATE", most) < 0 ||
                  PyModule_AddObjectRef(module, "LIMIT_MAX_BURST_NS", longest) < 0 ||
                  PyModule_AddObjectRef(module, "Reservation", (PyObject *)&reservation_type) < 0 ||
                  PyModule_AddObjectRef(module, "Limit", (PyObject *)&bd_limit_type) < 0;
    Py_XDECREF(most);
    Py_XDECREF(longest);
    return failed ? -1 : 0;
}
