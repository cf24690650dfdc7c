/* Python face of accounts: Account, ACCOUNT_OPS, ACCOUNT_BOUNDS_NS. */
#ifndef BLOCKD_ACCOUNT_PY_H
#define BLOCKD_ACCOUNT_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "account.h"

extern PyTypeObject bd_account_type;

/* The account of an Account, for as long as that lives; NULL for None. -1 with an exception. */
int bd_account_of(PyObject *object, struct bd_account **account);

int bd_account_register(PyObject *module);

#endif
