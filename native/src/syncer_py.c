/* Python face of syncers. The syncer's own lock is held for moments, and never over the GIL: its
 * thread has none, and gives the lock up for the sync. */
#include "syncer_py.h"

#include "journal_py.h"
#include "syncer.h"

typedef struct {
    PyObject_HEAD PyObject *journal; /* keeps it */
    struct bd_syncer *syncer;        /* NULL once it was closed */
} bd_syncer_object;

static PyTypeObject syncer_type;

static PyObject *syncer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)kwargs;
    PyObject *journal;
    if (!PyArg_ParseTuple(args, "O!:Syncer", &bd_journal_type, &journal))
        return NULL;
    bd_syncer_object *self = (bd_syncer_object *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    int error;
    self->syncer = bd_syncer_new(bd_journal_of(journal), &error);
    if (self->syncer == NULL) {
        Py_DECREF(self);
        return bd_raise_errno(error);
    }
    self->journal = Py_NewRef(journal);
    return (PyObject *)self;
}

static void end(bd_syncer_object *self)
{
    struct bd_syncer *syncer = self->syncer;
    self->syncer = NULL;
    if (syncer != NULL) {
        Py_BEGIN_ALLOW_THREADS; /* a simulated file waits for the GIL */
        bd_syncer_free(syncer);
        Py_END_ALLOW_THREADS;
    }
}

static void syncer_dealloc(PyObject *self_object)
{
    bd_syncer_object *self = (bd_syncer_object *)self_object;
    end(self);
    Py_XDECREF(self->journal);
    Py_TYPE(self_object)->tp_free(self_object);
}

static struct bd_syncer *open_syncer(PyObject *self)
{
    struct bd_syncer *syncer = ((bd_syncer_object *)self)->syncer;
    if (syncer == NULL)
        PyErr_SetString(PyExc_ValueError, "the syncer was closed");
    return syncer;
}

static PyObject *syncer_fileno(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_syncer *syncer = open_syncer(self);
    return syncer == NULL ? NULL : PyLong_FromLong(bd_syncer_event(syncer));
}

static PyObject *syncer_ask(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_syncer *syncer = open_syncer(self);
    return syncer == NULL ? NULL : PyLong_FromUnsignedLongLong(bd_syncer_ask(syncer));
}

static PyObject *syncer_done(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_syncer *syncer = open_syncer(self);
    if (syncer == NULL)
        return NULL;
    int error;
    uint64_t done = bd_syncer_done(syncer, &error);
    return Py_BuildValue("(Ki)", (unsigned long long)done, -error);
}

static PyObject *syncer_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    end((bd_syncer_object *)self);
    Py_RETURN_NONE;
}

static PyMethodDef syncer_methods[] = {
    {"fileno", syncer_fileno, METH_NOARGS, NULL},
    {"ask", syncer_ask, METH_NOARGS, NULL},
    {"done", syncer_done, METH_NOARGS, NULL},
    {"close", syncer_close, METH_NOARGS, NULL},
    {0},
};

static PyTypeObject syncer_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._native.Syncer",
    .tp_basicsize = sizeof(bd_syncer_object),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = syncer_new,
    .tp_dealloc = syncer_dealloc,
    .tp_methods = syncer_methods,
};

int bd_syncer_register(PyObject *module)
{
    return PyModule_AddType(module, &syncer_type);
}
