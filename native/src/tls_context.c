/* Context: keys, peers and rules that many sessions share.
 *
 * Fixed for every context: no renegotiation, no compression, no session cache and no tickets (an
 * NBD connection lives for days; a ticket would outlive a revoked key).
 */
#include "tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <string.h>

#define BD_MAX_KEY_BYTES (16 << 20) /* OpenSSL counts them in an int */

static bool fail(const char *step)
{
    bd_tls_raise(step);
    return false;
}

/* Called by OpenSSL inside a handshake, GIL not held. Returns the length of the key, 0 = unknown.
 * Serves TLS 1.2 PSK suites and, as OpenSSL falls back to it, external PSKs of TLS 1.3. */
static unsigned int find_psk(SSL *ssl, const char *identity, unsigned char *key,
                             unsigned int key_room)
{
    bd_tls_session *session = SSL_get_app_data(ssl);
    size_t length = identity == NULL ? 0 : strlen(identity);
    if (session == NULL || length == 0 || length > BD_MAX_IDENTITY)
        return 0;
    unsigned int found = 0;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *name = PyBytes_FromStringAndSize(identity, (Py_ssize_t)length);
    PyObject *value = name == NULL ? NULL : PyDict_GetItemWithError(session->context->psk, name);
    if (value != NULL && (size_t)PyBytes_GET_SIZE(value) <= key_room) {
        found = (unsigned int)PyBytes_GET_SIZE(value);
        memcpy(key, PyBytes_AS_STRING(value), found);
        memcpy(session->identity, identity, length);
        session->identity_length = length;
    }
    Py_XDECREF(name);
    PyErr_Clear(); /* out of memory: the client is refused like an unknown one */
    PyGILState_Release(state);
    return found;
}

/* A key with a passphrase is an error; without this OpenSSL would ask on the terminal. */
static int no_passphrase(char *buffer, int size, int writing, void *data)
{
    (void)buffer, (void)size, (void)writing, (void)data;
    return -1;
}

/* From memory: the caller has checked who may read the file that these bytes are from. */
static bool load_key(SSL_CTX *ctx, const char *pem, Py_ssize_t length)
{
    BIO *bio = BIO_new_mem_buf(pem, (int)length);
    EVP_PKEY *key = bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    bool fine = key != NULL && SSL_CTX_use_PrivateKey(ctx, key) == 1;
    EVP_PKEY_free(key);
    BIO_free(bio);
    return fine || fail("key");
}

static bool load_certificate(SSL_CTX *ctx, const char *certificate, const char *key,
                             Py_ssize_t key_length)
{
    SSL_CTX_set_default_passwd_cb(ctx, no_passphrase);
    if (SSL_CTX_use_certificate_chain_file(ctx, certificate) != 1)
        return fail("certificate");
    if (!load_key(ctx, key, key_length))
        return false;
    if (SSL_CTX_check_private_key(ctx) != 1)
        return fail("key");
    return true;
}

static bool load_client_ca(SSL_CTX *ctx, const char *client_ca)
{
    STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(client_ca);
    if (names == NULL)
        return fail("client_ca");
    SSL_CTX_set_client_CA_list(ctx, names); /* takes the list */
    if (SSL_CTX_load_verify_locations(ctx, client_ca, NULL) != 1)
        return fail("client_ca");
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return true;
}

static bool check_psk(PyObject *psk)
{
    PyObject *name, *key;
    Py_ssize_t position = 0;
    while (PyDict_Next(psk, &position, &name, &key))
        if (!PyBytes_Check(name) || !PyBytes_Check(key) || PyBytes_GET_SIZE(name) == 0 ||
            PyBytes_GET_SIZE(name) > BD_MAX_IDENTITY || PyBytes_GET_SIZE(key) == 0 ||
            PyBytes_GET_SIZE(key) > PSK_MAX_PSK_LEN) {
            PyErr_Format(PyExc_ValueError,
                         "psk: an identity is 1 to %d bytes and a key 1 to %d bytes",
                         BD_MAX_IDENTITY, PSK_MAX_PSK_LEN);
            return false;
        }
    return true;
}

