"""Which old segments still have their pages in memory, so that new ones can take those pages over.

A page that the kernel takes from its free memory is dear where the memory is not there until it is
touched: in a virtual machine whose host takes free pages back, its first touch is a fault of the
host, ten times as long as the copy that follows. A page that was let go a moment ago is used again
at the cost of the copy alone.

So the newest segments of the any-write window stay in memory, up to a bound, and whenever a segment
begins to take pages the oldest of them gives its own back: one in, one out, and not before (a host
takes what is free within two seconds). They are clean, and the kernel may take them at any time:
this only chooses the moment.

Not thread-safe: the pool's lock is held.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable

from volume.disk import File

WARM_BYTES = 4 << 30  # of old segments in memory: a few seconds of writing at full speed
WARM_SHARE = 8  # at most one WARM_SHARE-th of the memory
COOLED_S = 2.0  # after the first try the disk has what was dirty, and a second one is of use


def warm_limit(segment_bytes: int) -> int:
    """How many old segments may stay in memory."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(WARM_BYTES, memory // WARM_SHARE) // segment_bytes)


def cool(file: File) -> None:
    """Have a segment's pages leave the memory; those that are dirty are written first, and stay."""
    fd = file.native()
    if isinstance(fd, int):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def warm(file: File) -> None:
    """Have a segment's pages brought in: it is read soon, or recycled, and a part of an absent page
    cannot be overwritten without reading it first."""
    fd = file.native()
    if isinstance(fd, int):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)


class WarmPages:
    """The old segments that are in memory; the oldest is that of the lowest sequence."""

    def __init__(self, limit: int, drop: Callable[[File], None] = cool) -> None:
        """`limit`: segments. `drop` lets go of the pages of one."""
        self._limit = limit
        self._drop = drop
        self._warm: dict[int, tuple[int, File]] = {}  # slot: (sequence, file)
        self._cooling: deque[tuple[float, int, File]] = deque()  # (when, slot, file)

    def keep(self, slot: int, sequence: int, file: File, now_s: float) -> None:
        """A segment is not written any more; its pages stay until others need the room. One that
        was found at a start may have none in memory, which nobody looks at."""
        self._warm[slot] = sequence, file
        while len(self._warm) > self._limit:
            self.make_way(now_s)

    def make_way(self, now_s: float) -> None:
        """A segment begins to take pages: those of the oldest one go."""
        if self._warm:
            slot = min(self._warm, key=lambda each: self._warm[each][0])
            _, file = self._warm.pop(slot)
            self._drop(file)
            self._cooling.append((now_s + COOLED_S, slot, file))

    def forget(self, slot: int) -> bool:
        """A segment is written again, or its file is about to be closed. Whether it was warm."""
        self._cooling = deque(each for each in self._cooling if each[1] != slot)
        return self._warm.pop(slot, None) is not None

    def tend(self, now_s: float) -> None:
        """Try again with those of which something was dirty."""
        while self._cooling and self._cooling[0][0] <= now_s:
            self._drop(self._cooling.popleft()[2])
