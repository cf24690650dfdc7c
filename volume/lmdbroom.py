"""Disk space for an LMDB file, taken before LMDB writes to it.

LMDB takes a write that the file system cut short for a failing disk: on a full one its commits say
EIO, hardly ever ENOSPC. So the file's blocks are allocated ahead of what an update may write; when
that cannot be done, there is no room, and an EIO says nothing about the disk. An update that fails
leaves the map as it was either way: its pages are written anew by the next one.
"""

import errno
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NO_SPACE_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the last: by a limit of the process
_UNSUPPORTED_ERRNOS = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
STEP_BYTES = 1024 * 1024  # allocated at once, so that few updates have to
SLACK_PAGES = 16  # roots, and lists of free pages
NODE_BYTES = 10  # of an item on its page, beside key and value
FREE_IDS = 256  # page numbers on a page of such a list, in use by half


@dataclass(frozen=True, slots=True)
class Tree:
    """The B+tree of a map."""

    page_bytes: int
    depth: int
    leaf_pages: int
    branch_pages: int


def pages_of_update(
    tree: Tree, puts: Sequence[tuple[bytes, bytes]], deletes: Sequence[bytes]
) -> int:
    """Most pages that an update of `tree` writes, give or take a few.

    Each item may be on a page of its own, which is written elsewhere; a put may split that page, a
    delete join it with its neighbour. Pages of what is put are half full at least; what is longer
    than half a page has pages of its own."""
    page = tree.page_bytes
    items = len(puts) + len(deletes)
    leaves = 2 * min(items, tree.leaf_pages + 1)
    branches = 2 * min(items * max(1, tree.depth), tree.branch_pages + 1)
    filled = math.ceil(
        sum(_pages_of(len(key) + len(value) + NODE_BYTES, page) for key, value in puts)
    )
    written = leaves + branches + filled
    return written + written // FREE_IDS + SLACK_PAGES


def _pages_of(node: int, page: int) -> float:
    if 2 * node > page:
        return node // page + 2
    return 1 / max(1, page // node // 2)


class FileRoom:
    """The blocks of one file. Calls one at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._allocated = 0  # of an older file, perhaps with holes: nothing is known

    def reach(self, end: int) -> bool:
        """Have [0, end) allocated; False when there is no room for that. Other OSErrors."""
        if end <= self._allocated:
            return True
        steps = -(-end // STEP_BYTES) * STEP_BYTES
        if self._allocate(steps):
            self._allocated = steps
        elif self._allocate(end):
            self._allocated = end
        return end <= self._allocated

    def _allocate(self, end: int) -> bool:
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, self._allocated, end - self._allocated)
        except OSError as error:
            if error.errno in NO_SPACE_ERRNOS:
                return False
            if error.errno not in _UNSUPPORTED_ERRNOS:
                raise
        finally:
            os.close(fd)
        return True
