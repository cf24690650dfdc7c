"""Of which position is what a crash has left? I2 to I5 and I8, for all volumes together.

Each sector tells by its contents of which positions it can be: from the write that put them there
to the next one. There must be one position in range, the *cut*, that all sectors have in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.sim.world.ledger import VolumeLedger
from tests.sim.world.stamps import STAMP, UNREADABLE, ZEROS, Violation, stamp_of
from volume.disk import SECTOR_SIZE

REPORTED = 6  # sectors that a violation spells out

Span = tuple[int, int]
"""Half-open: positions."""


@dataclass(frozen=True, slots=True)
class _Shown:
    volume: str
    sector: int
    contents: bytes
    spans: list[Span]

    def __str__(self) -> str:
        return f"{self.volume}:{self.sector} {STAMP.unpack(self.contents)} {self.spans}"


def find_cut(
    volumes: Mapping[str, VolumeLedger], images: Mapping[str, bytes], at_least: int, newest: int
) -> int:
    """The newest position from `at_least` to `newest` whose state the images are. Violation."""
    shown: list[_Shown] = []
    for name, image in sorted(images.items()):
        shown += _shown(volumes[name], image, newest)
        _check_rest(volumes[name], image)
    cut, agreed = _most_agreed(shown, at_least, newest)
    if agreed < len(shown):
        wrong = [e for e in shown if not any(start <= cut < end for start, end in e.spans)]
        raise Violation(
            f"I2/I3/I4 no position from {at_least} to {newest} explains all sectors; at {cut} "
            f"{len(wrong)} do not fit: {'; '.join(map(str, wrong[:REPORTED]))}"
        )
    return cut


def _shown(volume: VolumeLedger, image: bytes, newest: int) -> list[_Shown]:
    """The sectors of a volume that were ever written, as an image has them."""
    found = []
    for sector in sorted(volume.sectors):
        data = image[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE]
        if not data:
            continue  # cut off by a shrink, with what was written there meanwhile
        contents = stamp_of(data)
        if contents == UNREADABLE:
            continue
        if contents is None:
            raise Violation(f"I5 after a crash sector {sector} of {volume.name} is torn")
        spans = _spans(volume, sector, contents, newest)
        if not spans:
            raise Violation(
                f"I8 after a crash sector {sector} of {volume.name} is {STAMP.unpack(contents)}, "
                "which was never written there"
            )
        found.append(_Shown(volume.name, sector, contents, spans))
    return found


def _check_rest(volume: VolumeLedger, image: bytes) -> None:
    for sector in range(len(image) // SECTOR_SIZE):
        if sector not in volume.sectors:
            data = image[sector * SECTOR_SIZE : (sector + 1) * SECTOR_SIZE]
            if data != ZEROS and stamp_of(data) != UNREADABLE:
                raise Violation(f"I8 sector {sector} of {volume.name} was never written")


def _spans(volume: VolumeLedger, sector: int, contents: bytes, newest: int) -> list[Span]:
    """Positions at which the sector has these contents."""
    entries = volume.entries(sector)
    ends = [position for position, _ in entries[1:]] + [newest + 1]
    merged: list[Span] = []
    for (start, each), end in zip(entries, ends, strict=True):
        if each != contents:
            continue
        if merged and merged[-1][1] == start:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _most_agreed(shown: list[_Shown], at_least: int, newest: int) -> tuple[int, int]:
    """The newest position in range that most sectors can be from, and how many."""
    steps: dict[int, int] = {}
    for each in shown:
        for start, end in each.spans:
            steps[start] = steps.get(start, 0) + 1
            steps[end] = steps.get(end, 0) - 1
    edges = sorted({*steps, at_least, newest + 1})
    level, best, agreed = 0, at_least, -1
    for number, edge in enumerate(edges[:-1]):
        level += steps.get(edge, 0)
        end = edges[number + 1] - 1
        if end >= at_least and edge <= newest and level >= agreed:
            best, agreed = end, level
    return best, agreed
