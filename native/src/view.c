#include "view.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "bytes.h"
#include "crc32c.h"
#include "guard.h"
#include "sites.h"

enum {
    PIPE_BYTES = 2 << 20, /* who may not have that many: */
    PIPE_BYTES_LESS = 1 << 20,
    LEAST_SLOTS = 34,        /* of a pipe that is worth its descriptors */
    DESCRIPTORS_A_PIPE = 32, /* that the process may have, for each pipe */
    LEAST_PAGE = 4096,
};

/* A pack's file, all of it that there was. */
struct bd_mapping {
    atomic_uint refs;     /* its pack's, and views' */
    struct bd_pack *pack; /* NULL: the pack has none, or another */
    uint8_t *base;
    size_t length;
    struct bd_mapping *newer;
    struct bd_mapping *older;
};

static struct {
    pthread_mutex_t lock; /* the last of all locks */
    struct bd_pipe free_pipes[BD_VIEW_PIPES];
    unsigned free_count;
    unsigned pipe_count; /* those in use included */
    struct bd_mapping *newest;
    struct bd_mapping *oldest;
    uint64_t mapped;
    unsigned mapping_count;
    unsigned users; /* threads that have clients */
} shared = {.lock = PTHREAD_MUTEX_INITIALIZER};

static atomic_uint_fast64_t spliced;

/* Mappings. */

static void release_mapping(struct bd_mapping *mapping)
{
    if (mapping != NULL && atomic_fetch_sub(&mapping->refs, 1) == 1) {
        munmap(mapping->base, mapping->length);
        free(mapping);
    }
}

static void unlink_mapping(struct bd_mapping *mapping)
{
    if (mapping->newer != NULL)
        mapping->newer->older = mapping->older;
    else
        shared.newest = mapping->older;
    if (mapping->older != NULL)
        mapping->older->newer = mapping->newer;
    else
        shared.oldest = mapping->newer;
    mapping->newer = mapping->older = NULL;
}

static void link_newest(struct bd_mapping *mapping)
{
    mapping->older = shared.newest;
    if (shared.newest != NULL)
        shared.newest->newer = mapping;
    else
        shared.oldest = mapping;
    shared.newest = mapping;
}

/* Take it from its pack, whose reference is then that of list *old, to be released without the
 * lock, which is held. */
static void detach(struct bd_mapping *mapping, struct bd_mapping **old)
{
    unlink_mapping(mapping);
    shared.mapped -= mapping->length;
    shared.mapping_count--;
    mapping->pack->mapping = NULL;
    mapping->pack = NULL;
    mapping->older = *old;
    *old = mapping;
}

static void release_mappings(struct bd_mapping *old)
{
    while (old != NULL) {
        struct bd_mapping *mapping = old;
        old = mapping->older;
        release_mapping(mapping);
    }
}

static struct bd_mapping *map(const struct bd_pack *pack, uint64_t end)
{
    struct stat facts;
    if (fstat(pack->file.fd, &facts) < 0 || facts.st_size < 0 || (uint64_t)facts.st_size < end)
        return NULL;
    struct bd_mapping *mapping = calloc(1, sizeof *mapping);
    if (mapping == NULL)
        return NULL;
    mapping->length = (size_t)facts.st_size;
    mapping->base = mmap(NULL, mapping->length, PROT_READ, MAP_SHARED, pack->file.fd, 0);
    if (mapping->base == MAP_FAILED) {
        free(mapping);
        return NULL;
    }
    atomic_init(&mapping->refs, 1);
    return mapping;
}

/* A mapping of the pack at least up to `end`, with a reference for the caller; NULL: none. */
static struct bd_mapping *find_mapping(struct bd_pack *pack, uint64_t end)
{
    struct bd_mapping *old = NULL;
    pthread_mutex_lock(&shared.lock);
    struct bd_mapping *found = pack->mapping;
    if (found != NULL && found->length >= end) {
        unlink_mapping(found);
        link_newest(found);
    } else {
        struct bd_mapping *fresh = map(pack, end);
        if (fresh != NULL) {
            if (found != NULL)
                detach(found, &old);
            pack->mapping = fresh;
            fresh->pack = pack;
            link_newest(fresh);
            shared.mapped += fresh->length;
            shared.mapping_count++;
            while ((shared.mapped > BD_VIEW_MAPPED || shared.mapping_count > BD_VIEW_MAPPINGS) &&
                   shared.oldest != fresh)
                detach(shared.oldest, &old);
        }
        found = fresh;
    }
    if (found != NULL)
        atomic_fetch_add(&found->refs, 1);
    pthread_mutex_unlock(&shared.lock);
    release_mappings(old);
    return found;
}

void bd_view_forget(struct bd_pack *pack)
{
    struct bd_mapping *old = NULL;
    pthread_mutex_lock(&shared.lock);
    if (pack->mapping != NULL)
        detach(pack->mapping, &old);
    pthread_mutex_unlock(&shared.lock);
    release_mappings(old);
}

/* Pipes. */

static void close_pipe(struct bd_pipe *pipe)
{
    close(pipe->read);
    close(pipe->write);
}

