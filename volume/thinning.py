"""Thinning: which versions of each volume stay, and so what gc has to leave alone.

Versions that no snapshot names stay as their volume's policy says, and beside that those which a
replay needs: for each round that is kept, what the volume was there. (`volume.history` has the
reason, `volume.window` keeps the rounds.) So rounds go first, and their versions after them. gc
weighs what they take, and the window gives up rounds for it.

Threads: `roots` on any; the rest on the destager's.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from volume import gc, retention
from volume.catalog import Catalog
from volume.changes import ChangeTracker
from volume.disk import Clock
from volume.history import History
from volume.historyrows import RoundRow, VersionRow
from volume.layout import ZERO_ID, ChunkId
from volume.past import OpenVersions
from volume.receive import Receives
from volume.referred import ReferredTrees, Tree
from volume.space import SpaceGuard


@dataclass(frozen=True, slots=True)
class _Kept:
    """Version rows of a volume, oldest first, and what keeps them beside the policy."""

    rows: list[VersionRow]
    needed: set[int]
    """Seqs of those with a name, of what a point or the newest round is replayed over, and of the
    newest."""
    window: dict[int, int]
    """Seqs of those that only other rounds need -> lsn of the newest of these rounds."""


class Thinning:
    """Tells gc what to keep, and forgets versions that nothing keeps."""

    def __init__(
        self,
        clock: Clock,
        catalog: Catalog,
        history: History,
        opened: OpenVersions,
        tracker: ChangeTracker,
        receives: Receives,
        referred: ReferredTrees,
        space: SpaceGuard,
        share_bytes: int,
    ) -> None:
        """`share_bytes`: of packs, for versions that only a policy keeps."""
        self._clock = clock
        self._catalog = catalog
        self._history = history
        self._opened = opened
        self._tracker = tracker
        self._receives = receives
        self._referred = referred
        self._space = space
        self._share_bytes = share_bytes

    def budget(self) -> int:
        """Bytes in packs that versions without a name may have to themselves."""
        return 0 if self._space.short else self._share_bytes

    def roots(self) -> Iterator[gc.Root]:
        """Every tree that anyone can still read: heads, versions, what is open or comes in.

        Those that only the window needs come last but one, those of its newest rounds first; tagged
        with the lsn of the round that has to go before they may. Versions that only a policy keeps
        come last, newest first, and are optional."""
        window: list[tuple[int, VersionRow]] = []
        optional: list[VersionRow] = []
        rounds = list(self._history.rounds())
        for volume in self._catalog.all():
            head = volume.record.head
            yield gc.Root(head.root, head.height, commits_of(head.commit))
            kept = self._kept(volume.record.number, rounds)
            for row in kept.rows:
                if row.seq in kept.needed:
                    yield root_of(row)
                elif row.seq in kept.window:
                    window.append((kept.window[row.seq], row))
                else:
                    optional.append(row)
        for device in self._opened.all():
            yield root_of(device.version.row)
        for row in self._tracker.rows():
            yield root_of(row)
        yield from self._receives.roots()
        for tree in self._referred.trees():
            yield root_of_tree(tree)
        window.sort(key=lambda each: each[0], reverse=True)
        for lsn, row in window:
            yield replace(root_of(row), window=True, tag=lsn)
        optional.sort(key=lambda row: row.time_ns, reverse=True)
        for row in optional:
            yield replace(root_of(row), optional=True, tag=row)

    def dropped(self, root: gc.Root) -> bool:
        """gc has no room for a version that only a policy keeps."""
        row = root.tag
        assert isinstance(row, VersionRow)
        with self._catalog.lock:
            if self._history.is_held(row.number, row.seq) or self._history.names_seq(
                row.number, row.seq
            ):
                return False
            self._history.drop_versions([row])
            return True

    def thin(self) -> int:
        """Forget the versions that nothing keeps; how many."""
        count = 0
        rounds = list(self._history.rounds())
        for volume in self._catalog.all():
            # Not under the lock: that may take long, and a new name is only ever given to the
            # newest state, or to a version that is held.
            gone = list(self._thinned(volume.record.number, rounds))
            with self._catalog.lock:
                gone = [row for row in gone if not self._history.is_held(row.number, row.seq)]
                if gone and not volume.deleted:
                    self._history.drop_versions(gone)
                    count += len(gone)
        return count

    def _thinned(self, number: int, rounds: list[RoundRow]) -> Iterator[VersionRow]:
        """Version rows of a volume that may go; `rounds`: oldest first."""
        kept = self._kept(number, rounds)
        policy = retention.parse(self._history.settings(number).keep)
        now_ns = self._clock.now_ns()
        stays = retention.select([row.time_ns for row in kept.rows], policy, now_ns)
        for row, stay in zip(kept.rows, stays, strict=True):
            if not stay and row.seq not in kept.needed and row.seq not in kept.window:
                yield row

    def _kept(self, number: int, rounds: list[RoundRow]) -> _Kept:
        """What stays of a volume whatever its policy says; `rounds`: oldest first."""
        # Before the rows: a point that a round settles meanwhile has its version in both or none.
        points = [seq for point_number, seq in list(self._history.points) if point_number == number]
        rows = list(self._history.versions(number))
        needed = {snapshot.seq for snapshot in self._history.snapshots(number)}
        needed.update(row.seq for _, row in self._history.dropped_rows(number))
        needed.update(self._base_of(number, seq) for seq in points)
        needed.update(row.seq for row in rows[-1:])
        window: dict[int, int] = {}
        epoch = 0
        lsns = [cut.lsn for cut in rounds]
        for row, later in pairwise(rows):
            at = _base_at(row, later, rounds, lsns)
            # No record says what a volume began with, what a restore has set, what came from
            # another node (none of these changed a chunk), nor the size before a resize: inside
            # the window these rows are all there is of it.
            told = row.epoch == epoch and row.changed_bytes > 0 and row.size == later.size
            if at is None and not told:
                at = _in_window(row, rounds, lsns)
            epoch = row.epoch
            if at is None:
                continue
            if at == len(rounds) - 1:
                needed.add(row.seq)
            else:
                window[row.seq] = rounds[at].lsn
        return _Kept(rows, needed, window)

    def _base_of(self, number: int, seq: int) -> int:
        row = self._history.base(number, seq)
        return 0 if row is None else row.seq


def _base_at(
    row: VersionRow, later: VersionRow, rounds: list[RoundRow], lsns: list[int]
) -> int | None:
    """Index of the newest round that begins over `row`, before `later` was there; None: no one
    does. `lsns`: of the rounds."""
    following = bisect_right(lsns, row.lsn)
    end = bisect_right(lsns, later.lsn)
    if following < end:
        return end - 1
    # A restore that came right after a round has its lsn: only the time is another.
    if following < len(rounds) and row.time_ns <= rounds[following].time_ns < later.time_ns:
        return following
    return None


def _in_window(row: VersionRow, rounds: list[RoundRow], lsns: list[int]) -> int | None:
    """Index of the newest round that is not after `row`; None: `row` is before all of them."""
    following = bisect_right(lsns, row.lsn)
    if following < len(rounds) and rounds[following].time_ns < row.time_ns:
        return following
    return following - 1 if following else None


def root_of(row: VersionRow) -> gc.Root:
    """What gc keeps of a version."""
    return gc.Root(row.root, row.height, commits_of(row.commit))


def root_of_tree(tree: Tree) -> gc.Root:
    """What gc keeps of what a record of the log refers to."""
    # What is missing there is damage that a read tells of; the log can do without.
    return gc.Root(tree.root, tree.height, partial=True)


def commits_of(commit: ChunkId) -> tuple[ChunkId, ...]:
    """An empty volume has none."""
    return () if commit == ZERO_ID else (commit,)
