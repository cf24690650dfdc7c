"""Ready segments that were allocated and never written, and when they are written after all.

They are made like that while a stream uses segments up quickly: to write each of them twice would
cost more than it gives (`volume.segments`). But who flushes after each write pays for it: with each
sync the file system also has to note which blocks hold data now (ext4: a third of the time that the
sync takes). So it is with old segments that such a stream recycles without their pages, each of
which is read before a part of it is written.

So when the stream is over, that is when nothing was appended for QUIET_S, they are written with
zeros, one after the other, and the log leaves the rest of the one that it is in. As soon as
something is appended this stops, at the next SYNCED_BYTES.

A segment that is being written is not ready: no record can begin it meanwhile. What a crash leaves
of it reads as zeros, or as the old records that it had, which cannot be taken for new ones.

Not thread-safe but for `add`: one thread tends.
"""

from collections.abc import Callable, Mapping

from native import Journal
from volume.disk import File

QUIET_S = 2.0
PIECE_BYTES = 1024 * 1024
SYNCED_BYTES = 8 * PIECE_BYTES  # at once: whoever comes meanwhile waits for no more than these
_ZEROS = bytes(PIECE_BYTES)


def write_zeros(file: File, offset: int, end: int) -> None:
    """Not durable until a sync. OSError."""
    while offset < end:
        offset += file.pwrite(_ZEROS[: min(PIECE_BYTES, end - offset)], offset)


class BareSegments:
    """Knows which they are. `tend` writes one of them at a time."""

    def __init__(
        self, journal: Journal, segment_bytes: int, take_pages: Callable[[], None]
    ) -> None:
        """`take_pages()`: one is about to take memory for as many pages as it has."""
        self._journal = journal
        self._segment_bytes = segment_bytes
        self._take_pages = take_pages
        self._ready: set[int] = set()
        self._current: int | None = None  # the segment that is written, if it is one of them
        self._lsn = -1
        self._quiet_from = 0.0

    def add(self, slot: int) -> None:
        """A segment that the journal has got as ready just now."""
        self._ready.add(slot)

    def begun(self) -> int:
        """How many have been begun since the last call."""
        current, ready = self._journal.queue()
        begun = self._ready.difference(ready)
        self._ready -= begun
        if current in begun:
            self._current = current
        return len(begun)

    def tend(self, files: Mapping[int, File], now_s: float) -> bool:
        """Write one, if it is time; whether it was written. OSError."""
        lsn = self._journal.state()[0]
        if lsn != self._lsn:
            self._lsn, self._quiet_from = lsn, now_s + QUIET_S
        if now_s < self._quiet_from:
            return False
        current, ready = self._journal.queue()
        slot = next((each for each in ready if each in self._ready), None)
        if slot is not None:
            return self._write(slot, files[slot])
        if ready and current is not None and current == self._current:
            self._current = None
            self._journal.move_on()
        return False

    def _write(self, slot: int, file: File) -> bool:
        if not self._journal.withdraw(slot):
            return False
        self._ready.discard(slot)
        at, size = 0, self._segment_bytes
        try:
            self._take_pages()
            while at < size and self._journal.state()[0] == self._lsn:
                end = min(at + SYNCED_BYTES, size)
                write_zeros(file, at, end)
                file.sync()
                at = end
        finally:
            self._journal.recycle(slot)
            if at < size:
                self._ready.add(slot)
        return at == size
