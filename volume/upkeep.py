"""Upkeep: what a store does by itself, and when.

Two threads (`volume.background`) call `tend` and `destage_if_due`; tests and simulations call
`tend`, `destage` and `collect` by hand. Rounds and gc run on one thread, since both write packs;
`tend` keeps segments, space, the window, schedules and open versions in order beside it.

The any-write window: segments that the checkpoint has passed are held until they take more than
`window_bytes`, and longer, up to twice as much, while a record in them is younger than the longest
window that a volume asks for. When the disk is full all of them go, but for what points and open
versions still read. Rounds whose segment has gone leave the history: a replay cannot begin there.

Thinning: versions that no snapshot names stay as their volume's policy says, and beside that those
which a replay needs: for each round that is kept, what the volume was there. (`volume.history` has
the reason.) So rounds go first, and their versions after them.
"""

import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from native import Journal, PlaceTable
from volume import gc, retention
from volume.background import Worker
from volume.backlog import WriteBacklog, delay_for
from volume.catalog import Catalog
from volume.changes import ChangeTracker
from volume.chunks import ChunkStore
from volume.destager import Destager
from volume.disk import Clock
from volume.errors import CorruptData, NoSuchVersion, OutOfSpace, VolumeError
from volume.history import History, RoundRow, VersionRow
from volume.kv import NO_SPACE_ERRNOS
from volume.manifest import Manifests
from volume.options import JournalGeometry, StoreOptions
from volume.past import OpenVersions, PastVersions
from volume.reader import ChunkResolver
from volume.seal import Seal
from volume.segments import TRIM_RESERVE, SegmentPool
from volume.snapshots import Snapshots
from volume.space import SpaceGuard

log = logging.getLogger(__name__)

UPKEEP_INTERVAL_S = 0.1
DESTAGE_INTERVAL_S = 0.25
WINDOW_INTERVAL_S = 1.0
FULL_REST_S = 1.0  # between two runs of gc while the disk is full
GC_SHARE = 20  # gc rests at least this many times as long as its last run took
ROUNDS_PER_SEGMENT = 4  # at the most: a replay begins at one of them
POINT_RETRY_S = 60.0  # before a point that could not be brought into chunks is tried again
ROOM_WAIT_S = 30.0  # for a round that frees journal space
SETTLE_FAILURES = 2  # rounds that may fail while somebody waits for a point
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Upkept:
    """What upkeep works on."""

    clock: Clock
    options: StoreOptions
    geometry: JournalGeometry
    window_segments: int
    journal: Journal
    pool: SegmentPool
    chunks: ChunkStore
    manifests: Manifests
    resolver: ChunkResolver
    table: PlaceTable
    catalog: Catalog
    history: History
    past: PastVersions
    opened: OpenVersions
    tracker: ChangeTracker
    snapshots: Snapshots
    destager: Destager
    backlog: WriteBacklog
    space: SpaceGuard
    seal: Seal


