#include "file_io.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <unistd.h>

#include "sites.h"

#ifndef RWF_DONTCACHE
#define RWF_DONTCACHE 0x00000080 /* Linux 6.14 */
#endif

static ssize_t posix_pread(struct bd_file *file, void *data, size_t length, uint64_t offset,
                           bool nowait)
{
    size_t done = 0;
    while (done < length) {
        struct iovec iov = {(char *)data + done, length - done};
        ssize_t got;
        if (iov.iov_len > 1 && bd_site_fires(BD_SITE_SHORT_READ))
            iov.iov_len /= 2;
        if (nowait && bd_site_fires(BD_SITE_WOULD_WAIT))
            return -EAGAIN;
        if (nowait && !file->no_nowait) {
            got = preadv2(file->fd, &iov, 1, (off_t)(offset + done), RWF_NOWAIT);
            if (got < 0 && errno == EOPNOTSUPP) {
                file->no_nowait = true;
                continue;
            }
        } else {
            got = preadv(file->fd, &iov, 1, (off_t)(offset + done));
        }
        if (got < 0) {
            if (errno == EINTR)
                continue;
            return -errno;
        }
        if (got == 0)
            break;
        done += (size_t)got;
    }
    return (ssize_t)done;
}

/* `once`: see bd_file_write_once. */
static int put_all(struct bd_file *file, struct iovec *iov, int count, uint64_t offset, bool once)
{
    while (count > 0) {
        int part = count < IOV_MAX ? count : IOV_MAX;
        if (part > 1 && bd_site_fires(BD_SITE_SHORT_WRITE))
            part = (part + 1) / 2;
        ssize_t put = once ? pwritev2(file->fd, iov, part, (off_t)offset, RWF_DONTCACHE)
                           : pwritev(file->fd, iov, part, (off_t)offset);
        if (put < 0) {
            if (errno == EINTR)
                continue;
            if (once && (errno == EOPNOTSUPP || errno == EINVAL)) {
                file->no_once = true;
                once = false;
                continue; /* perhaps some of it is written: the rest follows as usual */
            }
            return -errno;
        }
        bool stuck = put == 0;
        offset += (uint64_t)put;
        while (count > 0 && (size_t)put >= iov->iov_len) {
            put -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            if (stuck)
                return -EIO; /* neither progress nor an error: no reason to try for ever */
            iov->iov_base = (char *)iov->iov_base + put;
            iov->iov_len -= (size_t)put;
        }
    }
    return 0;
}

static int posix_pwritev(struct bd_file *file, struct iovec *iov, int count, uint64_t offset)
{
    return put_all(file, iov, count, offset, false);
}

static int posix_sync(struct bd_file *file)
{
    return fdatasync(file->fd) < 0 ? -errno : 0;
}

static void posix_close(struct bd_file *file)
{
    close(file->fd);
    file->fd = -1;
}

static const struct bd_file_ops posix_ops = {posix_pread, posix_pwritev, posix_sync, posix_close};

void bd_file_open_fd(struct bd_file *file, int fd)
{
    file->ops = &posix_ops;
    file->object = NULL;
    file->fd = fd;
    file->no_nowait = false;
    file->no_once = false;
}

bool bd_file_is_plain(const struct bd_file *file)
{
    return file->ops == &posix_ops;
}

int bd_file_read_exact(struct bd_file *file, void *data, size_t length, uint64_t offset,
                       bool nowait)
{
    ssize_t got = file->ops->pread(file, data, length, offset, nowait);
    if (got < 0)
        return (int)got;
    if ((size_t)got < length)
        return -ENODATA;
    return 0;
}

int bd_file_write_once(struct bd_file *file, struct iovec *iov, int count, uint64_t offset)
{
    return bd_file_is_plain(file) && !file->no_once ? put_all(file, iov, count, offset, true)
                                                    : -ENOTSUP;
}

int bd_file_read_once(struct bd_file *file, void *data, size_t length, uint64_t offset)
{
    for (size_t done = 0; bd_file_is_plain(file) && !file->no_once && done < length;) {
        struct iovec iov = {(char *)data + done, length - done};
        ssize_t got = preadv2(file->fd, &iov, 1, (off_t)(offset + done), RWF_DONTCACHE);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && (errno == EOPNOTSUPP || errno == EINVAL)) {
            file->no_once = true;
            break;
        }
        if (got < 0)
            return -errno;
        if (got == 0)
            return -ENODATA;
        done += (size_t)got;
        if (done == length)
            return 0;
    }
    return bd_file_read_exact(file, data, length, offset, false);
}

void bd_file_write_behind(struct bd_file *file, uint64_t offset, uint64_t length)
{
    if (file->fd >= 0)
        (void)sync_file_range(file->fd, (off_t)offset, (off_t)length, SYNC_FILE_RANGE_WRITE);
}

void bd_file_read_ahead(struct bd_file *file, uint64_t offset, uint64_t length)
{
    if (file->fd >= 0)
        (void)posix_fadvise(file->fd, (off_t)offset, (off_t)length, POSIX_FADV_WILLNEED);
}
