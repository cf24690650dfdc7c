/* TLS server side without a socket: ciphertext in, plaintext out, and back.
 *
 * Python's ssl module has no pre-shared keys on the server side before 3.13, and the bindings that
 * have them (cryptography's) promise no stable interface. So certificates and PSK both go through
 * this one path. OpenSSL does the protocol; these files check lengths, move bytes and release the
 * GIL. Which versions, ciphers and peers are acceptable is decided by blockd/tls.py.
 *
 * This file is the module; tls_context.c and tls_session.c hold the two types.
 */
#include "tls.h"

#include <openssl/err.h>
#include <string.h>

PyObject *bd_tls_error;

/* The queue's first entry is the cause; later ones only say who passed it on. */
void *bd_tls_raise(const char *step)
{
    unsigned long code = ERR_get_error();
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    if (reason == NULL)
        reason = code != 0 && ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code)) : "unknown";
    PyErr_Format(bd_tls_error, "%s: %s", step, reason);
    ERR_clear_error();
    return NULL;
}

static PyModuleDef tls_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "native._tls",
    .m_doc = "TLS over memory buffers.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__tls(void); /* the interpreter finds it by name */

PyMODINIT_FUNC PyInit__tls(void)
{
    PyObject *module = PyModule_Create(&tls_module);
    if (module == NULL)
        return NULL;
    bd_tls_error = PyErr_NewException("native._tls.TlsError", NULL, NULL);
    if (bd_tls_error == NULL || PyType_Ready(&bd_tls_context_type) < 0 ||
        PyType_Ready(&bd_tls_session_type) < 0 ||
        PyModule_AddObjectRef(module, "TlsError", bd_tls_error) < 0 ||
        PyModule_AddObjectRef(module, "Context", (PyObject *)&bd_tls_context_type) < 0 ||
        PyModule_AddObjectRef(module, "Session", (PyObject *)&bd_tls_session_type) < 0 ||
        PyModule_AddIntConstant(module, "TLS1_2", TLS1_2_VERSION) < 0 ||
        PyModule_AddIntConstant(module, "TLS1_3", TLS1_3_VERSION) < 0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
