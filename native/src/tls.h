/* The two types of native._tls; see tls.c for what they are and native/_tls.pyi for the contract.
 */
#ifndef BLOCKD_TLS_H
#define BLOCKD_TLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <openssl/ssl.h>
#include <stdbool.h>

#define BD_MAX_IDENTITY 256 /* OpenSSL's own bound on a PSK identity */

typedef struct {
    PyObject_HEAD;
    SSL_CTX *ctx;
    PyObject *psk; /* dict identity bytes -> key bytes, or NULL */
} bd_tls_context;

typedef struct {
    PyObject_HEAD;
    SSL *ssl;
    BIO *in; /* both belong to ssl */
    BIO *out;
    bd_tls_context *context;
    bool busy;        /* an operation runs without the GIL */
    bool peer_closed; /* close_notify came */
    size_t identity_length;
    unsigned char identity[BD_MAX_IDENTITY]; /* the last PSK identity found */
} bd_tls_session;

extern PyObject *bd_tls_error;
extern PyTypeObject bd_tls_context_type;
extern PyTypeObject bd_tls_session_type;

/* Sets TlsError("<step>: <reason of OpenSSL>"), empties OpenSSL's error queue, returns NULL. */
void *bd_tls_raise(const char *step);

/* A new session of a context (METH_NOARGS of Context). */
PyObject *bd_tls_session_open(PyObject *context, PyObject *unused);

#endif