class Upkeep:
    """Decides when. `tend` on one thread, `destage_if_due`, `destage` and `collect` on another."""

    def __init__(self, parts: Upkept) -> None:
        self._parts = parts
        now = parts.clock.monotonic()
        self._workers: list[Worker] = []
        self._warmed = False
        self.hot_since: float | None = None
        self._seen_lsn = 0
        self._seen_at = now
        self._collected_at = now
        self._collected_rounds = 0
        self._collect_rest_s = parts.options.gc_interval_s
        self._window_at = now
        self._trimmed_rounds = 0
        self._points_at = now
        self._wanted = False
        self._progress = threading.Condition()
        self._failures = 0
        self._failure: Exception | None = None
        self.last_gc: gc.GcReport | None = None

    # -- threads

    def start(self) -> None:
        self._destage_worker = Worker(
            "blockd-destage", DESTAGE_INTERVAL_S, self.destage_if_due, self._parts.seal.close
        )
        self._upkeep_worker = Worker(
            "blockd-upkeep", UPKEEP_INTERVAL_S, self.tend, self._parts.seal.close
        )
        self._workers = [self._destage_worker, self._upkeep_worker]
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        with self._progress:
            self._progress.notify_all()

    @property
    def stopping(self) -> bool:
        return any(worker.stopping for worker in self._workers)

    def starving(self) -> None:
        """Somebody waits for journal space."""
        if self._workers:
            self._upkeep_worker.wake()
            self._destage_worker.wake()

    def points_added(self) -> None:
        """There is a point to be brought into chunks: soon, so that the log need not be held."""
        if self._workers:
            self._destage_worker.wake()

    # -- beside the rounds

    def tend(self) -> bool:
        """One round of upkeep; whether to go on at once."""
        parts = self._parts
        failed = parts.journal.state()[2]
        if failed and parts.seal.reason is None:  # an append failed: only its writer was told
            parts.seal.close(OSError(failed, os.strerror(failed)))
        self.refresh_space()
        parts.backlog.delay_s = delay_for(self.journal_bytes() / parts.geometry.limit)
        try:
            made = parts.pool.tend()
        except OSError as error:
            if error.errno not in NO_SPACE_ERRNOS:  # without space the journal stays as it is
                raise
            made = False
        if parts.backlog.count and (parts.journal.state()[3] > 1 or parts.space.full):
            parts.backlog.wake()
        now = parts.clock.monotonic()
        if now - self._window_at >= WINDOW_INTERVAL_S or parts.space.full:
            self._window_at = now
            self.trim_window()
        if parts.seal.reason is None:
            parts.opened.tend()
            parts.snapshots.tend()
        return made

    def trim_window(self) -> None:
        """Let old segments go that the window does not want any more."""
        parts = self._parts
        settings = [
            parts.history.settings(volume.record.number).window_s for volume in parts.catalog.all()
        ]
        window_s = max(settings, default=0)
        keep = parts.window_segments if window_s and not parts.space.full else 0
        expired = parts.pool.expire(
            keep,
            older_ns=parts.clock.now_ns() - window_s * _NS,
            hard=2 * keep,
            floor=parts.past.floor(),
            shrink=parts.space.full,
        )
        if expired:
            self.refresh_space()
        if expired or parts.destager.rounds != self._trimmed_rounds:
            self._trimmed_rounds = parts.destager.rounds
            self._drop_rounds(wanted=keep > 0)

    def _drop_rounds(self, *, wanted: bool) -> None:
        """Forget the rounds from which no replay can begin any more, or should (unless `wanted`),
        and those so close together that one of them will do: their versions can be thinned out."""
        parts = self._parts
        with parts.catalog.lock:
            needed = {
                start.lsn
                for number, seq in parts.history.points
                if (start := parts.past.start_for(number, seq)) is not None
            }
            oldest = parts.pool.oldest_held
            rounds = list(parts.history.rounds())
            gone: list[RoundRow] = []
            apart = parts.geometry.segment_bytes // ROUNDS_PER_SEGMENT
            kept_at = -apart
            for row in rounds[:-1]:  # the last one is the checkpoint
                at = row.sequence * parts.geometry.segment_bytes + row.position
                expired = max(row.sequence, 1) < (oldest or rounds[-1].sequence)
                if row.lsn in needed:
                    kept_at = at
                elif expired or not wanted or 0 <= at - kept_at < apart:
                    gone.append(row)
                else:
                    kept_at = at
            if gone:
                parts.history.drop_rounds(gone)

    def released(self, slots: list[int]) -> None:
        """The checkpoint has passed these segments: they are the window's."""
        self._parts.pool.hold(slots, self._parts.clock.now_ns())
        self.trim_window()

    # -- rounds

    def destage_if_due(self) -> bool:
        did = False
        if not self._warmed:
            self._warmed = True
            self.warm()
        if self._destage_due():
            did = self.destage()
        if self._collect_due():
            self.collect()
        return did

    def _destage_due(self) -> bool:
        parts, options = self._parts, self._parts.options
        states = [volume.core.state() for volume in parts.catalog.all()]
        now = parts.clock.monotonic()
        if self._wanted or (parts.history.points and now >= self._points_at):
            self._wanted = False
            return True
        lsn = parts.journal.state()[0]
        if lsn != self._seen_lsn:
            self._seen_lsn, self._seen_at = lsn, now
        filled = self.journal_bytes() >= options.destage_fill * parts.geometry.limit
        if not any(state[4] for state in states):
            self.hot_since = None
            return filled and parts.journal.state()[4] > 0  # segments of volumes that are gone
        if self.hot_since is None:
            self.hot_since = now
        return (
            now - self.hot_since >= options.destage_age_s
            or now - self._seen_at >= options.destage_idle_s
            or filled
            or sum(state[5] for state in states) >= options.hot_map_bytes
        )

    def warm(self) -> None:
        """After a start: cache where chunks are, so that the first reads need not look.

        Stops when there is something to destage, or damage, which a read then reports."""
        resolver = self._parts.resolver
        for volume in self._parts.catalog.all():
            head = volume.head()
            ahead = takewhile(
                lambda _: not self.stopping and not self._destage_due(),
                resolver.stored_chunks(head),
            )
            try:
                resolver.warm(volume.target(), head, ahead)
            except (CorruptData, OSError) as error:
                log.warning("warming stopped volume=%s error=%s", volume.name, error)

    def destage(self) -> bool:
        """One destage round over everything that is hot; whether there was anything.

        OutOfSpace: everything stays in the journal, and the next call tries again."""
        parts = self._parts
        parts.seal.check()
        try:
            did = parts.destager.run(parts.catalog.unlocked)
        except OutOfSpace as error:
            self.refresh_space(stuck=True)
            self.trim_window()
            self.collect()
            parts.backlog.wake()
            self._tell(error)
            raise
        except VolumeError as error:
            self._tell(error)
            raise
        self.hot_since = None
        if parts.history.points:  # those that could not be built; or they came meanwhile
            self._points_at = parts.clock.monotonic() + (
                0.0 if parts.destager.unsettled == 0 else POINT_RETRY_S
            )
        self.refresh_space()
        parts.backlog.wake()
        self._tell(None)
        return did

    def _tell(self, failure: Exception | None) -> None:
        with self._progress:
            if failure is not None:
                self._failures += 1
                self._failure = failure
            self._progress.notify_all()

    def settle(self, number: int, seq: int) -> None:
        """Wait until a point is in chunks, or is not there any more. From any other thread.

        Raises what a round failed with, when that happens again and again."""
        parts = self._parts
        key = (number, seq)
        if not self._workers:
            self.destage()
            return
        with self._progress:
            failures = self._failures
            self._points_at = parts.clock.monotonic()
            rounds = parts.destager.rounds
            while key in parts.history.points and not self.stopping:
                self._destage_worker.wake()
                self._progress.wait(DESTAGE_INTERVAL_S)
                parts.seal.check()
                if self._failures >= failures + SETTLE_FAILURES and self._failure is not None:
                    raise self._failure
                if parts.destager.rounds > rounds + 1 and parts.destager.unsettled:
                    raise NoSuchVersion(
                        f"volume {number}", f"seq:{seq}", "the log is damaged there; see the log"
                    )

    def make_room(self) -> None:
        """Run a round, and let the journal have what it frees. From any other thread."""
        if not self._workers:
            self.destage()
            self.tend()
            return
        rounds, failures = self._parts.destager.rounds, self._failures
        deadline = self._parts.clock.monotonic() + ROOM_WAIT_S
        with self._progress:
            while (
                self._parts.destager.rounds == rounds
                and self._failures == failures
                and self._parts.clock.monotonic() < deadline
                and not self.stopping
            ):
                self._wanted = True
                self._destage_worker.wake()
                self._progress.wait(DESTAGE_INTERVAL_S)
        self._upkeep_worker.wake()

    # -- gc

    def _collect_due(self) -> bool:
        parts = self._parts
        idle_s = parts.clock.monotonic() - self._collected_at
        changed = parts.destager.rounds != self._collected_rounds or self.last_gc is None
        rest_s = FULL_REST_S if parts.space.full else self._collect_rest_s
        return changed and idle_s >= rest_s

    def volume_gone(self) -> None:
        """There is something for gc although no round has run."""
        self._collected_rounds = -1

    def collect(self) -> gc.GcReport:
        """Thin the history out, and remove what nothing reaches. On the destager's thread."""
        parts = self._parts
        parts.seal.check()
        self._collected_rounds = parts.destager.rounds
        self.thin()
        report = gc.collect(
            parts.chunks,
            parts.manifests,
            self.roots(),
            monotonic=parts.clock.monotonic,
            moved=self._forget_pack,
            removed=self._forget_pack,
            should_stop=lambda: self.stopping,
        )
        self._collected_at = parts.clock.monotonic()
        self._collect_rest_s = max(parts.options.gc_interval_s, GC_SHARE * report.duration_s)
        self.last_gc = report
        return report

    def roots(self) -> Iterator[gc.Root]:
        """Every tree that anyone can still read: heads, versions, and what is open."""
        parts = self._parts
        for volume in parts.catalog.all():
            head = volume.record.head
            yield gc.Root(head.root, head.height, _commits(head.commit))
            for row in parts.history.versions(volume.record.number):
                yield gc.Root(row.root, row.height, _commits(row.commit))
        for device in parts.opened.all():
            row = device.version.row
            yield gc.Root(row.root, row.height, _commits(row.commit))
        for row in parts.tracker.rows():
            yield gc.Root(row.root, row.height, _commits(row.commit))

    def thin(self) -> int:
        """Forget the versions that nothing keeps; how many."""
        parts = self._parts
        count = 0
        rounds = [row.lsn for row in parts.history.rounds()]
        for volume in parts.catalog.all():
            # Not under the lock: that may take long, and a new name is only ever given to the
            # newest state, or to a version that is held.
            gone = list(self._thinned(volume.record.number, rounds))
            with parts.catalog.lock:
                gone = [row for row in gone if not parts.history.is_held(row.number, row.seq)]
                if gone and not volume.deleted:
                    parts.history.drop_versions(gone)
                    count += len(gone)
        return count

    def _thinned(self, number: int, rounds: list[int]) -> Iterator[VersionRow]:
        """Version rows of a volume that may go; `rounds`: their lsns, ascending."""
        history = self._parts.history
        # Before the rows: a point that a round settles meanwhile has its version in both or none.
        points = [seq for point_number, seq in history.points if point_number == number]
        rows = list(history.versions(number))
        named = {snapshot.seq for snapshot in history.snapshots(number)}
        named.update(self._base_of(number, seq) for seq in points)
        policy = retention.parse(history.settings(number).keep)
        now_ns = self._parts.clock.now_ns()
        stays = retention.select([row.time_ns for row in rows], policy, now_ns)
        for row, later, kept in zip(rows, rows[1:], stays, strict=False):  # the newest stays
            next_round = bisect_right(rounds, row.lsn)
            is_base = next_round < len(rounds) and rounds[next_round] <= later.lsn
            if not kept and not is_base and row.seq not in named:
                yield row

    def _base_of(self, number: int, seq: int) -> int:
        row = self._parts.history.base(number, seq)
        return 0 if row is None else row.seq

    def _forget_pack(self, number: int) -> None:
        self._parts.resolver.forget_pack(number)
        self._parts.table.drop_pack(number)

    # -- figures

    def journal_bytes(self) -> int:
        """Bytes of the journal that hold what is not in chunks."""
        _, _, _, _, full, position, _ = self._parts.journal.state()
        return full * self._parts.geometry.segment_bytes + position

    def hot_bytes(self) -> int:
        return sum(volume.core.state()[3] for volume in self._parts.catalog.all())

    def refresh_space(self, *, stuck: bool = False) -> None:
        # A journal that can still grow needs no segment kept back: it makes another one.
        reserved = 0 if self._parts.pool.can_grow() else TRIM_RESERVE
        self._parts.space.refresh(self.hot_bytes(), reserved, stuck=stuck)


def _commits(commit: bytes) -> tuple[bytes, ...]:
    return (commit,) if any(commit) else ()
