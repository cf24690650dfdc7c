#include "file_py.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>

/* An OSError's errno; anything else (a simulated power cut, a bug of the simulation) becomes EIO. A
 * simulated disk that lost power remembers it and fails whatever comes after. */
static int take_exception(void)
{
    PyObject *type;
    PyObject *value;
    PyObject *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    long code = 0;
    if (value != NULL && PyErr_GivenExceptionMatches(type, PyExc_OSError)) {
        PyObject *number = PyObject_GetAttrString(value, "errno");
        if (number != NULL && PyLong_Check(number))
            code = PyLong_AsLong(number);
        Py_XDECREF(number);
        PyErr_Clear();
    }
    if (code <= 0 || code > 4096)
        code = EIO;
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return (int)-code;
}

static ssize_t object_pread(struct bd_file *file, void *data, size_t length, uint64_t offset,
                            bool nowait)
{
    (void)nowait;
    PyGILState_STATE gil = PyGILState_Ensure();
    ssize_t result;
    PyObject *bytes = PyObject_CallMethod(file->object, "pread", "nK", (Py_ssize_t)length,
                                          (unsigned long long)offset);
    if (bytes == NULL) {
        result = take_exception();
    } else if (!PyBytes_Check(bytes) || (size_t)PyBytes_GET_SIZE(bytes) > length) {
        result = -EIO;
    } else {
        result = PyBytes_GET_SIZE(bytes);
        memcpy(data, PyBytes_AS_STRING(bytes), (size_t)result);
    }
    Py_XDECREF(bytes);
    PyGILState_Release(gil);
    return result;
}

static int object_pwritev(struct bd_file *file, struct iovec *iov, int count, uint64_t offset)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    int result = 0;
    size_t total = 0;
    for (int i = 0; i < count; i++)
        total += iov[i].iov_len;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)total);
    if (bytes != NULL) {
        char *at = PyBytes_AS_STRING(bytes);
        for (int i = 0; i < count; i++) {
            if (iov[i].iov_len > 0)
                memcpy(at, iov[i].iov_base, iov[i].iov_len);
            at += iov[i].iov_len;
        }
        PyObject *put =
            PyObject_CallMethod(file->object, "pwrite", "OK", bytes, (unsigned long long)offset);
        if (put == NULL)
            result = take_exception();
        Py_XDECREF(put);
        Py_DECREF(bytes);
    } else {
        PyErr_Clear();
        result = -ENOMEM;
    }
    PyGILState_Release(gil);
    return result;
}

static int object_sync(struct bd_file *file)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    int result = 0;
    PyObject *none = PyObject_CallMethod(file->object, "sync", NULL);
    if (none == NULL)
        result = take_exception();
    Py_XDECREF(none);
    PyGILState_Release(gil);
    return result;
}

static void object_close(struct bd_file *file)
{
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_CLEAR(*(PyObject **)&file->object);
    PyGILState_Release(gil);
}

static const struct bd_file_ops object_ops = {object_pread, object_pwritev, object_sync,
                                              object_close};

int bd_file_from_object(struct bd_file *file, PyObject *object)
{
    if (PyLong_Check(object)) {
        long fd = PyLong_AsLong(object);
        if (fd < 0 || fd > INT_MAX) {
            if (!PyErr_Occurred())
                PyErr_Format(PyExc_ValueError, "%ld is no file descriptor", fd);
            return -1;
        }
        int copy = fcntl((int)fd, F_DUPFD_CLOEXEC, 0);
        if (copy < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        bd_file_open_fd(file, copy);
        return 0;
    }
    Py_INCREF(object);
    file->ops = &object_ops;
    file->object = object;
    file->fd = -1;
    file->no_nowait = true;
    return 0;
}
