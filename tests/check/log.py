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
    lost: bool = False
    """A power cut undid it."""

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

    def followers(self, sector: int, change: Change) -> Iterator[Change]:
        """Changes of the sector that came after `change` for certain, and were not undone."""
        known = self._by_sector.get(sector, [])
        at = bisect.bisect_right(known, change.settled, key=_BEGIN)
        return (later for later in known[at:] if not later.lost)

    def death(self, sector: int, change: Change) -> int:
        """From this time on the sector is not of `change` any more for certain: a change that began
        after it has been acked."""
        best = INFINITY
        for later in self.followers(sector, change):
            if later.begin > best:
                break
            best = min(best, later.end)
        return best
