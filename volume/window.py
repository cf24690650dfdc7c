"""Window: how far back every single write of every volume can be gone to.

The any-write window: segments that the checkpoint has passed are held until they take more than
`window_bytes`, and longer, up to twice as much, while a record in them is younger than the longest
window that a volume asks for. When space is short all of them go, but for what points and open
versions still read. Rounds whose segment has gone leave the history: a replay cannot begin there.

Rounds closer together than a quarter of a segment leave it as well: each keeps a version of every
volume from being thinned out (`volume.thinning`), and a replay is short enough without them.

Threads: any; those of upkeep and of the destager call it.
"""

from collections.abc import Callable

from volume.catalog import Catalog
from volume.disk import Clock
from volume.history import History, RoundRow
from volume.options import JournalGeometry
from volume.past import PastVersions
from volume.referred import ReferredTrees
from volume.segments import SegmentPool
from volume.space import SpaceGuard

ROUNDS_PER_SEGMENT = 4  # at the most: a replay begins at one of them
_NS = 1_000_000_000


class Window:
    """Lets segments and rounds of the log go that nobody will ask for any more."""

    def __init__(
        self,
        clock: Clock,
        geometry: JournalGeometry,
        segments: int,
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
        """`segments`: that it may hold; `rounds()`: how many there have been since the start.
        `changed()`: there may be versions to thin out."""
        self._clock = clock
        self._geometry = geometry
        self._segments = segments
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
        settings = [
            self._history.settings(volume.record.number).window_s for volume in self._catalog.all()
        ]
        window_s = max(settings, default=0)
        keep = self._segments if window_s and not self._space.short else 0
        expired = self._pool.expire(
            keep,
            older_ns=self._clock.now_ns() - window_s * _NS,
            hard=2 * keep,
            floor=self._past.floor(),
            forget=lambda oldest: self._drop_rounds(oldest, wanted=keep > 0),
            shrink=self._space.short,
        )
        looked_at = (self._rounds(), keep > 0)
        if looked_at != self._trimmed:
            self._trimmed = looked_at
            self._drop_rounds(self._pool.oldest_held, wanted=keep > 0)
        self._drop_referred()
        return expired

    def _drop_rounds(self, oldest: int | None, *, wanted: bool) -> None:
        """Forget the rounds from which no replay can begin any more, or should (unless `wanted`),
        and those so close together that one of them will do: their versions can be thinned out.
        `oldest`: sequence of the oldest segment that stays in the window."""
        with self._catalog.lock:
            needed = {
                start.lsn
                for number, seq in list(self._history.points)
                if (start := self._past.start_for(number, seq)) is not None
            }
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
            if gone:
                self._history.drop_rounds(gone)
                self._changed()

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
