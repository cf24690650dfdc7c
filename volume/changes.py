"""Changes: what differs between a version and a device that clients read, asked range by range.

Backup tools ask for it while the device is in use. The device's side is looked at anew for each
question, so what is written meanwhile may be told or not; what was written before is told.
"""

import weakref
from collections.abc import Callable, Iterator

from native import VolumeCore
from volume.diff import Side, changed_extents
from volume.errors import CorruptData
from volume.historyrows import VersionRow
from volume.manifest import Manifests

CHANGED = 1  # flag of an extent
MAX_EXTENTS = 1 << 14  # in one answer
MAX_ATTEMPTS = 16  # to look at a head that moves meanwhile

Look = Callable[[int, int], tuple[Side, int]]
"""(offset, length) -> the side as it is now, hot extents in that range, and its generation."""


MAX_HOT_EXTENTS = 1 << 20  # of a hot map, asked for at once


def hot_ranges(core: VolumeCore, offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, length) of what the hot maps cover of a range."""
    ranges: list[tuple[int, int]] = []
    end = offset + length
    while offset < end:
        found = core.hot_extents(offset, end - offset, MAX_HOT_EXTENTS)
        ranges += [(start, run) for start, run, kind in found if kind >= 0]
        start, run, _ = found[-1]
        offset = start + run
    return ranges


class Changes:
    """From one version to the present state of a device. Thread-safe; waits for disks."""

    def __init__(
        self, manifests: Manifests, old: Side, row: VersionRow, look: Look, chunk_size: int
    ) -> None:
        """`row` has the tree of `old`."""
        self.row = row
        self._manifests = manifests
        self._old = old
        self._look = look
        self._chunk_size = chunk_size

    def extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, CHANGED or 0) from `offset` on without a gap; at most MAX_EXTENTS.

        Boundaries are those of chunks, but for the ends of the range. CorruptData, OSError."""
        for attempt in range(MAX_ATTEMPTS):
            new, generation = self._look(offset, length)
            try:
                return self._extents(new, offset, length)
            except CorruptData:
                # The head moved on, and gc has taken what only the old one had.
                if attempt == MAX_ATTEMPTS - 1 or self._look(offset, 1)[1] == generation:
                    raise
        raise AssertionError("the loop returns or raises")

    def _extents(self, new: Side, offset: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        at, end = offset, offset + length
        changed = changed_extents(self._manifests, self._old, new, self._chunk_size, offset, length)
        for start, run in changed:
            if start > at:
                found.append((start - at, 0))
            found.append((run, CHANGED))
            at = start + run
            if len(found) >= MAX_EXTENTS - 1:
                return found[:MAX_EXTENTS]
        if at < end:
            found.append((end - at, 0))
        return found


class ChangeTracker:
    """Knows the trees that `Changes` still compare with, for gc."""

    def __init__(self) -> None:
        self._live: weakref.WeakSet[Changes] = weakref.WeakSet()
        self.protect: Callable[[VersionRow], bool] = lambda _row: True
        """As `volume.catalog.Catalog.protect`."""

    def add(self, changes: Changes) -> Changes:
        self._live.add(changes)
        self.protect(changes.row)
        return changes

    def rows(self) -> Iterator[VersionRow]:
        for changes in list(self._live):
            yield changes.row
