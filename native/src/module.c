/* Python glue only: registers the types and functions of the extension. */
#include "journal_py.h"
#include "kernels_py.h"
#include "request.h"
#include "table_py.h"
#include "volume_py.h"

static PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "native._native",
    .m_doc = "C kernels and hot path of blockd.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__native(void); /* the interpreter finds it by name */

PyMODINIT_FUNC PyInit__native(void)
{
    static int (*const parts[])(PyObject *) = {bd_request_register, bd_kernels_register,
                                               bd_table_register, bd_journal_register,
                                               bd_volume_register};
    PyObject *module = PyModule_Create(&native_module);
    for (size_t i = 0; module != NULL && i < sizeof parts / sizeof *parts; i++)
        if (parts[i](module) < 0)
            Py_CLEAR(module);
    return module;
}
