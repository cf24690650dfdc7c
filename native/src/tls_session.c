/* Session: one connection's TLS, server side, over two memory BIOs. */
#include "tls.h"

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <string.h>

#define BD_RECORD_BYTES 16384       /* the most plaintext one TLS record carries, RFC 8446 5.1 */
#define BD_MAX_PENDING_IN (4 << 20) /* ciphertext fed but not read; the caller pauses far below */

PyObject *bd_tls_session_open(PyObject *self_object, PyObject *unused)
{
    (void)unused;
    bd_tls_session *session =
        (bd_tls_session *)bd_tls_session_type.tp_alloc(&bd_tls_session_type, 0);
    if (session == NULL)
        return NULL;
    Py_INCREF(self_object);
    session->context = (bd_tls_context *)self_object;
    session->ssl = SSL_new(session->context->ctx);
    session->in = BIO_new(BIO_s_mem());
    session->out = BIO_new(BIO_s_mem());
    if (session->ssl == NULL || session->in == NULL || session->out == NULL ||
        SSL_set_app_data(session->ssl, session) != 1) {
        BIO_free(session->in);
        BIO_free(session->out);
        Py_DECREF(session);
        return bd_tls_raise("session");
    }
    BIO_set_mem_eof_return(session->in, -1); /* an empty BIO means "later", not the end */
    SSL_set_bio(session->ssl, session->in, session->out);
    SSL_set_accept_state(session->ssl);
    return (PyObject *)session;
}

static void session_dealloc(PyObject *self_object)
{
    bd_tls_session *self = (bd_tls_session *)self_object;
    SSL_free(self->ssl); /* and the BIOs, once set */
    Py_XDECREF(self->context);
    Py_TYPE(self_object)->tp_free(self_object);
}

/* Two threads inside one SSL object would corrupt it, and the GIL does not keep them apart. */
static bool enter(bd_tls_session *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "this TLS session is in use by another thread");
        return false;
    }
    self->busy = true;
    ERR_clear_error(); /* the queue is per thread and shared with Python's own ssl module */
    return true;
}

static PyObject *session_feed(PyObject *self_object, PyObject *data)
{
    bd_tls_session *self = (bd_tls_session *)self_object;
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    if (!enter(self)) {
        PyBuffer_Release(&view);
        return NULL;
    }
    PyObject *result = NULL;
    size_t waiting = BIO_ctrl_pending(self->in), written = 0;
    if ((size_t)view.len > BD_MAX_PENDING_IN || waiting > BD_MAX_PENDING_IN - (size_t)view.len)
        PyErr_Format(bd_tls_error, "read: more than %d bytes of ciphertext wait",
                     BD_MAX_PENDING_IN);
    else if (view.len > 0 && BIO_write_ex(self->in, view.buf, (size_t)view.len, &written) != 1)
        bd_tls_raise("read");
    else
        result = Py_NewRef(Py_None);
    self->busy = false;
    PyBuffer_Release(&view);
    return result;
}

/* In a handshake the queue's last entry is the TLS layer's own, the ones before it are details of
 * the cryptography below. Its "certificate verify failed" says nothing; the reason is elsewhere. */
static PyObject *raise_handshake(SSL *ssl)
{
    unsigned long code = ERR_peek_last_error();
    long verdict = SSL_get_verify_result(ssl);
    const char *reason = code == 0 ? NULL : ERR_reason_error_string(code);
    if (reason == NULL)
        return bd_tls_raise("handshake");
    ERR_clear_error();
    if (ERR_GET_REASON(code) == SSL_R_CERTIFICATE_VERIFY_FAILED && verdict != X509_V_OK)
        return PyErr_Format(bd_tls_error, "handshake: client certificate refused: %s",
                            X509_verify_cert_error_string(verdict));
    return PyErr_Format(bd_tls_error, "handshake: %s", reason);
}

static PyObject *session_handshake(PyObject *self_object, PyObject *unused)
{
    (void)unused;
    bd_tls_session *self = (bd_tls_session *)self_object;
    if (!enter(self))
        return NULL;
    int result, error;
    Py_BEGIN_ALLOW_THREADS;
    result = SSL_do_handshake(self->ssl);
    error = result == 1 ? SSL_ERROR_NONE : SSL_get_error(self->ssl, result);
    Py_END_ALLOW_THREADS;
    self->busy = false;
    if (error != SSL_ERROR_NONE && error != SSL_ERROR_WANT_READ)
        return raise_handshake(self->ssl);
    return PyBool_FromLong(result == 1);
}

