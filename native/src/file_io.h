/* File I/O of the C core goes through a table of function pointers, so that the same code runs on
 * real files and on the simulated disk of the tests (file_py.c). Every function returns a
 * non-negative result or -errno. */
#ifndef BLOCKD_FILE_IO_H
#define BLOCKD_FILE_IO_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct bd_file;

struct bd_file_ops {
    /* Read up to `length` bytes; fewer only at the end of the file. With `nowait`, -EAGAIN
     * instead of waiting for the disk. */
    ssize_t (*pread)(struct bd_file *file, void *data, size_t length, uint64_t offset, bool nowait);
    /* Write everything or fail; may change iov. After a failure any part may be written. */
    int (*pwritev)(struct bd_file *file, struct iovec *iov, int count, uint64_t offset);
    /* fdatasync. After an error the file's contents are unknown: never call it again. */
    int (*sync)(struct bd_file *file);
    void (*close)(struct bd_file *file);
};

struct bd_file {
    const struct bd_file_ops *ops;
    void *object; /* of the ops' own */
    int fd;
    atomic_bool no_nowait; /* this file system has no RWF_NOWAIT: plain reads instead */
    atomic_bool no_once;   /* ... no RWF_DONTCACHE, likewise */
};

/* Take over a file descriptor: closed by ops->close. */
void bd_file_open_fd(struct bd_file *file, int fd);

/* Whether its descriptor is one of the kernel's own files, no simulated one. */
bool bd_file_is_plain(const struct bd_file *file);

/* As `pwritev`, of a plain file; the kernel begins to write it to the disk at once, and does not
 * keep its pages. -ENOTSUP: it is known that the kernel cannot do that, and nothing is written. */
int bd_file_write_once(struct bd_file *file, struct iovec *iov, int count, uint64_t offset);

/* As bd_file_read_exact, waiting; what is read for it from the disk does not stay in memory, where
 * the kernel can do that. */
int bd_file_read_once(struct bd_file *file, void *data, size_t length, uint64_t offset);

/* Let the kernel begin to write a range to the disk; promises nothing. */
void bd_file_write_behind(struct bd_file *file, uint64_t offset, uint64_t length);

/* Let the kernel begin to read a range into the page cache; promises nothing. */
void bd_file_read_ahead(struct bd_file *file, uint64_t offset, uint64_t length);

/* Read exactly `length` bytes: 0, -EAGAIN, -ENODATA at the end of the file, or -errno. */
int bd_file_read_exact(struct bd_file *file, void *data, size_t length, uint64_t offset,
                       bool nowait);

#endif
