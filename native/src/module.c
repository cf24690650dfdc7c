/* Python glue only: registers the types and functions of the extension. */
#include "account_py.h"
#include "erasure_py.h"
#include "iscsi_client_py.h"
#include "journal_py.h"
#include "kernels_py.h"
#include "limit_py.h"
#include "locks.h"
#include "loop_py.h"
#include "peer_py.h"
#include "rendezvous_py.h"
#include "request.h"
#include "scan_py.h"
#include "sender_py.h"
#include "sites_py.h"
#include "syncer_py.h"
#include "table_py.h"
#include "volume_py.h"

/* The owner of the lock may be in a simulated file, which waits for the GIL. Even where it is not,
 * other Python threads need not wait as well for what it does to a disk. */
static int wait_without_gil(pthread_mutex_t *mutex)
{
    int error;
    if (!PyGILState_Check())
        return pthread_mutex_lock(mutex);
    Py_BEGIN_ALLOW_THREADS;
    error = pthread_mutex_lock(mutex);
    Py_END_ALLOW_THREADS;
    return error;
}

static PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "native._native",
    .m_doc = "C kernels and hot path of blockd.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__native(void); /* the interpreter finds it by name */

PyMODINIT_FUNC PyInit__native(void)
{
    static int (*const parts[])(PyObject *) = {
        bd_request_register, bd_kernels_register,    bd_table_register,   bd_journal_register,
        bd_volume_register,  bd_loop_register,       bd_iscsi_register,   bd_sites_register,
        bd_erasure_register, bd_rendezvous_register, bd_account_register, bd_limit_register,
        bd_scan_register,    bd_syncer_register,     bd_peer_register,    bd_sender_register};
    bd_lock_wait = wait_without_gil;
    PyObject *module = PyModule_Create(&native_module);
    for (size_t i = 0; module != NULL && i < sizeof parts / sizeof *parts; i++)
        if (parts[i](module) < 0)
            Py_CLEAR(module);
    return module;
}