static PyObject *session_read_into(PyObject *self_object, PyObject *target)
{
    bd_tls_session *self = (bd_tls_session *)self_object;
    Py_buffer view;
    if (PyObject_GetBuffer(target, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    if (!enter(self)) {
        PyBuffer_Release(&view);
        return NULL;
    }
    size_t total = 0, room = (size_t)view.len, count = 0;
    int error = SSL_ERROR_NONE;
    Py_BEGIN_ALLOW_THREADS;
    while (total < room) {
        if (SSL_read_ex(self->ssl, (char *)view.buf + total, room - total, &count) != 1) {
            error = SSL_get_error(self->ssl, 0);
            break;
        }
        total += count;
    }
    Py_END_ALLOW_THREADS;
    self->busy = false;
    PyBuffer_Release(&view);
    if (error == SSL_ERROR_ZERO_RETURN)
        self->peer_closed = true;
    else if (error != SSL_ERROR_NONE && error != SSL_ERROR_WANT_READ)
        return bd_tls_raise("read");
    return PyLong_FromSize_t(total);
}

static PyObject *take_output(bd_tls_session *self)
{
    char *start = NULL;
    long length = BIO_get_mem_data(self->out, &start);
    PyObject *bytes = PyBytes_FromStringAndSize(start, length > 0 ? length : 0);
    if (bytes != NULL)
        (void)BIO_reset(self->out);
    return bytes;
}

/* Plaintext on its way into records: small pieces are joined, long ones go through unjoined. */
typedef struct {
    SSL *ssl;
    size_t length;
    unsigned char record[BD_RECORD_BYTES];
} bd_record_writer;

static bool write_plain(SSL *ssl, const unsigned char *data, size_t length)
{
    size_t written = 0;
    return length == 0 || (SSL_write_ex(ssl, data, length, &written) == 1 && written == length);
}

static bool write_joined(bd_record_writer *self, const unsigned char *data, size_t length)
{
    while (length > 0) {
        if (self->length == 0 && length >= BD_RECORD_BYTES) {
            size_t whole = length - length % BD_RECORD_BYTES;
            if (!write_plain(self->ssl, data, whole))
                return false;
            data += whole;
            length -= whole;
            continue;
        }
        size_t room = BD_RECORD_BYTES - self->length;
        size_t count = length < room ? length : room;
        memcpy(self->record + self->length, data, count);
        self->length += count;
        data += count;
        length -= count;
        if (self->length == BD_RECORD_BYTES) {
            if (!write_plain(self->ssl, self->record, BD_RECORD_BYTES))
                return false;
            self->length = 0;
        }
    }
    return true;
}

static bool write_buffers(bd_tls_session *self, Py_buffer *views, Py_ssize_t count)
{
    bd_record_writer writer;
    writer.ssl = self->ssl;
    writer.length = 0;
    bool fine = true;
    Py_BEGIN_ALLOW_THREADS;
    for (Py_ssize_t i = 0; fine && i < count; i++)
        fine = write_joined(&writer, views[i].buf, (size_t)views[i].len);
    fine = fine && write_plain(self->ssl, writer.record, writer.length);
    OPENSSL_cleanse(writer.record, writer.length);
    Py_END_ALLOW_THREADS;
    return fine;
}

static PyObject *session_encrypt(PyObject *self_object, PyObject *buffers)
{
    bd_tls_session *self = (bd_tls_session *)self_object;
    PyObject *list = PySequence_Fast(buffers, "encrypt() takes a sequence of buffers");
    if (list == NULL)
        return NULL;
    PyObject *result = NULL;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(list), taken = 0;
    Py_buffer *views = PyMem_New(Py_buffer, count > 0 ? count : 1);
    if (views == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (; taken < count; taken++)
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(list, taken), &views[taken], PyBUF_SIMPLE) <
            0)
            goto done;
    if (!enter(self))
        goto done;
    result = write_buffers(self, views, count) ? take_output(self) : bd_tls_raise("write");
    self->busy = false;
done:
    while (taken > 0)
        PyBuffer_Release(&views[--taken]);
    PyMem_Free(views);
    Py_DECREF(list);
    return result;
}

static PyObject *session_output(PyObject *self_object, PyObject *unused)
{
    (void)unused;
    bd_tls_session *self = (bd_tls_session *)self_object;
    if (!enter(self))
        return NULL;
    PyObject *bytes = take_output(self);
    self->busy = false;
    return bytes;
}

static PyObject *session_close(PyObject *self_object, PyObject *unused)
{
    (void)unused;
    bd_tls_session *self = (bd_tls_session *)self_object;
    if (!enter(self))
        return NULL;
    if (SSL_is_init_finished(self->ssl))
        (void)SSL_shutdown(self->ssl); /* queues close_notify; nobody waits for the answer */
    ERR_clear_error();
    self->busy = false;
    Py_RETURN_NONE;
}

static PyObject *session_peer_certificate(PyObject *self_object, void *unused)
{
    (void)unused;
    X509 *certificate = SSL_get0_peer_certificate(((bd_tls_session *)self_object)->ssl);
    if (certificate == NULL)
        Py_RETURN_NONE;
    unsigned char *der = NULL;
    int length = i2d_X509(certificate, &der);
    if (length < 0)
        return bd_tls_raise("peer certificate");
    PyObject *bytes = PyBytes_FromStringAndSize((const char *)der, length);
    OPENSSL_free(der);
    return bytes;
}

/* A client may name an identity that we know and then be served by certificate after all, so
 * what find_psk() saw counts only when the handshake was keyed by it. */
static PyObject *session_psk_identity(PyObject *self_object, void *unused)
{
    (void)unused;
    bd_tls_session *self = (bd_tls_session *)self_object;
    const SSL_CIPHER *cipher = SSL_get_current_cipher(self->ssl);
    bool keyed = SSL_is_init_finished(self->ssl) && cipher != NULL && self->identity_length > 0;
    if (keyed && SSL_version(self->ssl) >= TLS1_3_VERSION)
        keyed = SSL_session_reused(self->ssl) == 1; /* no tickets here: it can only be our PSK */
    else if (keyed)
        keyed = SSL_CIPHER_get_auth_nid(cipher) == NID_auth_psk;
    if (!keyed)
        Py_RETURN_NONE;
    return PyBytes_FromStringAndSize((const char *)self->identity,
                                     (Py_ssize_t)self->identity_length);
}

static PyObject *session_version(PyObject *self_object, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(SSL_get_version(((bd_tls_session *)self_object)->ssl));
}

static PyObject *session_cipher(PyObject *self_object, void *unused)
{
    (void)unused;
    return PyUnicode_FromString(SSL_get_cipher_name(((bd_tls_session *)self_object)->ssl));
}

static PyObject *session_peer_closed(PyObject *self_object, void *unused)
{
    (void)unused;
    return PyBool_FromLong(((bd_tls_session *)self_object)->peer_closed);
}

static PyMethodDef session_methods[] = {
    {"feed", session_feed, METH_O, "Take ciphertext from the peer."},
    {"handshake", session_handshake, METH_NOARGS, "Go on with the handshake; True when done."},
    {"read_into", session_read_into, METH_O, "Decrypt into a buffer; count of bytes."},
    {"encrypt", session_encrypt, METH_O, "Encrypt buffers; ciphertext to send."},
    {"output", session_output, METH_NOARGS, "Ciphertext that waits to be sent."},
    {"close", session_close, METH_NOARGS, "Queue close_notify."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef session_getters[] = {
    {"peer_certificate", session_peer_certificate, NULL, "DER bytes or None.", NULL},
    {"psk_identity", session_psk_identity, NULL, "Identity bytes or None.", NULL},
    {"version", session_version, NULL, "Such as TLSv1.3.", NULL},
    {"cipher", session_cipher, NULL, "OpenSSL's name of the cipher.", NULL},
    {"peer_closed", session_peer_closed, NULL, "close_notify came.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyTypeObject bd_tls_session_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "native._tls.Session",
    .tp_basicsize = sizeof(bd_tls_session),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_doc = "One server-side TLS connection over memory.",
    .tp_dealloc = session_dealloc,
    .tp_methods = session_methods,
    .tp_getset = session_getters,
};
