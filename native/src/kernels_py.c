/* Python faces of the stateless kernels. */
#include "kernels_py.h"

#include <errno.h>
#include <limits.h>

#include "blocks.h"
#include "codec.h"
#include "crc32c.h"
#include "disk_error.h"

enum { RELEASE_GIL_ABOVE = 32 * 1024 }; /* below, handing the GIL over costs more than the work */

static PyObject *py_crc32c(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer data;
    unsigned int crc = 0;
    if (!PyArg_ParseTuple(args, "y*|I:crc32c", &data, &crc))
        return NULL;
    uint32_t result;
    if (data.len > RELEASE_GIL_ABOVE) {
        Py_BEGIN_ALLOW_THREADS;
        result = bd_crc32c(crc, data.buf, (size_t)data.len);
        Py_END_ALLOW_THREADS;
    } else {
        result = bd_crc32c(crc, data.buf, (size_t)data.len);
    }
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(result);
}

static PyObject *py_crc32c_pages(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*:crc32c_pages", &data))
        return NULL;
    Py_ssize_t pages = data.len / BD_PAGE + (data.len % BD_PAGE != 0);
    PyObject *table = PyBytes_FromStringAndSize(NULL, pages * 4);
    if (table != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(table);
        Py_BEGIN_ALLOW_THREADS;
        bd_crc32c_pages(data.buf, (size_t)data.len, out);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&data);
    return table;
}

static PyObject *py_is_zero(PyObject *self, PyObject *args)
{
    (void)self;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "y*:is_zero", &data))
        return NULL;
    bool zero = bd_is_zero(data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyBool_FromLong(zero);
}

static PyObject *codec_error(ssize_t error, unsigned int codec)
{
    if (error == -ENOMEM)
        return PyErr_NoMemory();
    if (error == -EBADMSG)
        return PyErr_Format(PyExc_ValueError, "these are not the bytes that the codec wrote");
    return PyErr_Format(PyExc_ValueError, "no codec %u, or a length that no chunk has", codec);
}

/* encode(codec, raw, capacity) -> bytes | None */
static PyObject *py_encode(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned char codec;
    Py_buffer raw;
    Py_ssize_t capacity;
    if (!PyArg_ParseTuple(args, "by*n:encode", &codec, &raw, &capacity))
        return NULL;
    ssize_t used = -EINVAL;
    PyObject *stored = NULL;
    if (capacity >= 0 && capacity <= 2 * (Py_ssize_t)BD_CODEC_MAX_RAW) {
        stored = PyBytes_FromStringAndSize(NULL, capacity);
        if (stored == NULL) {
            PyBuffer_Release(&raw);
            return NULL;
        }
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(stored); /* nobody else has seen it yet */
        Py_BEGIN_ALLOW_THREADS;
        used = bd_codec_encode(codec, raw.buf, (size_t)raw.len, out, (size_t)capacity);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&raw);
    if (used > 0) {
        _PyBytes_Resize(&stored, used); /* NULL with an exception when it fails */
        return stored;
    }
    Py_XDECREF(stored);
    if (used < 0)
        return codec_error(used, codec);
    Py_RETURN_NONE;
}

/* decode(codec, stored, raw_length) -> bytes */
static PyObject *py_decode(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned char codec;
    Py_buffer stored;
    Py_ssize_t raw_length;
    if (!PyArg_ParseTuple(args, "by*n:decode", &codec, &stored, &raw_length))
        return NULL;
    int error = -EINVAL;
    PyObject *raw = NULL;
    if (raw_length > 0 && raw_length <= BD_CODEC_MAX_RAW) {
        raw = PyBytes_FromStringAndSize(NULL, raw_length);
        if (raw == NULL) {
            PyBuffer_Release(&stored);
            return NULL;
        }
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(raw); /* nobody else has seen it yet */
        Py_BEGIN_ALLOW_THREADS;
        error = bd_codec_decode(codec, stored.buf, (size_t)stored.len, out, (size_t)raw_length,
                                (size_t)raw_length);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&stored);
    if (error == 0)
        return raw;
    Py_XDECREF(raw);
    return codec_error(error, codec);
}

/* error_seals(errno) -> bool */
static PyObject *py_error_seals(PyObject *self, PyObject *number)
{
    (void)self;
    long error = PyLong_AsLong(number);
    if (error == -1 && PyErr_Occurred())
        return NULL;
    return PyBool_FromLong(error < 0 || error > INT_MAX || bd_error_seals((int)error));
}

static PyMethodDef kernel_methods[] = {
    {"decode", py_decode, METH_VARARGS, NULL},
    {"encode", py_encode, METH_VARARGS, NULL},
    {"error_seals", py_error_seals, METH_O, NULL},
    {"crc32c", py_crc32c, METH_VARARGS, NULL},
    {"crc32c_pages", py_crc32c_pages, METH_VARARGS, NULL},
    {"is_zero", py_is_zero, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int bd_kernels_register(PyObject *module)
{
    return PyModule_AddFunctions(module, kernel_methods);
}
