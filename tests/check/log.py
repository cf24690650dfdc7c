"""All changes of a volume, per sector in the order in which they began."""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

INFINITY: Final = 1 << 62
"""A time that does not come."""
_BEGIN = attrgetter("begin")


@dataclass(slots=True, eq=False)
class Change:
    """One write, trim or zeroing; sectors [first, first + count). Times are lines of a history."""

    operation: int
    writer: int
    first: int
    count: int
    zero: bool
    """Its sectors read as zeros."""
    begin: int
    end: int = INFINITY
    """When it was acked; never, if it failed or was cut off. Then nobody knows if it happened."""
    crashed: int = INFINITY
    """When a crash cut it off: after that it happens no more."""
    fua: bool = False
    oldest: int = 0
    """Begin of the oldest change that was not settled when this one began."""

    @property
    def settled(self) -> int:
        """The time after which it cannot take effect any more."""
        return min(self.end, self.crashed)

    def covers(self, first: int, count: int) -> bool:
        return self.first <= first and first + count <= self.first + self.count


INITIAL: Final = Change(0, 0, 0, INFINITY, zero=True, begin=0, end=0)
"""The zeros that a new volume has."""


class Log:
    """The changes of one volume of `sectors` sectors."""

    def __init__(self, sectors: int) -> None:
        self.sectors = sectors
        self.changes: dict[int, Change] = {}
        """By operation."""
        self._by_sector: dict[int, list[Change]] = {}

    def add(self, change: Change) -> None:
        self.changes[change.operation] = change
        by_sector = self._by_sector
        for sector in range(change.first, change.first + change.count):
            known = by_sector.get(sector)
            if known is None:
                by_sector[sector] = [change]
            else:
                known.append(change)

    def of(self, sector: int) -> list[Change]:
        """Changes of a sector by the time of their begin; empty if there is none."""
        return self._by_sector.get(sector, [])

    def since(self, sector: int, time: int) -> list[Change]:
        """Those that the sector may be of at `time` or later, and perhaps some more; with INITIAL.

        The newest change that was acked by then ends all that were settled before it began."""
        known = self._by_sector.get(sector, [])
        for at in range(bisect.bisect_right(known, time, key=_BEGIN) - 1, -1, -1):
            if known[at].end <= time:
                return known[bisect.bisect_left(known, known[at].oldest, hi=at, key=_BEGIN) :]
        return [INITIAL, *known]

    def followers(self, sector: int, change: Change) -> Iterator[Change]:
        """Changes of the sector that came after `change` for certain."""
        known = self._by_sector.get(sector, [])
        at = bisect.bisect_right(known, change.settled, key=_BEGIN)
        return iter(known[at:])

    def death(self, sector: int, change: Change) -> int:
        """From this time on the sector is not of `change` any more for certain: a change that began
        after it has been acked."""
        best = INFINITY
        for later in self.followers(sector, change):
            if later.begin > best:
                break
            best = min(best, later.end)
        return best
