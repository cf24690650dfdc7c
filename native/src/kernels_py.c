/* Python faces of the stateless kernels. */
#include "kernels_py.h"

#include "blocks.h"
#include "crc32c.h"

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

static PyMethodDef kernel_methods[] = {
    {"crc32c", py_crc32c, METH_VARARGS, NULL},
    {"crc32c_pages", py_crc32c_pages, METH_VARARGS, NULL},
    {"is_zero", py_is_zero, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int bd_kernels_register(PyObject *module)
{
    return PyModule_AddFunctions(module, kernel_methods);
}
