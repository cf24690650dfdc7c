"""Who wrote what: decides from a recovered image alone whether a volume kept its promises.

`History` is the list of what was done to one volume, in the volume's order; position n is the n-th
write or zeroing, position 0 the empty volume. Every 512-byte sector that is written names its
writer: 16 bytes (position, sector number), repeated. So each sector of an image tells which
positions it can be from: the writer's, until the next write of that sector. Zeros can be from
several such intervals (never written, trimmed). The image is a state of the volume if all sectors
have one position, the *cut*, in common; so a write shows with all of its sectors or with none.
The scan for it is that of recorded histories, where writes overlap: `tests.check.cuts`.

    I2  acked flush survives    every sector can be from `at_least` or later
    I3  prefix                  there is one cut for all sectors within [at_least, at_most]
    I5  no torn sector          every sector is exactly what one write put there
    I8  nobody else's bytes     a sector holds only what was written to that sector, and by then

With `at_least` = the last acked write the same check decides I4 (kill -9).
"""

import bisect
import itertools
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from typing_extensions import Buffer

from tests.check.cuts import Span, most_agreed
from volume.disk import SECTOR_SIZE

STAMP = struct.Struct("<QQ")  # position of the writer, sector number
REPEATS = SECTOR_SIZE // STAMP.size
ZEROS = bytes(SECTOR_SIZE)
REPORTED = 8  # offending sectors that a verdict spells out


@dataclass(frozen=True, slots=True)
class Submitted:
    """Mark for a trace: the change at `position` has been given to the volume."""

    position: int


@dataclass(frozen=True, slots=True)
class FlushAcked:
    """Mark for a trace: a flush that was sent after `position` was acked has been acked."""

    position: int


def bounds(marks: Iterable[object]) -> tuple[int, int]:
    """(at_least, at_most) from the marks before a crash; marks of other kinds are skipped."""
    at_least = at_most = 0
    for mark in marks:
        if isinstance(mark, FlushAcked):
            at_least = max(at_least, mark.position)
        elif isinstance(mark, Submitted):
            at_most = max(at_most, mark.position)
    return at_least, at_most


def stamped(position: int, sector: int) -> bytes:
    """The only legal contents of a sector that `position` wrote."""
    return STAMP.pack(position, sector) * REPEATS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `History.check` found. Sectors are numbers, offset // 512."""

    at_least: int
    at_most: int
    cut: int | None
    """The newest position whose state the image is; None when there is none."""
    torn: tuple[int, ...] = ()
    """Contents of no single write (I5)."""
    foreign: tuple[int, ...] = ()
    """Contents of another sector, or of a write that never was (I8)."""
    lost: tuple[int, ...] = ()
    """Older than `at_least` (I2)."""
    offenders: tuple[int, ...] = ()
    """Not of `best`, the position that most sectors agree on (I3)."""
    best: int = 0

    @property
    def ok(self) -> bool:
        return self.cut is not None

    def __str__(self) -> str:
        if self.ok:
            return f"state at position {self.cut}, in [{self.at_least}, {self.at_most}]"
        found = (
            ("I5 torn", self.torn),
            ("I8 foreign", self.foreign),
            (f"I2 older than the flush acked at {self.at_least}", self.lost),
            (f"I3 not of position {self.best} like the rest", self.offenders),
        )
        return "; ".join(
            f"{what}: {len(sectors)} sectors, {', '.join(map(str, sectors[:REPORTED]))}"
            for what, sectors in found
            if sectors
        )


