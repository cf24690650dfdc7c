"""One file under the crash model: what is durable, what is pending, what a cut may leave.

Since the last sync of the file there are

    sectors     every version of each 512-byte sector, in order. After the cut the sector holds the
                durable bytes or any one of these, whatever the sectors beside it hold.
    sizes       every size, and page-rounded sizes inside one growing write (write-back extends a
                file page by page). After the cut the file has one of them.
    cuts        truncations that shrink. Such a cut is atomic: if it survived, no byte from before
                it shows beyond it; if it did not, no size and no re-grown sector from after it
                exists. The last cut that survived is the file's *era*.

A failed sync settles nothing, and no later sync settles what it left (unless written again): the
kernel marks the pages clean. What a running system reads (`current`) never tells the difference.
"""

import itertools
import math
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from tests.sim.image import PAGE_SIZE, SECTORS_PER_PAGE, ZERO_SECTOR, Contents
from volume.disk import SECTOR_SIZE

DURABLE = -1  # the era, and the position, of what is durable already


@dataclass(frozen=True, slots=True)
class Version:
    """A sector's bytes as of the operation at `position`."""

    position: int
    data: bytes


class FileState:
    """One inode: what is durable, what is pending, what the running system sees (`current`)."""

    def __init__(self, contents: Contents | None = None) -> None:
        self.durable = contents or Contents()
        self.current = self.durable.copy()
        self.sectors: dict[int, list[Version]] = {}
        self.sizes: list[tuple[int, int]] = []  # (position, size)
        self.cuts: list[tuple[int, int]] = []  # (position, size)
        self._failed_at = DURABLE  # position of the last failed sync

    # -- replay

    def write(self, position: int, offset: int, data: bytes) -> None:
        first, end = offset // SECTOR_SIZE, -(-(offset + len(data)) // SECTOR_SIZE)
        old_size = self.current.size
        pages = range(first // SECTORS_PER_PAGE, (end - 1) // SECTORS_PER_PAGE + 1)
        before = [self.current.page(index) for index in pages]
        self.current.write(data, offset)
        for index, old in zip(pages, before, strict=True):
            new = self.current.page(index)
            if new != old or self._failed_at != DURABLE:
                self._add_versions(position, index, old, new, range(first, end))
        if self.current.size > old_size:
            inside = range(
                -(-(old_size + 1) // PAGE_SIZE) * PAGE_SIZE, self.current.size, PAGE_SIZE
            )
            steps = {inside[0], inside[len(inside) // 2], inside[-1]} if inside else set()
            self.sizes.extend((position, size) for size in sorted(steps | {self.current.size}))

    def _add_versions(
        self, position: int, page: int, old: bytes, new: bytes, written: range
    ) -> None:
        for sector in range(page * SECTORS_PER_PAGE, (page + 1) * SECTORS_PER_PAGE):
            start = sector % SECTORS_PER_PAGE * SECTOR_SIZE
            data = new[start : start + SECTOR_SIZE]
            unchanged = data == old[start : start + SECTOR_SIZE]
            if sector in written and not (unchanged and self._failed_at == DURABLE):
                self.sectors.setdefault(sector, []).append(Version(position, data))

    def truncate(self, position: int, size: int) -> None:
        if size < self.current.size:
            first = size // SECTOR_SIZE
            pages = self.current.pages_from(size // PAGE_SIZE)
            self.current.resize(size)
            self.cuts.append((position, size))
            for page in pages:
                for sector in range(page * SECTORS_PER_PAGE, (page + 1) * SECTORS_PER_PAGE):
                    if sector >= first:
                        version = Version(position, self.current.sector(sector))
                        self.sectors.setdefault(sector, []).append(version)
        self.current.resize(size)
        self.sizes.append((position, size))

    def corrupt(self, offset: int, mask: int) -> None:
        """Flip bits in every version of a byte."""
        sector, within = divmod(offset, SECTOR_SIZE)

        def flipped(data: bytes) -> bytes:
            return data[:within] + bytes([data[within] ^ mask]) + data[within + 1 :]

        for contents in (self.durable, self.current):
            contents.put_sectors({sector: flipped(contents.sector(sector))})
        versions = self.sectors.get(sector, [])
        versions[:] = [Version(v.position, flipped(v.data)) for v in versions]

    def fail_sync(self, position: int) -> None:
        self._failed_at = position

    def settle(self, upto: int) -> None:
        """A sync that began at `upto` is done: what came before is durable."""
        if self._failed_at == DURABLE and self._newest() < upto:
            self.durable = self.current.copy()  # keeps allocated blocks of zeros too
            self.sectors, self.sizes, self.cuts = {}, [], []
            return
        for sector, versions in list(self.sectors.items()):
            done = [v for v in versions if v.position < upto]
            if done and done[-1].position > self._failed_at:
                self.durable.put_sectors({sector: done[-1].data})
                del versions[: len(done)]
                if not versions:
                    del self.sectors[sector]
        settled = [size for position, size in self.sizes if self._failed_at < position < upto]
        if settled:
            self.durable.resize(settled[-1])
            self.sizes = [(p, size) for p, size in self.sizes if p >= upto]
        self.cuts = [(p, s) for p, s in self.cuts if p <= self._failed_at or p >= upto]

    def _newest(self) -> int:
        return max(self.positions(), default=DURABLE)

    def positions(self) -> set[int]:
        """Positions of the pending operations."""
        return {v.position for versions in self.sectors.values() for v in versions}.union(
            (position for position, _ in self.sizes)
        )

    # -- choice of a legal outcome

    def _era_of(self, position: int, sector: int) -> int:
        """The last cut up to `position` that took `sector` away."""
        end = (sector + 1) * SECTOR_SIZE
        return max((p for p, size in self.cuts if p <= position and size < end), default=DURABLE)

    def eras(self) -> list[int]:
        return [DURABLE, *(position for position, _ in self.cuts)]

    def sizes_in(self, era: int) -> list[tuple[int, int]]:
        """(position, size) that the file may have when `era` is the last cut that survived."""
        end = min((p for p, _ in self.cuts if p > era), default=math.inf)
        durable = [(DURABLE, self.durable.size)] if era == DURABLE else []
        return durable + [(p, size) for p, size in self.sizes if era <= p < end]

    def versions_in(self, era: int, sector: int) -> list[Version]:
        """What the sector may hold in `era`, oldest first; never empty."""
        versions = self.sectors[sector]
        if not self.cuts:
            return [Version(DURABLE, self.durable.sector(sector)), *versions]
        base = self._era_of(era, sector)
        same = [v for v in versions if self._era_of(v.position, sector) == base]
        if base == DURABLE:
            same.insert(0, Version(DURABLE, self.durable.sector(sector)))
        elif not same or same[0].position != base:
            same.insert(0, Version(base, ZERO_SECTOR))
        return same

    def build(self, size: int, sectors: Mapping[int, bytes]) -> Contents:
        if size == self.durable.size and not self.sectors and not self.cuts:
            return self.durable
        contents = self.durable.copy()
        contents.put_sectors(sectors)
        contents.resize(size)
        return contents

    def with_kept(
        self,
        kept: Collection[int],
        torn: Collection[tuple[int, int]] = (),
        short: Collection[int] = (),
    ) -> Contents:
        """The file when of the pending operations just those at `kept` reached the disk; `torn`
        holds (position, sector) pairs that did not although their write is in `kept`, `short` the
        positions of writes of which only the first step of the file's growth did."""
        if not self.sectors and not self.sizes:
            return self.durable
        era = max((p for p, _ in self.cuts if p in kept), default=DURABLE)
        sizes = self.sizes_in(era)
        size = [size for p, size in sizes if p in kept or p == sizes[0][0]][-1]
        if short:
            last = [(p, size) for p, size in sizes if p in kept][-1:]
            if last and last[0][0] in short:
                size = next(size for p, size in sizes if p == last[0][0])
        sectors = {}
        for sector in self.sectors:
            versions = self.versions_in(era, sector)
            alive = [v for v in versions if v.position in kept and (v.position, sector) not in torn]
            sectors[sector] = (alive or versions)[-1 if alive else 0].data
        return self.build(size, sectors)

    def drawn(self, rng: random.Random) -> Contents:
        """Any legal outcome: each sector and the size drawn on their own."""
        if not self.sectors and not self.sizes:
            return self.durable
        era = rng.choice(self.eras())
        sectors = {s: rng.choice(self.versions_in(era, s)).data for s in sorted(self.sectors)}
        return self.build(rng.choice(self.sizes_in(era))[1], sectors)

    def outcomes(self, limit: int) -> list[Contents] | None:
        """Every legal outcome, or None when there may be more than `limit`."""
        plans = []
        total = 0
        for era in self.eras():
            sizes = sorted({size for _, size in self.sizes_in(era)})
            choices = {s: {v.data for v in self.versions_in(era, s)} for s in self.sectors}
            total += len(sizes) * math.prod(len(data) for data in choices.values())
            if total > limit:
                return None
            plans.append((sizes, choices))
        found = {}
        for sizes, choices in plans:
            draws = itertools.product(*map(sorted, choices.values()))
            for size, chosen in itertools.product(sizes, draws):
                contents = self.build(size, dict(zip(choices, chosen, strict=True)))
                found[contents.digest()] = contents
        return list(found.values())
