/* Python face of NOTE records: what becomes of volumes as a whole. */
#include "journal_py.h"

#include <errno.h>

#include "gate.h"
#include "locks.h"
#include "volume_py.h"

enum { max_notes = 64 };

struct note_item {
    struct bd_volume *volume;
    const uint8_t *payload;
    uint64_t length;
    struct bd_note note;
    unsigned long long lsn;
    unsigned long long seq;
};

/* Why it cannot be appended now; 0 when it can. The journal's lock is held. */
static int refusal(const struct note_item *item, bool retired)
{
    const struct bd_volume *volume = item->volume;
    if (volume->retired != retired || (volume->gate != NULL && atomic_load(&volume->gate->shut)))
        return -ESHUTDOWN;
    if (item->note.kind == BD_NOTE_RESTORE && (!retired || volume->frozen != NULL))
        return -EBUSY;
    return item->note.size_before == volume->size ? 0 : -EINVAL;
}

/* What the gate is told: reads of what a NOTE changes wait until W nodes have it. */
static void tell_gate(const struct note_item *item)
{
    const struct bd_note *note = &item->note;
    uint64_t least = note->size < note->size_before ? note->size : note->size_before;
    if (note->kind == BD_NOTE_RESTORE)
        least = 0;
    else if (note->size == note->size_before)
        return;
    bd_gate_note(item->volume->gate, item->seq, least, BD_MAX_VOLUME_BYTES - least);
}

/* All of them without anything in between. The journal's lock is held. */
static int append_all(struct bd_journal *journal, struct note_item *items, Py_ssize_t count,
                      uint64_t now_ns, bool retired, Py_ssize_t *done)
{
    uint64_t bytes = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        int error = refusal(&items[i], retired);
        if (error < 0)
            return error;
        bytes += items[i].length + 3 * BD_RECORD_HEADER; /* of a MARK and of alignment, too */
    }
    if (count > 1 && !bd_journal_has_room(journal, 0, bytes, now_ns))
        return -EAGAIN;
    for (Py_ssize_t i = 0; i < count; i++) {
        struct note_item *item = &items[i];
        struct bd_record record = {.op = BD_RECORD_NOTE, .length = item->length};
        int error = bd_journal_add(journal, item->volume, record, item->payload, now_ns, NULL);
        item->lsn = journal->group.lsn - 1;
        item->seq = bd_journal_seq(journal, item->volume);
        if (error == 0 && item->volume->gate != NULL)
            tell_gate(item);
        if (error == 0)
            error = bd_journal_commit(journal);
        if (error < 0)
            return error;
        *done = i + 1;
    }
    return 0;
}

static int take_items(PyObject *self, PyObject *list, struct note_item *items, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *core;
        const char *payload;
        Py_ssize_t length;
        if (!PyArg_ParseTuple(PyList_GET_ITEM(list, i), "O!y#;a NOTE is a core and its payload",
                              &bd_volume_type, &core, &payload, &length))
            return -1;
        struct note_item *item = &items[i];
        item->volume = ((bd_volume_object *)core)->volume;
        item->payload = (const uint8_t *)payload;
        item->length = (uint64_t)length;
        if (item->volume->journal != bd_journal_of(self) ||
            bd_note_decode(item->payload, item->length, &item->note) < 0) {
            PyErr_SetString(PyExc_ValueError, "no NOTE, or one of a volume of another journal");
            return -1;
        }
    }
    return 0;
}

/* See the stub. The list and what it refers to stay with the caller, who waits. */
PyObject *bd_py_append_notes(PyObject *self, PyObject *args)
{
    PyObject *list;
    unsigned long long now_ns;
    int retired = 0;
    if (!PyArg_ParseTuple(args, "O!K|p:append_notes", &PyList_Type, &list, &now_ns, &retired))
        return NULL;
    struct note_item items[max_notes];
    Py_ssize_t count = PyList_GET_SIZE(list);
    if (count > max_notes)
        return bd_raise_errno(-EFBIG);
    if (take_items(self, list, items, count) < 0)
        return NULL;
    struct bd_journal *journal = bd_journal_of(self);
    Py_ssize_t done = 0;
    bd_lock(&journal->lock);
    int error = append_all(journal, items, count, now_ns, retired != 0, &done);
    pthread_mutex_unlock(&journal->lock);
    if (error < 0 && done == 0)
        return bd_raise_errno(error);
    PyObject *result = PyList_New(done);
    for (Py_ssize_t i = 0; result != NULL && i < done; i++) {
        PyObject *pair = Py_BuildValue("(KK)", items[i].lsn, items[i].seq);
        if (pair == NULL)
            Py_CLEAR(result);
        else
            PyList_SET_ITEM(result, i, pair);
    }
    return result;
}