class History:
    """All changes of one volume of `size` bytes. Offsets and lengths are bytes, whole sectors."""

    def __init__(self, size: int) -> None:
        assert size % SECTOR_SIZE == 0
        self.size = size
        self.position = 0
        """Position of the newest change."""
        self._changes: dict[int, list[tuple[int, bool]]] = {}
        """Per sector, in order: position, and whether it wrote a stamp (else zeros)."""

    def write(self, offset: int, length: int) -> bytes:
        """Note the next write; returns the stamped data that must be written."""
        position, sectors = self._note(offset, length, True)
        return b"".join([stamped(position, sector) for sector in sectors])

    def zero(self, offset: int, length: int) -> None:
        """Note a write of zeros, or a trim of a range that reads as zeros after it."""
        self._note(offset, length, False)

    def _note(self, offset: int, length: int, stamp: bool) -> tuple[int, range]:
        if offset % SECTOR_SIZE or length % SECTOR_SIZE or not length:
            raise ValueError(f"[{offset}, +{length}) is not whole sectors of {SECTOR_SIZE} bytes")
        if not 0 <= offset < offset + length <= self.size:
            raise ValueError(f"[{offset}, +{length}) is not inside a volume of {self.size} bytes")
        self.position += 1
        sectors = range(offset // SECTOR_SIZE, (offset + length) // SECTOR_SIZE)
        for sector in sectors:
            self._changes.setdefault(sector, []).append((self.position, stamp))
        return self.position, sectors

    def content_at(self, position: int) -> bytes:
        """The whole volume as of `position`: the oracle for a read at a version."""
        image = bytearray(self.size)
        for sector, changes in self._changes.items():
            newest = [change for change in changes if change[0] <= position][-1:]
            if newest and newest[0][1]:
                start = sector * SECTOR_SIZE
                image[start : start + SECTOR_SIZE] = stamped(newest[0][0], sector)
        return bytes(image)

    def check(self, image: Buffer, *, at_least: int = 0, at_most: int | None = None) -> Verdict:
        """Judge a recovered image. `at_least`: position covered by the last acked flush (for kill
        -9: the last acked write); `at_most`: the last one submitted (default: all)."""
        at_most = self.position if at_most is None else at_most
        view = memoryview(image).cast("B")
        if not at_least <= at_most:
            raise ValueError(f"no position is in [{at_least}, {at_most}]")
        if len(view) != self.size:
            raise ValueError(f"image of {len(view)} bytes for a volume of {self.size} bytes")
        intervals, torn, foreign = self._read(view, at_most)
        lost = [s for s, spans in intervals.items() if all(end <= at_least for _, end in spans)]
        agreeing, best = most_agreed(intervals.values(), at_least, at_most)
        offenders = []
        if agreeing < len(intervals):
            offenders = [
                sector
                for sector, spans in intervals.items()
                if not any(start <= best < end for start, end in spans)
            ]
        good = not (torn or foreign or offenders)
        return Verdict(
            at_least=at_least,
            at_most=at_most,
            cut=best if good else None,
            torn=tuple(torn),
            foreign=tuple(foreign),
            lost=tuple(lost),
            offenders=tuple(offenders),
            best=best,
        )

    def _read(
        self, view: memoryview, at_most: int
    ) -> tuple[dict[int, list[Span]], list[int], list[int]]:
        """Per sector the half-open intervals of positions it can be from; torn; foreign."""
        intervals: dict[int, list[Span]] = {}
        torn, foreign = [], []
        for sector in range(self.size // SECTOR_SIZE):
            content = bytes(view[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE])
            changes = self._changes.get(sector, [])
            if content == ZEROS:
                spans = _spans_of_zeros(changes, at_most)
                if changes:
                    intervals[sector] = spans
                continue
            position, number = STAMP.unpack_from(content)
            found = bisect.bisect_left(changes, (position, True))
            if content != stamped(position, number):
                torn.append(sector)
            elif (
                number != sector
                or position > at_most
                or changes[found : found + 1] != [(position, True)]
            ):
                foreign.append(sector)
            else:
                later = changes[found + 1 : found + 2]
                intervals[sector] = [(position, later[0][0] if later else at_most + 1)]
        return intervals, torn, foreign


def _spans_of_zeros(changes: list[tuple[int, bool]], at_most: int) -> list[Span]:
    """Positions at which a sector with these changes reads as zeros, up to `at_most`."""
    edges = [(0, False), *changes, (at_most + 1, False)]
    return [
        (start, min(end, at_most + 1))
        for (start, stamp), (end, _) in itertools.pairwise(edges)
        if not stamp and start <= at_most
    ]
