/* Python glue of sites.c. */
#include "sites_py.h"

#include "sites.h"

/* arm_site(name, nth, chance, seed); see sites.h */
static PyObject *py_arm_site(PyObject *self, PyObject *args)
{
    (void)self;
    const char *name;
    unsigned long long nth, chance, seed;
    if (!PyArg_ParseTuple(args, "sKKK:arm_site", &name, &nth, &chance, &seed))
        return NULL;
    if (bd_site_arm(name, nth, chance, seed) < 0)
        return PyErr_Format(PyExc_KeyError, "no site %s", name);
    Py_RETURN_NONE;
}

static PyObject *py_disarm_sites(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    bd_sites_disarm();
    Py_RETURN_NONE;
}

static PyObject *py_report_sites(PyObject *self, PyObject *args)
{
    (void)self;
    int fd;
    if (!PyArg_ParseTuple(args, "i:report_sites", &fd))
        return NULL;
    bd_sites_report(fd);
    Py_RETURN_NONE;
}

/* native_sites() -> [(kind, name, reached, fired)] */
static PyObject *py_native_sites(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    static const char *const kinds[] = {"point", "rare", "rule"};
    PyObject *list = PyList_New(BD_SITE_COUNT);
    for (int site = 0; list != NULL && site < BD_SITE_COUNT; site++) {
        struct bd_site_facts facts = bd_site_facts(site);
        PyObject *row =
            Py_BuildValue("ssKK", kinds[facts.kind], facts.name, (unsigned long long)facts.reached,
                          (unsigned long long)facts.fired);
        if (row == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, site, row);
    }
    return list;
}

static PyMethodDef site_methods[] = {
    {"arm_site", py_arm_site, METH_VARARGS, NULL},
    {"disarm_sites", py_disarm_sites, METH_NOARGS, NULL},
    {"report_sites", py_report_sites, METH_VARARGS, NULL},
    {"native_sites", py_native_sites, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int bd_sites_register(PyObject *module)
{
    return PyModule_AddFunctions(module, site_methods);
}
