/* Python face of gates. Calls that end jobs do so without the GIL. */
#include "gate_py.h"

#include <errno.h>

#include "gate.h"
#include "locks.h"
#include "volume_py.h"

static struct bd_volume *volume_of(PyObject *self)
{
    return ((bd_volume_object *)self)->volume;
}

/* The volume's gate; NULL with an exception when it has none. */
static struct bd_gate *gate_of(PyObject *self)
{
    struct bd_gate *gate = volume_of(self)->gate;
    if (gate == NULL)
        bd_raise_errno(-ENOENT);
    return gate;
}

PyObject *bd_py_gate(PyObject *self, PyObject *unused)
{
    (void)unused;
    int error = bd_gate_new(volume_of(self));
    if (error < 0)
        return bd_raise_errno(error);
    return PyLong_FromLong(volume_of(self)->gate->wake);
}

PyObject *bd_py_gate_open(PyObject *self, PyObject *args)
{
    unsigned long long start;
    int strict;
    unsigned long long timeout_ns;
    if (!PyArg_ParseTuple(args, "KpK:gate_open", &start, &strict, &timeout_ns) ||
        gate_of(self) == NULL)
        return NULL;
    bd_gate_open(volume_of(self), start, strict, timeout_ns);
    Py_RETURN_NONE;
}

PyObject *bd_py_gate_shut(PyObject *self, PyObject *unused)
{
    (void)unused;
    if (gate_of(self) == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    bd_gate_shut(volume_of(self));
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *bd_py_gate_advance(PyObject *self, PyObject *args)
{
    unsigned long long acked;
    unsigned long long durable;
    struct bd_gate *gate = gate_of(self);
    if (gate == NULL || !PyArg_ParseTuple(args, "KK:gate_advance", &acked, &durable))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    bd_gate_advance(gate, acked, durable);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *bd_py_gate_lease(PyObject *self, PyObject *args)
{
    unsigned long long until_ns;
    struct bd_gate *gate = gate_of(self);
    if (gate == NULL || !PyArg_ParseTuple(args, "K:gate_lease", &until_ns))
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    bd_gate_lease(gate, until_ns);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *bd_py_gate_expire(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_gate *gate = gate_of(self);
    if (gate == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS;
    bd_gate_expire(gate);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

PyObject *bd_py_gate_want(PyObject *self, PyObject *args)
{
    unsigned long long seq;
    struct bd_gate *gate = gate_of(self);
    if (gate == NULL || !PyArg_ParseTuple(args, "K:gate_want", &seq))
        return NULL;
    bd_gate_want(gate, seq);
    Py_RETURN_NONE;
}

PyObject *bd_py_gate_seen(PyObject *self, PyObject *args)
{
    unsigned long long offset;
    unsigned long long length;
    struct bd_gate *gate = gate_of(self);
    if (gate == NULL || !PyArg_ParseTuple(args, "KK:gate_seen", &offset, &length))
        return NULL;
    return PyLong_FromUnsignedLongLong(bd_gate_seen(gate, offset, length));
}

PyObject *bd_py_gate_state(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_gate *gate = gate_of(self);
    if (gate == NULL)
        return NULL;
    bd_lock(&gate->lock);
    bool shut = atomic_load(&gate->shut);
    unsigned long long acked = gate->acked;
    unsigned long long durable = gate->durable;
    unsigned long long wanted = gate->wanted;
    unsigned long long until_ns = gate->reads_until_ns;
    unsigned int waiting = gate->waiting;
    pthread_mutex_unlock(&gate->lock);
    return Py_BuildValue("(OKKKKI)", shut ? Py_True : Py_False, acked, durable, wanted, until_ns,
                         waiting);
}
