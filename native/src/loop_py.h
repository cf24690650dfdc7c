/* Python face of the request loop: Loop, and LoopClient, one client's socket in it. */
#ifndef BLOCKD_LOOP_PY_H
#define BLOCKD_LOOP_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "loop.h"

typedef struct {
    PyObject_HEAD struct bd_loop *loop; /* NULL once closed */
} bd_loop_object;

extern PyTypeObject bd_loop_type;
extern PyTypeObject bd_loop_client_type;

/* A descriptor of the same socket, for a client of the loop; -1 with an exception. */
int bd_loop_duplicate(int fd);

/* Add a client (whose reference this takes, also when it fails) to the loop. `kept` is kept alive
 * until the client has stopped: the volumes and accounts that it uses. NULL with an exception. */
PyObject *bd_loop_client_add(bd_loop_object *loop, struct bd_client *client, PyObject *kept,
                             PyObject *owner);

/* The client of a LoopClient. */
struct bd_client *bd_loop_client_of(PyObject *object);

int bd_loop_register(PyObject *module);

#endif
