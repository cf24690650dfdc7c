/* Python face of taps and members. */
#include "member_py.h"

#include "member.h"
#include "tap.h"
#include "volume_py.h"

static struct bd_volume *volume_of(PyObject *self)
{
    return ((bd_volume_object *)self)->volume;
}

PyObject *bd_py_tap(PyObject *self, PyObject *args)
{
    unsigned long long limit;
    uint64_t seq = 0;
    if (!PyArg_ParseTuple(args, "K:tap", &limit))
        return NULL;
    int error = bd_tap_open(volume_of(self), limit, &seq);
    if (error < 0)
        return bd_raise_errno(error);
    return Py_BuildValue("(iK)", volume_of(self)->tap->event, (unsigned long long)seq);
}

PyObject *bd_py_untap(PyObject *self, PyObject *unused)
{
    (void)unused;
    int error = bd_tap_close(volume_of(self));
    if (error < 0)
        return bd_raise_errno(error);
    Py_RETURN_NONE;
}

PyObject *bd_py_tap_again(PyObject *self, PyObject *unused)
{
    (void)unused;
    uint64_t seq = 0;
    int error = bd_tap_begin(volume_of(self), &seq);
    if (error < 0)
        return bd_raise_errno(error);
    return PyLong_FromUnsignedLongLong(seq);
}

PyObject *bd_py_take(PyObject *self, PyObject *args)
{
    Py_buffer buffer;
    int nowait = 0;
    if (!PyArg_ParseTuple(args, "w*|p:take", &buffer, &nowait))
        return NULL;
    struct bd_taken taken;
    int error;
    Py_BEGIN_ALLOW_THREADS error =
        bd_tap_take(volume_of(self), buffer.buf, (size_t)buffer.len, nowait, &taken);
    Py_END_ALLOW_THREADS PyBuffer_Release(&buffer);
    if (error < 0)
        return bd_raise_errno(error);
    return Py_BuildValue("(nKKO)", (Py_ssize_t)taken.length, (unsigned long long)taken.first_seq,
                         (unsigned long long)taken.last_seq, taken.lost ? Py_True : Py_False);
}

PyObject *bd_py_append_records(PyObject *self, PyObject *args)
{
    unsigned int epoch;
    Py_buffer records;
    unsigned long long now_ns;
    int notes = 0;
    if (!PyArg_ParseTuple(args, "Iy*K|p:append_records", &epoch, &records, &now_ns, &notes))
        return NULL;
    uint64_t seq = 0;
    struct bd_member_note note = {0};
    int error;
    Py_BEGIN_ALLOW_THREADS error = bd_member_append(
        volume_of(self), epoch, records.buf, (size_t)records.len, now_ns, notes != 0, &seq, &note);
    Py_END_ALLOW_THREADS;
    PyObject *found = Py_None;
    if (note.found) {
        const uint8_t *bytes = (const uint8_t *)records.buf + note.at;
        struct bd_record record;
        bd_record_decode(bytes, &record);
        found = Py_BuildValue("(KKny#)", (unsigned long long)note.lsn,
                              (unsigned long long)record.seq, (Py_ssize_t)note.at,
                              (const char *)bytes + BD_RECORD_HEADER, (Py_ssize_t)record.length);
    } else {
        Py_INCREF(found);
    }
    PyBuffer_Release(&records);
    if (found == NULL)
        return NULL;
    return Py_BuildValue("(iKN)", -error, (unsigned long long)seq, found);
}

PyObject *bd_py_append_plain(PyObject *self, PyObject *args)
{
    unsigned long long epoch, written, first, last, now_ns, boot_ns;
    Py_buffer records;
    if (!PyArg_ParseTuple(args, "KKKKy*KK:append_plain", &epoch, &written, &first, &last, &records,
                          &now_ns, &boot_ns))
        return NULL;
    struct bd_member_plain asked = {epoch, written, first, last};
    uint64_t durable = 0;
    bool taken;
    Py_BEGIN_ALLOW_THREADS taken = bd_member_append_plain(
        volume_of(self), &asked, records.buf, (size_t)records.len, now_ns, boot_ns, &durable);
    Py_END_ALLOW_THREADS PyBuffer_Release(&records);
    if (!taken)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(durable);
}

PyObject *bd_py_take_plain(PyObject *self, PyObject *args)
{
    unsigned long long epoch;
    if (!PyArg_ParseTuple(args, "K:take_plain", &epoch))
        return NULL;
    bd_member_take_plain(volume_of(self), epoch);
    Py_RETURN_NONE;
}

PyObject *bd_py_tell_durable(PyObject *self, PyObject *args)
{
    unsigned long long seq;
    if (!PyArg_ParseTuple(args, "K:tell_durable", &seq))
        return NULL;
    bd_member_tell_durable(volume_of(self), seq);
    Py_RETURN_NONE;
}

PyObject *bd_py_answered_ns(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromUnsignedLongLong(bd_member_answered_ns(volume_of(self)));
}

PyObject *bd_py_begin_epoch(PyObject *self, PyObject *args)
{
    unsigned int epoch;
    if (!PyArg_ParseTuple(args, "I:begin_epoch", &epoch))
        return NULL;
    bd_member_begin(volume_of(self), epoch);
    Py_RETURN_NONE;
}
