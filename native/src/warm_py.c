/* Python face of warming the place table. */
#include "warm_py.h"

#include "table_py.h"
#include "volume_py.h"
#include "warm.h"

/* The packs of a tuple of PackFile, which keeps them; NULL with an exception. */
static struct bd_pack **packs_of(PyObject *tuple)
{
    Py_ssize_t count = PyTuple_GET_SIZE(tuple);
    struct bd_pack **packs = PyMem_New(struct bd_pack *, (size_t)count + 1);
    if (packs == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *pack = PyTuple_GET_ITEM(tuple, i);
        if (!PyObject_TypeCheck(pack, &bd_pack_type)) {
            PyErr_SetString(PyExc_TypeError, "packs: a tuple of PackFile is wanted");
            PyMem_Free(packs);
            return NULL;
        }
        packs[i] = ((bd_pack_object *)pack)->pack;
    }
    return packs;
}

PyObject *bd_volume_warm_py(PyObject *self, PyObject *args)
{
    unsigned long long generation;
    Py_buffer indexes;
    Py_buffer ids;
    Py_buffer places;
    PyObject *tuple;
    if (!PyArg_ParseTuple(args, "Ky*y*y*O!:warm", &generation, &indexes, &ids, &places,
                          &PyTuple_Type, &tuple))
        return NULL;
    PyObject *result = NULL;
    Py_ssize_t count = indexes.len / 8;
    if (indexes.len % 8 != 0 || ids.len != count * BD_CHUNK_ID ||
        places.len != count * BD_INDEX_PLACE) {
        PyErr_SetString(PyExc_ValueError, "indexes, ids and places are not of equally many chunks");
    } else {
        struct bd_pack **packs = packs_of(tuple);
        if (packs != NULL) {
            struct bd_warm_chunks chunks = {.indexes = indexes.buf,
                                            .ids = ids.buf,
                                            .places = places.buf,
                                            .count = (size_t)count,
                                            .packs = packs,
                                            .pack_count = (size_t)PyTuple_GET_SIZE(tuple)};
            size_t done;
            Py_BEGIN_ALLOW_THREADS done =
                bd_volume_warm(((bd_volume_object *)self)->volume, generation, &chunks);
            Py_END_ALLOW_THREADS PyMem_Free(packs);
            result = PyLong_FromSize_t(done);
        }
    }
    PyBuffer_Release(&indexes);
    PyBuffer_Release(&ids);
    PyBuffer_Release(&places);
    return result;
}
