"""Thinning: which versions of each volume stay, and so what gc has to leave alone.

Versions that no snapshot names stay as their volume's policy says, and beside that those which a
replay needs: for each round that is kept, what the volume was there. (`volume.history` has the
reason, `volume.window` keeps the rounds.) So rounds go first, and their versions after them.

Threads: `roots` on any; the rest on the destager's.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

from volume import gc, retention
from volume.catalog import Catalog
from volume.changes import ChangeTracker
from volume.disk import Clock
from volume.history import History, RoundRow, VersionRow
from volume.layout import ZERO_ID, ChunkId
from volume.past import OpenVersions
from volume.receive import Receives
from volume.referred import ReferredTrees, Tree
from volume.space import SpaceGuard


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

        Versions that only a policy keeps come last, newest first, and are optional."""
        optional: list[VersionRow] = []
        rounds = list(self._history.rounds())
        for volume in self._catalog.all():
            head = volume.record.head
            yield gc.Root(head.root, head.height, commits_of(head.commit))
            rows, needed = self._needed(volume.record.number, rounds)
            for row in rows:
                if row.seq in needed:
                    yield root_of(row)
                else:
                    optional.append(row)
        for device in self._opened.all():
            yield root_of(device.version.row)
        for row in self._tracker.rows():
            yield root_of(row)
        yield from self._receives.roots()
        for tree in self._referred.trees():
            yield root_of_tree(tree)
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
        rows, needed = self._needed(number, rounds)
        policy = retention.parse(self._history.settings(number).keep)
        now_ns = self._clock.now_ns()
        stays = retention.select([row.time_ns for row in rows], policy, now_ns)
        for row, kept in zip(rows, stays, strict=True):
            if not kept and row.seq not in needed:
                yield row

    def _needed(self, number: int, rounds: list[RoundRow]) -> tuple[list[VersionRow], set[int]]:
        """Version rows of a volume, oldest first, and the seqs of those that must stay: those with
        a name, the newest, what the log is replayed over, and what it does not tell."""
        # Before the rows: a point that a round settles meanwhile has its version in both or none.
        points = [seq for point_number, seq in list(self._history.points) if point_number == number]
        rows = list(self._history.versions(number))
        needed = {snapshot.seq for snapshot in self._history.snapshots(number)}
        needed.update(self._base_of(number, seq) for seq in points)
        needed.update(row.seq for row in rows[-1:])
        epoch = 0
        lsns = [cut.lsn for cut in rounds]
        for row, later in pairwise(rows):
            following = bisect_right(lsns, row.lsn)
            for cut in rounds[following : following + 1]:
                # A restore that came right after a round has its lsn: only the time is another.
                if cut.lsn <= later.lsn or row.time_ns <= cut.time_ns < later.time_ns:
                    needed.add(row.seq)
            # No record says what a volume began with, what a restore has set, nor the size before
            # a resize: inside the window these rows are all there is of it.
            in_window = bool(rounds) and (
                rounds[0].lsn <= row.lsn or rounds[0].time_ns < row.time_ns
            )
            if in_window and (row.epoch != epoch or row.size != later.size):
                needed.add(row.seq)
            epoch = row.epoch
        return rows, needed

    def _base_of(self, number: int, seq: int) -> int:
        row = self._history.base(number, seq)
        return 0 if row is None else row.seq


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
