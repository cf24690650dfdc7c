/* Python face of looking through a segment. */
#include "scan_py.h"

#include <stdbool.h>
#include <string.h>

#include "file_py.h"
#include "journal_py.h"
#include "scan.h"

static PyObject *run_list(const struct bd_scan *scan)
{
    PyObject *list = PyList_New((Py_ssize_t)scan->run_count);
    for (size_t i = 0; list != NULL && i < scan->run_count; i++) {
        const struct bd_log_run *run = &scan->runs[i];
        PyObject *item =
            Py_BuildValue("(IIKKK)", run->volume, run->epoch, (unsigned long long)run->first,
                          (unsigned long long)run->last, (unsigned long long)run->end);
        if (item == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    return list;
}

static PyObject *head_item(const struct bd_record *record, const uint8_t *payload)
{
    return Py_BuildValue("(KIIKy#)", (unsigned long long)record->lsn, record->volume,
                         record->volume_epoch, (unsigned long long)record->seq,
                         (const char *)payload, (Py_ssize_t)record->length);
}

static PyObject *point_item(const struct bd_record *record, const uint8_t *payload)
{
    return Py_BuildValue("(Ky#)", (unsigned long long)record->lsn, (const char *)payload,
                         (Py_ssize_t)record->length);
}

static PyObject *tree_item(const struct bd_record *record, const uint8_t *payload)
{
    struct bd_refer refer;
    bd_refer_decode(payload, &refer); /* has been checked */
    return Py_BuildValue("(Iy#i)", record->volume, (const char *)refer.root,
                         (Py_ssize_t)sizeof refer.root, (int)refer.height);
}

/* The notes of one op, each as `item` makes it. */
static PyObject *note_list(const struct bd_scan *scan, uint8_t op,
                           PyObject *(*item)(const struct bd_record *, const uint8_t *))
{
    PyObject *list = PyList_New(0);
    for (size_t at = 0; list != NULL && at < scan->notes_length;) {
        struct bd_record record;
        memcpy(&record, scan->notes + at, sizeof record);
        at += sizeof record;
        if (record.op == op) {
            PyObject *made = item(&record, scan->notes + at);
            if (made == NULL || PyList_Append(list, made) < 0)
                Py_CLEAR(list);
            Py_XDECREF(made);
        }
        at += (size_t)bd_record_payload(&record);
    }
    return list;
}

static PyObject *found(const struct bd_scan *scan)
{
    PyObject *lists[] = {run_list(scan), note_list(scan, BD_RECORD_HEAD, head_item),
                         note_list(scan, BD_RECORD_POINT, point_item),
                         note_list(scan, BD_RECORD_REFER, tree_item)};
    enum { count = sizeof lists / sizeof *lists };
    bool whole = true;
    for (int i = 0; i < count; i++)
        whole = whole && lists[i] != NULL;
    if (!whole) {
        for (int i = 0; i < count; i++)
            Py_XDECREF(lists[i]);
        return NULL;
    }
    const struct bd_log_reader *reader = &scan->reader;
    return Py_BuildValue("((KIIK)NNNN)", (unsigned long long)reader->next_lsn, reader->chain,
                         reader->node_epoch, (unsigned long long)reader->position, lists[0],
                         lists[1], lists[2], lists[3]);
}

/* See the stub for arguments and result. */
static PyObject *py_scan_segment(PyObject *self, PyObject *args)
{
    (void)self;
    PyObject *object;
    unsigned long long segment_bytes;
    unsigned long long lsn;
    unsigned int chain;
    unsigned int node_epoch;
    unsigned long long position;
    if (!PyArg_ParseTuple(args, "OK(KIIK):scan_segment", &object, &segment_bytes, &lsn, &chain,
                          &node_epoch, &position))
        return NULL;
    struct bd_file file;
    if (bd_file_from_object(&file, object) < 0)
        return NULL;
    struct bd_scan scan = {.reader = {.file = &file,
                                      .segment_bytes = segment_bytes,
                                      .next_lsn = lsn,
                                      .chain = chain,
                                      .node_epoch = node_epoch,
                                      .position = position}};
    int error;
    Py_BEGIN_ALLOW_THREADS;
    error = bd_log_open(&scan.reader);
    if (error == 0)
        error = bd_scan_segment(&scan);
    Py_END_ALLOW_THREADS;
    PyObject *result = error < 0 ? bd_raise_errno(error) : found(&scan);
    bd_scan_close(&scan);
    file.ops->close(&file);
    return result;
}

static PyMethodDef scan_functions[] = {
    {"scan_segment", py_scan_segment, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int bd_scan_register(PyObject *module)
{
    return PyModule_AddFunctions(module, scan_functions);
}
