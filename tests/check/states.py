"""I2, I3: a state of the whole volume is that of one point of time, with whole writes only.

Each sector of the state tells since when it can be so (its write began) and until when (the first
change that came after it for certain was acked). All sectors need a point in common, the *cut*,
which is not before `at_least`: what had been acked by then is there. Beyond that, no write shows in
one of its sectors and is missing in another: it is one record of the journal.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.check.cuts import Span, agreed, merged
from tests.check.log import INITIAL, Change, Log
from tests.check.stamps import TORN, Run

CUTS_TRIED: Final = 64
"""Points that all sectors agree on; more than a few only of volumes that are nearly all zeros."""


@dataclass(frozen=True, slots=True)
class StateVerdict:
    """What was found in a state; sectors by number."""

    at_least: int
    at_most: int
    cut: int
    """The point of time that most sectors agree on, the newest one."""
    visible: frozenset[int]
    """Operations that show in it."""
    torn: tuple[int, ...] = ()
    foreign: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    """Older than `at_least`, or than an acked FUA (I2)."""
    offenders: tuple[int, ...] = ()
    """Not of the cut (I3)."""
    split: tuple[int, ...] = ()
    """Without a write that shows elsewhere (I3)."""

    @property
    def ok(self) -> bool:
        return not self.bad

    @property
    def bad(self) -> frozenset[int]:
        """All sectors that were complained about."""
        return frozenset(self.torn + self.foreign + self.lost + self.offenders + self.split)


def judge_state(
    log: Log, runs: Sequence[Run], at_least: int, at_most: int, *, crashed: bool
) -> StateVerdict:
    """`crashed`: after a crash, acked FUA writes must be there too."""
    spans: dict[int, list[Span]] = {}
    shown: dict[int, Change] = {}
    edges: set[int] = set()
    torn: list[int] = []
    foreign: list[int] = []
    lost: list[int] = []
    first = 0
    for count, source in runs:
        sectors = range(first, first + int(count))
        first = sectors.stop
        if source == 0:
            for sector in sectors:
                if log.of(sector):
                    unmerged = _spans_of_zeros(log, sector, at_least, at_most)
                    edges.update(itertools.chain.from_iterable(unmerged))
                    spans[sector] = merged(unmerged)
            continue
        change = log.changes.get(source) if isinstance(source, int) else None
        if change is None or not change.covers(sectors.start, len(sectors)):
            (torn if source == TORN else foreign).extend(sectors)
        elif change.zero or change.begin > at_most:
            foreign.extend(sectors)
        else:
            for sector in sectors:
                spans[sector] = [(change.begin, log.death(sector, change))]
                shown[sector] = change
    agreeing, cuts = agreed(spans.values(), at_least, at_most, edges)
    cut, visible, split = _best_cut(log, spans.keys(), shown, cuts)
    offenders: list[int] = []
    for sector, of_sector in spans.items():
        if all(end <= at_least for _, end in of_sector) or (
            crashed and _before_fua(log, sector, shown.get(sector))
        ):
            lost.append(sector)
        elif agreeing < len(spans) and not any(s <= cut < end for s, end in of_sector):
            offenders.append(sector)
    known = {*lost, *offenders}
    return StateVerdict(
        at_least,
        at_most,
        cut,
        visible,
        torn=tuple(torn),
        foreign=tuple(foreign),
        lost=tuple(lost),
        offenders=tuple(offenders),
        split=tuple(sector for sector in split if sector not in known),
    )


def _best_cut(
    log: Log, sectors: Collection[int], shown: Mapping[int, Change], cuts: Sequence[int]
) -> tuple[int, frozenset[int], list[int]]:
    """(cut, operations that show at it, sectors that lack one of them): the newest cut at which no
    write shows in part, or the newest one."""
    best = None
    written = frozenset(change.operation for change in shown.values())
    for cut in cuts[:CUTS_TRIED]:
        visible = written | {
            only.operation
            for sector in sectors
            if sector not in shown and (only := _only_zeros(log, sector, cut)) is not None
        }
        split = [
            sector
            for sector in sectors
            if (sector not in shown or len(log.of(sector)) > 1)
            and _without_visible(log, sector, shown.get(sector), visible, cut)
        ]
        if not split:
            return cut, visible, split
        best = best or (cut, visible, split)
    assert best is not None
    return best


def _spans_of_zeros(log: Log, sector: int, at_least: int, at_most: int) -> list[Span]:
    return [
        (change.begin, log.death(sector, change))
        for change in log.since(sector, at_least)
        if change.zero and change.begin <= at_most
    ]


def _only_zeros(log: Log, sector: int, cut: int) -> Change | None:
    """The one change that zeros of a sector are of; None if they can be of several, or are from
    before the first write."""
    found = None
    for change in log.since(sector, cut):
        if change.zero and change.begin <= cut < log.death(sector, change):
            if found is not None:
                return None
            found = change
    return None if found is INITIAL else found


def _before_fua(log: Log, sector: int, shown: Change | None) -> bool:
    """Whether an acked FUA write of the sector came after what it holds."""
    durable = [change for change in log.of(sector) if change.fua]
    if not durable:
        return False
    newest = max(change.begin for change in durable)
    if shown is not None:
        return shown.settled < newest
    return not any(change.zero and change.settled > newest for change in log.of(sector))


def _without_visible(
    log: Log, sector: int, shown: Change | None, visible: frozenset[int], cut: int
) -> bool:
    """Whether a write that shows elsewhere came after what this sector holds."""
    if shown is not None:
        for later in log.followers(sector, shown):
            if later.begin > cut:
                return False
            if later.operation in visible:
                return True
        return False
    known = log.since(sector, cut)
    writes = [change for change in known if not change.zero and change.operation in visible]
    if not writes:
        return False
    newest = max(change.begin for change in writes)
    return not any(
        change.zero and change.settled >= newest and change.begin <= cut for change in known
    )
