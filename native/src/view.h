/* Bytes of packs that go to a socket without being copied.
 *
 * A large read of raw chunks would copy each byte twice: out of the page cache, and into the
 * socket. Here the pages themselves go: the pack is mapped, its pages are put into a pipe by
 * vmsplice, verified through the mapping, and spliced from the pipe into the socket.
 *
 * Order, and why it is sound:
 *
 *   1. mincore: all pages of the range are in memory; else -EAGAIN, and a thread that may wait for
 *      the disk reads them. (A page that goes between here and 2 is read again by 2: a wait for the
 *      disk that is as rare as it is short.)
 *   2. vmsplice takes a reference of each page that the mapping shows, and faults in those that it
 *      does not show. A page that cannot be read is an error here (EFAULT), never a signal.
 *   3. The bytes are verified through the mapping. It shows the very pages that the pipe has: the
 *      kernel takes no page out of the page cache, nor moves it, while somebody else refers to it,
 *      so there is nothing to fault in anew, and no I/O whose error would be SIGBUS.
 *   4. Only then a header says that the read went well; what follows it are the pipe's pages.
 *
 * Verified before 2, a page could be taken back by the kernel, and read again, rotten, by 2.
 *
 * A file that somebody cuts short meanwhile (nobody of ours does) shows no such page any more, to
 * look at it is SIGBUS, and so 3 is done under guard.h: the read fails like any of damaged bytes.
 *
 * What would break it is somebody who changes the pages while a socket has them (also after the
 * peer has acknowledged them: over loopback its socket has the same pages until it receives). Bytes
 * of a pack that a place points at never change: packs are appended to, and unlinked, which leaves
 * pages as they are; what is cut off a tail was never synced, so no place points there. Who adds
 * punching of holes has to know that it zeroes parts of pages in place.
 *
 * Bounds: the pipes of a process (BD_VIEW_PIPES, and no more than a sixteenth of the file
 * descriptors), for each up to 2 MiB of pages that cannot be taken back while they are unsent; and
 * what is mapped, BD_VIEW_MAPPED or one pack, in at most BD_VIEW_MAPPINGS mappings (the kernel lets
 * a process have so many, and all else that it has is among them), which costs page tables (2 MiB a
 * GiB), not memory: it is page cache, though the process's resident size counts it. Where any of
 * that is refused, the read is copied as ever. When no worker has clients any more, and when a
 * store is at rest, all of it is given back. */
#ifndef BLOCKD_VIEW_H
#define BLOCKD_VIEW_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "place_table.h"

enum {
    BD_VIEW_LEAST = 64 << 10, /* of a read; below, two system calls more cost what the copy does */
    BD_VIEW_MOST = 1 << 20,
    BD_VIEW_STEP = 16 << 10, /* of a chunk's part of it */
    BD_VIEW_PIECES = 40,
    BD_VIEW_PIPES = 32,
    BD_VIEW_MAPPINGS = 256, /* kept; of all packs, however short */
};

#define BD_VIEW_MAPPED (UINT64_C(2) << 30)

/* Bytes in order: pinned pages of packs, and what was copied to memory of the caller's. */
struct bd_view_piece {
    const uint8_t *data;
    size_t length;
    bool pinned;
};

struct bd_pipe {
    int read;
    int write;
    size_t slots; /* pages it has room for */
    size_t used;
    size_t bytes;
};

struct bd_mapping;

struct bd_view {
    atomic_uint refs;
    bool copied; /* the socket takes no pages: pinned bytes are sent from the mapping */
    unsigned piece_count;
    unsigned pipe_count;
    unsigned first_pipe; /* with unsent bytes */
    unsigned mapping_count;
    struct bd_view_piece pieces[BD_VIEW_PIECES];
    struct bd_pipe pipes[2];
    struct bd_mapping *mappings[BD_VIEW_PIECES];
};

/* With one reference; NULL when memory runs out. */
struct bd_view *bd_view_new(void);
void bd_view_retain(struct bd_view *view);
void bd_view_release(struct bd_view *view);

/* Add bytes that stay where they are until they are sent or kept. False: too many pieces. */
bool bd_view_add(struct bd_view *view, const uint8_t *data, size_t length);

/* Add [at, at + length) of a pack, which is to be verified at *data before it is sent. At most
 * BD_VIEW_MOST bytes. 0; -EAGAIN when the disk would have to be waited for; -ENOTSUP when it cannot
 * be pinned, and nothing was added; -EFAULT when the view is of no use any more. */
int bd_view_pin(struct bd_view *view, struct bd_pack *pack, uint64_t at, size_t length,
                const uint8_t **data);

/* Whether pinned bytes are those that were written: one u32le checksum for each BD_PAGE of them, or
 * less at the end, in `checks`. False too when somebody has cut the file short meanwhile. */
bool bd_view_holds(const uint8_t *data, size_t length, const uint8_t *checks);

/* Copy all its bytes, which are in memory. Not after any were sent. False: the file was cut short
 * since they were verified. */
bool bd_view_copy(const struct bd_view *view, uint8_t *data);

/* Whether anything is pinned. */
bool bd_view_has_pins(const struct bd_view *view);

/* Move up to `length` pinned bytes, those that come next, to a socket that does not block. `more`:
 * something follows at once. How many went; 0: the socket is full; -EOPNOTSUPP: it takes no pages,
 * and from now on `copied` is set; -errno. One thread at a time. */
ssize_t bd_view_splice(struct bd_view *view, int socket, size_t length, bool more);

/* Bytes that have left by bd_view_splice, in this process. */
uint64_t bd_view_spliced(void);

/* Give back pipes and mappings that nobody uses now. */
void bd_view_idle(void);

/* A thread that sends views has clients from now on; or has none any more, and when it was the last
 * of these threads, that is bd_view_idle. */
void bd_view_enter(void);
void bd_view_leave(void);

/* The pack is about to be closed. */
void bd_view_forget(struct bd_pack *pack);

#endif
