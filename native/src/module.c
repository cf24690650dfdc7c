/* Python glue only: registers the types and functions of the extension. */
#include "kernels_py.h"
#include "request.h"

static PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "native._native",
    .m_doc = "C kernels and hot path of blockd.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__native(void); /* the interpreter finds it by name */

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module = PyModule_Create(&native_module);
    if (module == NULL)
        return NULL;
    if (bd_request_register(module) < 0 || bd_kernels_register(module) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
