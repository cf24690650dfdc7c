"""Space: how much clients may still write before they get ENOSPC.

What is in the journal only will need room in packs once it is destaged; the disk must keep it,
beside a reserve. So clients may write what is free, less that debt, less the reserve. When it is
used up, writes get ENOSPC from the journal before anything of them is stored; reads, trims and
flushes go on, and so does everything else as soon as space is back.
"""

from native import Journal
from volume.disk import Disk

OVERHEAD = 1.07  # chunk tables, manifest nodes, index: measured 3 %, and something to be sure


class SpaceGuard:
    """Recomputes the limit. `refresh` from any thread; the fields are for people to look at."""

    def __init__(
        self, disk: Disk, journal: Journal, *, reserve_bytes: int, short_percent: int
    ) -> None:
        self._disk = disk
        self._journal = journal
        self._reserve_bytes = reserve_bytes
        self._short_percent = short_percent
        self.free_bytes = 0
        self.left_bytes = 0

    @property
    def full(self) -> bool:
        return self.left_bytes <= 0

    @property
    def short(self) -> bool:
        """Old versions that nobody named give way, long before clients get ENOSPC."""
        return self.left_bytes < self.short_bytes

    @property
    def short_bytes(self) -> int:
        """Space is short when less than this is left."""
        return self._disk.total_bytes() * self._short_percent // 100

    def refresh(self, hot_bytes: int, reserved_segments: int, *, stuck: bool = False) -> None:
        """Look at the disk. `stuck`: the destager just found no space, so nothing more fits.
        `reserved_segments`: ready ones that only records without payload may begin."""
        self.free_bytes = self._disk.free_bytes()
        left = self.free_bytes - int(hot_bytes * OVERHEAD) - self._reserve_bytes
        self.left_bytes = 0 if stuck else max(0, left)
        self._journal.set_limits(self.left_bytes, reserved_segments)
