/* bd_file over a Python object: the seam through which tests put a simulated disk under the core.
 */
#ifndef BLOCKD_FILE_PY_H
#define BLOCKD_FILE_PY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "file_io.h"

/* From what volume.disk.File.native() returned: an int is a descriptor, which is duplicated;
 * anything else is called for each operation. 0, or -1 with an exception. Needs the GIL. */
int bd_file_from_object(struct bd_file *file, PyObject *object);

#endif