static bool set_up_context(bd_tls_context *self, const char *certificate, const char *key,
                           Py_ssize_t key_length, const char *client_ca, int min_version,
                           const char *ciphers, const char *suites)
{
    ERR_clear_error();
    self->ctx = SSL_CTX_new(TLS_server_method());
    if (self->ctx == NULL)
        return fail("context");
    SSL_CTX_set_options(self->ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                       SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_set_mode(self->ctx, SSL_MODE_RELEASE_BUFFERS); /* 34 KiB less per idle connection */
    SSL_CTX_set_session_cache_mode(self->ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(self->ctx, 0);
    /* OpenSSL treats an external PSK of TLS 1.3 as a resumed session, and with client certificates
     * on it resumes none without a context id. */
    static const unsigned char context_id[] = "blockd";
    if (SSL_CTX_set_session_id_context(self->ctx, context_id, sizeof context_id - 1) != 1)
        return fail("context");
    SSL_CTX_set_dh_auto(self->ctx, 1); /* for the DHE-PSK suites of TLS 1.2 */
    if (SSL_CTX_set_min_proto_version(self->ctx, min_version) != 1)
        return fail("min_version");
    if (SSL_CTX_set_cipher_list(self->ctx, ciphers) != 1)
        return fail("ciphers");
    if (SSL_CTX_set_ciphersuites(self->ctx, suites) != 1)
        return fail("suites");
    if (certificate != NULL && !load_certificate(self->ctx, certificate, key, key_length))
        return false;
    if (client_ca != NULL && !load_client_ca(self->ctx, client_ca))
        return false;
    if (self->psk != NULL)
        SSL_CTX_set_psk_server_callback(self->ctx, find_psk);
    return true;
}

static PyObject *context_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"certificate", "key",     "client_ca", "psk",
                            "min_version", "ciphers", "suites",    NULL};
    const char *certificate, *key, *client_ca, *ciphers, *suites;
    Py_ssize_t key_length;
    PyObject *psk;
    int min_version;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "zz#zOiss:Context", names, &certificate, &key,
                                     &key_length, &client_ca, &psk, &min_version, &ciphers,
                                     &suites))
        return NULL;
    if ((certificate == NULL) != (key == NULL)) {
        PyErr_SetString(PyExc_ValueError, "certificate and key go together");
        return NULL;
    }
    if (key_length > BD_MAX_KEY_BYTES) {
        PyErr_Format(PyExc_ValueError, "key: longer than %d bytes", BD_MAX_KEY_BYTES);
        return NULL;
    }
    if (psk != Py_None && (!PyDict_Check(psk) || !check_psk(psk))) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "psk: a dict of bytes to bytes, or None");
        return NULL;
    }
    bd_tls_context *self = (bd_tls_context *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    /* A copy: nobody can change the checked dict while a handshake looks into it. */
    if (psk != Py_None && (self->psk = PyDict_Copy(psk)) == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    if (!set_up_context(self, certificate, key, key_length, client_ca, min_version, ciphers,
                        suites)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void context_dealloc(PyObject *self_object)
{
    bd_tls_context *self = (bd_tls_context *)self_object;
    SSL_CTX_free(self->ctx);
    Py_XDECREF(self->psk);
    Py_TYPE(self_object)->tp_free(self_object);
}

static PyMethodDef context_methods[] = {
    {"session", bd_tls_session_open, METH_NOARGS, "A new server session."},
    {NULL, NULL, 0, NULL},
};

PyTypeObject bd_tls_context_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._tls.Context",
    .tp_basicsize = sizeof(bd_tls_context),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Keys and rules for many sessions.",
    .tp_new = context_new,
    .tp_dealloc = context_dealloc,
    .tp_methods = context_methods,
};