static bool open_pipe(struct bd_pipe *pipe)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return false;
    *pipe = (struct bd_pipe){.read = ends[0], .write = ends[1]};
    if (fcntl(pipe->write, F_SETPIPE_SZ, PIPE_BYTES) < 0)
        (void)fcntl(pipe->write, F_SETPIPE_SZ, PIPE_BYTES_LESS);
    int bytes = fcntl(pipe->write, F_GETPIPE_SZ);
    pipe->slots = bytes < 0 ? 0 : (size_t)bytes / (size_t)sysconf(_SC_PAGESIZE);
    if (pipe->slots >= LEAST_SLOTS)
        return true;
    close_pipe(pipe);
    return false;
}

static unsigned most_pipes(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return 0;
    rlim_t most = limit.rlim_cur / DESCRIPTORS_A_PIPE;
    return most < BD_VIEW_PIPES ? (unsigned)most : BD_VIEW_PIPES;
}

static bool take_pipe(struct bd_pipe *pipe)
{
    pthread_mutex_lock(&shared.lock);
    bool is_free = shared.free_count > 0;
    bool may_open = !is_free && shared.pipe_count < most_pipes();
    if (is_free)
        *pipe = shared.free_pipes[--shared.free_count];
    if (may_open)
        shared.pipe_count++;
    pthread_mutex_unlock(&shared.lock);
    if (!may_open)
        return is_free;
    if (open_pipe(pipe))
        return true;
    pthread_mutex_lock(&shared.lock);
    shared.pipe_count--;
    pthread_mutex_unlock(&shared.lock);
    return false;
}

/* A pipe with anything left in it is not used again. */
static void give_back_pipe(struct bd_pipe *pipe)
{
    int left = 0;
    bool empty = pipe->bytes == 0 && ioctl(pipe->read, FIONREAD, &left) == 0 && left == 0;
    pipe->used = 0;
    pthread_mutex_lock(&shared.lock);
    if (empty)
        shared.free_pipes[shared.free_count++] = *pipe;
    else
        shared.pipe_count--;
    pthread_mutex_unlock(&shared.lock);
    if (!empty)
        close_pipe(pipe);
}

void bd_view_idle(void)
{
    struct bd_pipe pipes[BD_VIEW_PIPES];
    struct bd_mapping *old = NULL;
    pthread_mutex_lock(&shared.lock);
    unsigned count = shared.free_count;
    for (unsigned i = 0; i < count; i++)
        pipes[i] = shared.free_pipes[i];
    shared.free_count = 0;
    shared.pipe_count -= count;
    while (shared.oldest != NULL)
        detach(shared.oldest, &old);
    pthread_mutex_unlock(&shared.lock);
    for (unsigned i = 0; i < count; i++)
        close_pipe(&pipes[i]);
    release_mappings(old);
}

void bd_view_enter(void)
{
    pthread_mutex_lock(&shared.lock);
    shared.users++;
    pthread_mutex_unlock(&shared.lock);
}

void bd_view_leave(void)
{
    pthread_mutex_lock(&shared.lock);
    assert(shared.users > 0);
    bool last = --shared.users == 0;
    pthread_mutex_unlock(&shared.lock);
    if (last)
        bd_view_idle(); /* who has come since then opens and maps what it needs anew */
}

/* Views. */

struct bd_view *bd_view_new(void)
{
    struct bd_view *view = malloc(sizeof *view);
    if (view == NULL)
        return NULL;
    atomic_init(&view->refs, 1);
    view->copied = false;
    view->piece_count = view->pipe_count = view->first_pipe = view->mapping_count = 0;
    return view;
}

void bd_view_retain(struct bd_view *view)
{
    atomic_fetch_add(&view->refs, 1);
}

void bd_view_release(struct bd_view *view)
{
    if (view == NULL || atomic_fetch_sub(&view->refs, 1) != 1)
        return;
    for (unsigned i = 0; i < view->pipe_count; i++)
        give_back_pipe(&view->pipes[i]);
    for (unsigned i = 0; i < view->mapping_count; i++)
        release_mapping(view->mappings[i]);
    free(view);
}

bool bd_view_add(struct bd_view *view, const uint8_t *data, size_t length)
{
    if (view->piece_count > 0) {
        struct bd_view_piece *last = &view->pieces[view->piece_count - 1];
        if (!last->pinned && last->data + last->length == data) {
            last->length += length;
            return true;
        }
    }
    if (view->piece_count == BD_VIEW_PIECES)
        return false;
    view->pieces[view->piece_count++] = (struct bd_view_piece){data, length, false};
    return true;
}

struct check {
    const uint8_t *data;
    size_t length;
    const uint8_t *checks;
    bool holds;
};

static void check_pages(void *argument)
{
    struct check *check = argument;
    const uint8_t *expected = check->checks;
    for (size_t at = 0; at < check->length; at += BD_PAGE, expected += 4) {
        size_t rest = check->length - at;
        if (bd_crc32c(0, check->data + at, rest < BD_PAGE ? rest : BD_PAGE) != bd_get32(expected))
            return;
    }
    check->holds = true;
}

