"""Window: how far back every single write of every volume can be gone to.

The any-write window takes room in two places, which together are its share of the disk,
`window_bytes`: *segments* of the log that the checkpoint has passed, and in packs the versions that
a replay begins over, one of each volume for each *round* that is kept (`volume.thinning`).

    segments   are held until they alone take the share, and longer, up to twice as much, while a
               record in them is younger than the longest window that a volume asks for. Rounds
               whose segment has gone leave the history: a replay cannot begin there
    versions   are weighed by each run of gc: what they reach and neither a name, a head nor a
               newer round does. Where that, and the log from there on, comes to more than the
               share (or twice as much, as above), the rounds up to there leave the history, and
               segments before the first that is left are of no use

So the window's reach shrinks where little writes leave large chunks behind, and the bound is kept
at the pace of gc, which is that at which anything is given back. Never given up are the newest
round, and those from which a point still has to be replayed. When space is short everything else
goes, but for segments that open versions read.

Rounds closer together than a quarter of a segment leave the history as well: a replay is short
enough without them.

Threads: any; those of upkeep and of the destager call it.
"""

from collections.abc import Callable

from native import Journal
from volume.catalog import Catalog
from volume.disk import Clock
from volume.gcmodel import Weighed
from volume.history import History
from volume.historyrows import RoundRow
from volume.options import JournalGeometry
from volume.past import PastVersions
from volume.referred import ReferredTrees
from volume.segments import SegmentPool
from volume.space import SpaceGuard

ROUNDS_PER_SEGMENT = 4  # at the most: a replay begins at one of them
OVERTIME = 2  # times its share is what the window may take for what is younger than it should reach
_NS = 1_000_000_000


class Window:
    """Lets segments and rounds of the log go that nobody will ask for any more."""

    def __init__(
        self,
        clock: Clock,
        geometry: JournalGeometry,
        segments: int,
        journal: Journal,
        pool: SegmentPool,
        catalog: Catalog,
        history: History,
        past: PastVersions,
        referred: ReferredTrees,
        space: SpaceGuard,
        *,
        rounds: Callable[[], int],
        changed: Callable[[], None],
    ) -> None:
        """`segments`: its share; `rounds()`: how many there have been since the start.
        `changed()`: there may be versions to thin out."""
        self._clock = clock
        self._geometry = geometry
        self._segments = segments
        self._journal = journal
        self._pool = pool
        self._catalog = catalog
        self._history = history
        self._past = past
        self._referred = referred
        self._space = space
        self._rounds = rounds
        self._changed = changed
        self._trimmed = (0, True)

    def trim(self) -> int:
        """Let old segments go that the window does not want any more; how many."""
        window_s = self._window_s()
        share = max(0, self._segments - self._pool.lent)
        keep = share if window_s and not self._space.short else 0
        first = next(self._history.rounds(), None)
        expired = self._pool.expire(
            keep,
            older_ns=self._clock.now_ns() - window_s * _NS,
            hard=OVERTIME * keep,
            floor=self._past.floor(),
            forget=lambda oldest: self._drop_rounds(oldest, wanted=keep > 0),
            useless=0 if first is None else max(first.sequence, 1),
            shrink=self._space.short,
        )
        looked_at = (self._rounds(), keep > 0)
        if looked_at != self._trimmed:
            self._trimmed = looked_at
            self._drop_rounds(self._oldest(), wanted=keep > 0)
        self._drop_referred()
        return expired

    def _oldest(self) -> int | None:
        """Sequence of the oldest segment that there is, in the window or before it: one that
        somebody reads from (a tap) is not released although the checkpoint has passed it."""
        known = (self._pool.oldest_held, self._journal.oldest() or None)
        return min((each for each in known if each is not None), default=None)

    def weighed(self, weights: list[Weighed]) -> None:
        """gc has counted what the versions of the window take, those of its newest rounds first:
        forget the rounds, the oldest first, that are too much."""
        sizes = [(_lsn_of(weight), weight.size_bytes) for weight in weights]
        older_ns = self._clock.now_ns() - self._window_s() * _NS
        with self._catalog.lock:
            rounds = list(self._history.rounds())
            needed = self._lsns_for_points()
            beyond = rounds[: self._affordable(rounds, sizes, older_ns)]
            self._forget([row for row in beyond if row.lsn not in needed])

    def _affordable(
        self, rounds: list[RoundRow], sizes: list[tuple[int, int]], older_ns: int
    ) -> int:
        """Index of the oldest round that the window has room for; `sizes`: (lsn of a round, bytes),
        newest first. It should reach back to `older_ns`."""
        share = self._segments * self._geometry.segment_bytes
        spent, counted = 0, 0
        for at in range(len(rounds) - 2, -1, -1):  # the last one is the checkpoint
            row, later = rounds[at], rounds[at + 1]
            while counted < len(sizes) and sizes[counted][0] >= row.lsn:
                spent += sizes[counted][1]
                counted += 1
            segments = rounds[-1].sequence - max(row.sequence, 1)
            young = later.time_ns >= older_ns  # so `later` does not reach as far as it should
            if spent + segments * self._geometry.segment_bytes > share * (OVERTIME if young else 1):
                return at + 1
        return 0

    def _window_s(self) -> int:
        """The longest that a volume asks for."""
        numbers = [volume.record.number for volume in self._catalog.all()]
        return max((self._history.settings(number).window_s for number in numbers), default=0)

    def _drop_rounds(self, oldest: int | None, *, wanted: bool) -> None:
        """Forget the rounds from which no replay can begin any more, or should (unless `wanted`),
        and those so close together that one of them will do: their versions can be thinned out.
        `oldest`: sequence of the oldest segment that stays in the window."""
        with self._catalog.lock:
            needed = self._lsns_for_points()
            rounds = list(self._history.rounds())
            gone: list[RoundRow] = []
            apart = self._geometry.segment_bytes // ROUNDS_PER_SEGMENT
            kept_at = -apart
            for row in rounds[:-1]:  # the last one is the checkpoint
                at = row.sequence * self._geometry.segment_bytes + row.position
                expired = max(row.sequence, 1) < (oldest or rounds[-1].sequence)
                if row.lsn in needed:
                    kept_at = at
                elif expired or not wanted or 0 <= at - kept_at < apart:
                    gone.append(row)
                else:
                    kept_at = at
            self._forget(gone)

    def _drop_referred(self) -> None:
        """Forget trees that no record names that anybody can still replay, or has replayed."""
        if not self._referred.trees():
            return
        with self._catalog.lock:
            # In this order: who looks for a version pins the log before it looks at the rounds.
            pinned = self._pool.oldest_pin
            first = next(self._history.rounds(), None)
            if first is not None and self._referred.expire(first.lsn, pinned):
                self._changed()

    def _lsns_for_points(self) -> set[int]:
        """Of the rounds from which points are replayed that are not in chunks yet."""
        starts = [self._past.start_for(number, seq) for number, seq in list(self._history.points)]
        return {start.lsn for start in starts if start is not None}

    def _forget(self, rounds: list[RoundRow]) -> None:
        if rounds:
            self._history.drop_rounds(rounds)
            self._changed()


def _lsn_of(weight: Weighed) -> int:
    """Of the round that has to go before that version may; see `Thinning.roots`."""
    lsn = weight.root.tag
    assert isinstance(lsn, int)
    return lsn
