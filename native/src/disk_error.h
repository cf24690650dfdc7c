/* What an error of the operating system means for a store that wanted to change a file of its own.
 *
 *     any, of a sync                          sealed: what was not on the disk yet may be gone, and
 *                                             the next sync would not say so
 *     ENOSPC EDQUOT EFBIG                     no space: goes on when there is some
 *     EACCES EPERM                            refused by rights: goes on when they are set right
 *     EMFILE ENFILE ENOMEM ENOBUFS ENOLCK     refused for want of something else than disk
 *     EAGAIN EINTR EBUSY ETXTBSY              refused for now
 *     EIO ENXIO ENODEV ENODATA EREMOTEIO      sealed: the device fails, or is not there
 *     EROFS EUCLEAN EBADMSG EILSEQ            sealed: the file system has found itself damaged
 *     ESTALE ENOTCONN ETIMEDOUT ENOLINK       sealed: a remote one is gone
 *     ENOENT EEXIST EBADF EINVAL, all others  sealed: somebody else, or a bug, is at the files
 *
 * Refused is what the kernel says before it changes anything. So the caller goes on from where it
 * was, and tries again; the log tells. Sealed is the store when the disk may hold something else
 * than what we think: nothing is written to it any more, until an operator has had a look.
 *
 * What cannot be read is damage of what was read, and seals nothing (volume/packfile.py). */
#ifndef BLOCKD_DISK_ERROR_H
#define BLOCKD_DISK_ERROR_H

#include <errno.h>
#include <stdbool.h>

/* Whether a change of a file, no sync, that fails with this (positive) errno seals the store. */
static inline bool bd_error_seals(int error)
{
    switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EACCES:
    case EPERM:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case ENOBUFS:
    case ENOLCK:
    case EAGAIN:
    case EINTR:
    case EBUSY:
    case ETXTBSY:
        return false;
    default:
        return true;
    }
}

#endif