bool bd_view_holds(const uint8_t *data, size_t length, const uint8_t *checks)
{
    struct check check = {data, length, checks, false};
    bool is_there = bd_guarded(data, length, check_pages, &check);
    return is_there && (check.holds || bd_site_fires(BD_SITE_UNCHECKED_READ));
}

struct copy {
    uint8_t *to;
    const struct bd_view_piece *piece;
};

static void copy_piece(void *argument)
{
    const struct copy *copy = argument;
    memcpy(copy->to, copy->piece->data, copy->piece->length);
}

bool bd_view_copy(const struct bd_view *view, uint8_t *data)
{
    for (unsigned i = 0; i < view->piece_count; i++) {
        const struct bd_view_piece *piece = &view->pieces[i];
        struct copy copy = {data, piece};
        if (data != piece->data && /* what was copied lies where it belongs */
            !bd_guarded(piece->data, piece->length, copy_piece, &copy))
            return false;
        data += piece->length;
    }
    return true;
}

bool bd_view_has_pins(const struct bd_view *view)
{
    return view->pipe_count > 0;
}

/* A pipe with room for so many more pages, behind what is pinned already. */
static struct bd_pipe *pipe_for(struct bd_view *view, size_t pages)
{
    if (view->pipe_count > 0) {
        struct bd_pipe *last = &view->pipes[view->pipe_count - 1];
        if (last->slots - last->used >= pages)
            return last;
    }
    struct bd_pipe *next = &view->pipes[view->pipe_count];
    if (view->pipe_count == sizeof view->pipes / sizeof *view->pipes || !take_pipe(next))
        return NULL;
    if (next->slots < pages) {
        give_back_pipe(next);
        return NULL;
    }
    view->pipe_count++;
    return next;
}

/* The mapping is the view's from now on, if it is not already. */
static void keep_mapping(struct bd_view *view, struct bd_mapping *mapping)
{
    if (view->mapping_count > 0 && view->mappings[view->mapping_count - 1] == mapping)
        release_mapping(mapping);
    else
        view->mappings[view->mapping_count++] = mapping;
}

int bd_view_pin(struct bd_view *view, struct bd_pack *pack, uint64_t at, size_t length,
                const uint8_t **data)
{
    unsigned char present[BD_VIEW_MOST / LEAST_PAGE + 2];
    assert(length > 0 && length <= BD_VIEW_MOST);
    if (view->piece_count == BD_VIEW_PIECES || !bd_file_is_plain(&pack->file))
        return -ENOTSUP;
    struct bd_mapping *mapping = find_mapping(pack, at + length);
    if (mapping == NULL)
        return -ENOTSUP;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t first = (size_t)at & ~(page - 1);
    size_t pages = ((size_t)at + length - first + page - 1) / page;
    int error = 0;
    if (mincore(mapping->base + first, pages * page, present) < 0)
        error = -ENOTSUP;
    for (size_t i = 0; i < pages && error == 0; i++)
        if ((present[i] & 1) == 0)
            error = -EAGAIN;
    if (error == 0 && bd_site_fires(BD_SITE_WOULD_WAIT))
        error = -EAGAIN;
    struct bd_pipe *pipe = error == 0 ? pipe_for(view, pages) : NULL;
    if (error == 0 && pipe == NULL)
        error = -ENOTSUP;
    if (error < 0) {
        release_mapping(mapping);
        return error;
    }
    keep_mapping(view, mapping);
    struct iovec piece = {mapping->base + at, length};
    ssize_t count = vmsplice(pipe->write, &piece, 1, SPLICE_F_NONBLOCK);
    if (count > 0) {
        pipe->used += pages;
        pipe->bytes += (size_t)count;
    }
    if (count != (ssize_t)length)
        return -EFAULT; /* cannot be read, or the pipe has less room than it said */
    *data = piece.iov_base;
    view->pieces[view->piece_count++] = (struct bd_view_piece){*data, length, true};
    return 0;
}

ssize_t bd_view_splice(struct bd_view *view, int socket, size_t length, bool more)
{
    assert(view->first_pipe < view->pipe_count && length > 0);
    struct bd_pipe *pipe = &view->pipes[view->first_pipe];
    assert(pipe->bytes > 0);
    unsigned flags = SPLICE_F_NONBLOCK;
    if (more || length > pipe->bytes)
        flags |= SPLICE_F_MORE;
    ssize_t count;
    do
        count = splice(pipe->read, NULL, socket, NULL, length < pipe->bytes ? length : pipe->bytes,
                       flags);
    while (count < 0 && errno == EINTR);
    if (count < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        if (errno != EINVAL && errno != EOPNOTSUPP && errno != ENOSYS)
            return -errno;
        view->copied = true;
        return -EOPNOTSUPP;
    }
    if (count == 0)
        return -EIO; /* the pipe is not what we think */
    pipe->bytes -= (size_t)count;
    atomic_fetch_add(&spliced, (uint64_t)count);
    if (pipe->bytes == 0)
        view->first_pipe++;
    return count;
}

uint64_t bd_view_spliced(void)
{
    return atomic_load(&spliced);
}
