"""The receive buffer of a connection: where bytes land, and where payloads stay until submitted.

One contiguous region with `start <= end <= capacity`; bytes in [start, end) have landed and are not
parsed yet. A WRITE's payload is never copied: the request borrows a slice of this region, so a
message must fit into it as a whole. The parser says how many bytes the message at `start` needs
(`need`), and the next `room()` makes that fit.

The memory is an anonymous mapping and not a bytearray: pages cost nothing until bytes land in
them, so neither an idle connection nor a header that announces 32 MiB touches memory.

Views handed out stay valid until the next `room()` after the listener handled all events. `room`
is told when there are unhandled events (`borrowed`); it then never moves bytes within the
mapping but takes a new one, and the views keep the old one alive.
"""

import mmap
from typing import Final

MIN_ROOM: Final = 16 * 1024
"""Less free space than this is not worth a recv; what is left is moved to the front then."""
MESSAGE_SLACK: Final = 64 * 1024
"""Room behind a large payload, so that one recv can take the headers that follow it too."""
PAGE: Final = 4096


class ReceiveBuffer:
    """Bounded by its caller: capacity is max(base, need + slack), need being checked before."""

    __slots__ = ("_base", "_kept", "capacity", "end", "need", "start", "view")

    def __init__(self, base: int, kept: int) -> None:
        self._base = base
        self._kept = kept
        self.view = _mapping(base)
        self.capacity = base
        self.start = 0
        self.end = 0
        self.need = 0  # bytes from `start` that the message there takes; 0 when unknown

    @property
    def unparsed(self) -> int:
        return self.end - self.start

    def room(self, at_least: int, *, borrowed: bool) -> memoryview:
        """Free space of at least `at_least` bytes (> 0), for the next bytes to land in."""
        left = self.end - self.start
        if not left and not borrowed:
            self.start = self.end = 0
            if self.capacity > self._kept and self.need <= self._kept:
                self._replace(self._base)
        wanted = max(self.need, left + at_least)
        if self.capacity - self.start < wanted:
            self._make_contiguous(wanted, borrowed)
        return self.view[self.end : self.capacity]

    def landed(self, count: int) -> None:
        """`count` bytes landed at the beginning of the last room()."""
        assert 0 <= count <= self.capacity - self.end
        self.end += count

    def take(self) -> bytes:
        """What landed and was not parsed; it is somebody else's now."""
        taken = bytes(self.view[self.start : self.end])
        self.clear()
        return taken

    def clear(self) -> None:
        """Forget what landed and was not parsed."""
        self.start = self.end
        self.need = 0

    def trim(self) -> None:
        """Give memory back; only when nothing is unparsed and no event waits."""
        if self.start == self.end and not self.need:
            self._replace(self._base)

    def _make_contiguous(self, wanted: int, borrowed: bool) -> None:
        left = self.end - self.start
        if borrowed or wanted > self.capacity:
            self._replace(max(self._base, _pages(wanted + MESSAGE_SLACK)))
        elif left * 4 > self.capacity and self.capacity < self._kept:
            # Moving a large part of the buffer again and again costs more than a larger one.
            self._replace(min(self.capacity * 2, self._kept))
        else:
            self.view[:left] = self.view[self.start : self.end]  # memmove: may overlap
            self.start, self.end = 0, left

    def _replace(self, capacity: int) -> None:
        """Move to a new mapping; the old one goes when the last view of it goes."""
        view = _mapping(capacity)
        left = self.end - self.start
        view[:left] = self.view[self.start : self.end]
        self.view, self.capacity, self.start, self.end = view, capacity, 0, left


def _pages(length: int) -> int:
    return -(-length // PAGE) * PAGE


def _mapping(capacity: int) -> memoryview:
    return memoryview(mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
