/* Python face of what is done to the journal and its volumes at one position of the log. */
#include "bytes.h"
#include "journal_py.h"
#include "locks.h"
#include "volume_py.h"

#include <errno.h>

static PyObject *cut_tuple(struct bd_cut cut)
{
    return Py_BuildValue("(KKKI)", (unsigned long long)cut.lsn, (unsigned long long)cut.sequence,
                         (unsigned long long)cut.position, (unsigned int)cut.chain);
}

PyObject *bd_py_cut(PyObject *self, PyObject *unused)
{
    (void)unused;
    struct bd_journal *journal = bd_journal_of(self);
    bd_lock(&journal->lock);
    struct bd_cut cut = bd_journal_cut(journal);
    pthread_mutex_unlock(&journal->lock);
    return cut_tuple(cut);
}

/* All or none. The journal's lock is held. */
static int freeze_all(struct bd_volume **cores, Py_ssize_t count, unsigned long long *seqs)
{
    int error = 0;
    Py_ssize_t frozen = 0;
    while (frozen < count && error == 0) {
        struct bd_volume *volume = cores[frozen];
        bd_lock(&volume->lock);
        error = bd_volume_freeze(volume);
        seqs[frozen] = volume->seq;
        pthread_mutex_unlock(&volume->lock);
        if (error == 0)
            frozen++;
    }
    while (error < 0 && frozen > 0) {
        struct bd_volume *volume = cores[--frozen];
        bd_lock(&volume->lock);
        bd_volume_thaw(volume);
        pthread_mutex_unlock(&volume->lock);
    }
    return error;
}

static PyObject *seq_list(const unsigned long long *seqs, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *seq = PyLong_FromUnsignedLongLong(seqs[i]);
        if (seq == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, seq);
    }
    return list;
}

enum {
    max_point_volumes = 1024,
    max_point_tail = 64 * 1024,
};

static int look_at_all(struct bd_volume **cores, Py_ssize_t count, unsigned long long *seqs)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        bd_lock(&cores[i]->lock);
        seqs[i] = cores[i]->seq;
        pthread_mutex_unlock(&cores[i]->lock);
    }
    return 0;
}

/* Volumes of this journal, from a sequence of VolumeCore objects that *keep holds on to: their
 * count, or -1 with an exception. The arrays are PyMem's. */
static Py_ssize_t take_volumes(PyObject *self, PyObject *sequence, PyObject **keep,
                               struct bd_volume ***cores, unsigned long long **seqs)
{
    *cores = NULL;
    *seqs = NULL;
    *keep = PySequence_Tuple(sequence); /* our own: nobody takes volumes out of it */
    if (*keep == NULL)
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(*keep);
    *cores = PyMem_New(struct bd_volume *, count + 1);
    *seqs = PyMem_New(unsigned long long, count + 1);
    if (*cores == NULL || *seqs == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(*keep, i);
        if (!PyObject_TypeCheck(item, &bd_volume_type)) {
            PyErr_SetString(PyExc_TypeError, "a list of VolumeCore objects is wanted");
            return -1;
        }
        (*cores)[i] = ((bd_volume_object *)item)->volume;
        if ((*cores)[i]->journal != bd_journal_of(self)) {
            PyErr_SetString(PyExc_ValueError, "volumes of this journal are wanted");
            return -1;
        }
    }
    return count;
}

/* (cut, seqs) of the given volumes, all at one position of the log, where `visit` looks at them. */
static PyObject *at_one_point(PyObject *self, PyObject *sequence,
                              int (*visit)(struct bd_volume **, Py_ssize_t, unsigned long long *))
{
    PyObject *keep;
    struct bd_volume **cores;
    unsigned long long *seqs;
    PyObject *result = NULL;
    Py_ssize_t count = take_volumes(self, sequence, &keep, &cores, &seqs);
    if (count >= 0) {
        struct bd_journal *journal = bd_journal_of(self);
        bd_lock(&journal->lock);
        struct bd_cut cut = bd_journal_cut(journal);
        int error = visit(cores, count, seqs);
        pthread_mutex_unlock(&journal->lock);
        PyObject *list = error < 0 ? bd_raise_errno(error) : seq_list(seqs, count);
        if (list != NULL)
            result = Py_BuildValue("(NN)", cut_tuple(cut), list);
    }
    PyMem_Free(cores);
    PyMem_Free(seqs);
    Py_XDECREF(keep);
    return result;
}

/* Freeze the hot maps of all given volumes at one position of the log. */
PyObject *bd_py_freeze(PyObject *self, PyObject *volumes)
{
    return at_one_point(self, volumes, freeze_all);
}

/* Where the log and the given volumes are, at one moment. */
PyObject *bd_py_point(PyObject *self, PyObject *volumes)
{
    return at_one_point(self, volumes, look_at_all);
}

/* A POINT record: count (4), of each volume its number (4) and seq (8), then the caller's bytes. */
PyObject *bd_py_append_point(PyObject *self, PyObject *args)
{
    PyObject *sequence;
    Py_buffer tail;
    unsigned long long now_ns;
    if (!PyArg_ParseTuple(args, "Oy*K:append_point", &sequence, &tail, &now_ns))
        return NULL;
    PyObject *keep;
    struct bd_volume **cores;
    unsigned long long *seqs;
    uint8_t *payload = NULL;
    PyObject *result = NULL;
    Py_ssize_t count = take_volumes(self, sequence, &keep, &cores, &seqs);
    if (count < 0)
        goto out;
    if (count > max_point_volumes || tail.len > max_point_tail) {
        bd_raise_errno(-EFBIG);
        goto out;
    }
    size_t head = 4 + (size_t)count * 12;
    payload = PyMem_Malloc(head + (size_t)tail.len);
    if (payload == NULL) {
        PyErr_NoMemory();
        goto out;
    }
    memcpy(payload + head, tail.buf, (size_t)tail.len);
    struct bd_journal *journal = bd_journal_of(self);
    struct bd_record record = {.op = BD_RECORD_POINT, .length = head + (uint64_t)tail.len};
    bd_lock(&journal->lock);
    look_at_all(cores, count, seqs);
    bd_put32(payload, (uint32_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        bd_put32(payload + 4 + i * 12, cores[i]->number);
        bd_put64(payload + 8 + i * 12, seqs[i]);
    }
    int error = bd_journal_add(journal, NULL, record, payload, now_ns, NULL);
    if (error == 0)
        error = bd_journal_commit(journal);
    unsigned long long lsn = journal->next_lsn - 1;
    pthread_mutex_unlock(&journal->lock);
    PyObject *list = error < 0 ? bd_raise_errno(error) : seq_list(seqs, count);
    if (list != NULL)
        result = Py_BuildValue("(KN)", lsn, list);
out:
    PyMem_Free(payload);
    PyMem_Free(cores);
    PyMem_Free(seqs);
    Py_XDECREF(keep);
    PyBuffer_Release(&tail);
    return result;
}
