"""Upkeep: what a store does by itself, and when.

Two threads (`volume.background`) call `tend` and `destage_if_due`; tests and simulations call
`tend`, `destage` and `collect` by hand. Rounds and gc run on one thread, since both write packs;
`tend` keeps segments, space, the window, schedules and open versions in order beside it.

The any-write window: segments that the checkpoint has passed are held until they take more than
`window_bytes`, and longer, up to twice as much, while a record in them is younger than the longest
window that a volume asks for. When space is short all of them go, but for what points and open
versions still read. Rounds whose segment has gone leave the history: a replay cannot begin there.

Thinning: versions that no snapshot names stay as their volume's policy says, and beside that those
which a replay needs: for each round that is kept, what the volume was there. (`volume.history` has
the reason.) So rounds go first, and their versions after them.
"""

import logging
import os
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any, TypeVar

from native import Journal, PlaceTable
from volume import gc, retention
from volume.background import Worker
from volume.backlog import WriteBacklog, delay_for
from volume.catalog import Catalog
from volume.changes import ChangeTracker
from volume.chunks import ChunkStore
from volume.destager import Destager
from volume.disk import Clock
from volume.errors import CorruptData, NoSuchVersion, OutOfSpace, StoreClosing, VolumeError
from volume.history import History, RoundRow, VersionRow
from volume.kv import NO_SPACE_ERRNOS
from volume.manifest import Manifests
from volume.options import JournalGeometry, StoreOptions
from volume.past import OpenVersions, PastVersions
from volume.reader import ChunkResolver
from volume.receive import Receives
from volume.referred import ReferredTrees, Tree
from volume.scrub import Location, NamedRoot, Scrubber, ScrubPace, locate
from volume.seal import Seal
from volume.segments import TRIM_RESERVE, SegmentPool
from volume.snapshots import Snapshots
from volume.space import SpaceGuard

log = logging.getLogger(__name__)

T = TypeVar("T")

UPKEEP_INTERVAL_S = 0.1
DESTAGE_INTERVAL_S = 0.25
RELEASE_INTERVAL_S = 10.0  # between two times that pages of the index are given back
WINDOW_INTERVAL_S = 1.0
SCRUB_INTERVAL_S = 0.5
SCRUB_SLICE_S = 0.25
GC_SLICE_S = 0.25  # of gc between two looks at what is hot
BUSY_S = 1.0  # clients are at work for so long after their last request
ROUNDS_PER_SEGMENT = 4  # at the most: a replay begins at one of them
POINT_DELAY_S = 5.0  # points wait that long for others: a round takes them all
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
    receives: Receives
    referred: ReferredTrees
    snapshots: Snapshots
    destager: Destager
    backlog: WriteBacklog
    space: SpaceGuard
    seal: Seal


class _ScrubState:
    """Where scrub's memory is kept: see `volume.scrub.ScrubState`."""

    def __init__(self, history: History) -> None:
        self._history = history

    def load(self) -> bytes | None:
        return self._history.load_state("scrub")

    def save(self, state: bytes) -> None:
        self._history.save_state("scrub", state)


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
        self._busy_seen = (0, 0)
        self._busy_at = -BUSY_S
        self.collector = gc.Collector(
            parts.chunks,
            parts.manifests,
            gc.Hooks(
                self.roots,
                moved=self._forget_pack,
                removed=self._forget_pack,
                dropped=self._dropped,
                history_budget=self._history_budget,
                busy=self._busy,
                full=self._short,
                should_stop=lambda: self.stopping,
            ),
            parts.clock.monotonic,
            gc.Pace(parts.options.gc_interval_s, parts.options.gc_condemn_s),
        )
        for holder in (parts.catalog, parts.opened, parts.tracker):
            holder.protect = self._protect
        parts.referred.protect = lambda tree: self.collector.protect(_referred_root(tree))
        self.scrubber = Scrubber(
            parts.chunks,
            _ScrubState(parts.history),
            parts.clock,
            busy=self._busy,
            should_stop=lambda: self.stopping,
            pace=ScrubPace(parts.options.scrub_interval_s),
        )
        self._window_at = now
        self._released_at = now
        self._trimmed = (0, True)
        self._points_at = now
        self._wanted = False
        self._gc_pauses = 0
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._progress = threading.Condition()
        self._failures = 0
        self._failure: Exception | None = None

    # -- threads

    def start(self) -> None:
        self._destage_worker = Worker(
            "blockd-destage", DESTAGE_INTERVAL_S, self.destage_if_due, self._parts.seal.close
        )
        self._upkeep_worker = Worker(
            "blockd-upkeep", UPKEEP_INTERVAL_S, self.tend, self._parts.seal.close
        )
        scrub = Worker("blockd-scrub", SCRUB_INTERVAL_S, self._step_scrub, self._parts.seal.close)
        self._workers = [self._destage_worker, self._upkeep_worker, scrub]
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        for worker in self._workers:
            worker.stop()
        if self._parts.seal.reason is None:
            with suppress(OSError, VolumeError):  # it costs looking twice at what was looked at
                self.scrubber.save()
        with self._progress:
            self._progress.notify_all()
            while self._calls:
                self._calls.popleft()[0].set_exception(StoreClosing())

    @property
    def stopping(self) -> bool:
        return any(worker.stopping for worker in self._workers)

    def starving(self) -> None:
        """Somebody waits for journal space."""
        if self._workers:
            self._upkeep_worker.wake()
            self._destage_worker.wake()

    def points_added(self) -> None:
        """There is a name that is in the journal only; its point gets into chunks by itself."""
        if self._workers:
            self._upkeep_worker.wake()  # makes it durable

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
        if now - self._window_at >= WINDOW_INTERVAL_S:
            self._window_at = now
            self.trim_window()
        if parts.seal.reason is None:
            parts.history.flush()
            parts.opened.tend()
            parts.snapshots.tend()
        if now - self._released_at >= RELEASE_INTERVAL_S and not self._busy():
            self._released_at = now
            parts.chunks.index.release_memory()
        return made

    def trim_window(self) -> None:
        """Let old segments go that the window does not want any more."""
        parts = self._parts
        settings = [
            parts.history.settings(volume.record.number).window_s for volume in parts.catalog.all()
        ]
        window_s = max(settings, default=0)
        keep = parts.window_segments if window_s and not parts.space.short else 0
        expired = parts.pool.expire(
            keep,
            older_ns=parts.clock.now_ns() - window_s * _NS,
            hard=2 * keep,
            floor=parts.past.floor(),
            forget=lambda oldest: self._drop_rounds(oldest, wanted=keep > 0),
            shrink=parts.space.short,
        )
        if expired:
            self.refresh_space()
        looked_at = (parts.destager.rounds, keep > 0)
        if looked_at != self._trimmed:
            self._trimmed = looked_at
            self._drop_rounds(parts.pool.oldest_held, wanted=keep > 0)
        self._drop_referred()

    def _drop_rounds(self, oldest: int | None, *, wanted: bool) -> None:
        """Forget the rounds from which no replay can begin any more, or should (unless `wanted`),
        and those so close together that one of them will do: their versions can be thinned out.
        `oldest`: sequence of the oldest segment that stays in the window."""
        parts = self._parts
        with parts.catalog.lock:
            needed = {
                start.lsn
                for number, seq in list(parts.history.points)
                if (start := parts.past.start_for(number, seq)) is not None
            }
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
                self.collector.note_change()

    def _drop_referred(self) -> None:
        """Forget trees that no record names that anybody can still replay, or has replayed."""
        parts = self._parts
        if not parts.referred.trees():
            return
        with parts.catalog.lock:
            # In this order: who looks for a version pins the log before it looks at the rounds.
            pinned = parts.pool.oldest_pin
            first = next(parts.history.rounds(), None)
            if first is not None and parts.referred.expire(first.lsn, pinned):
                self.collector.note_change()

    def released(self, slots: list[int]) -> None:
        """The checkpoint has passed these segments: they are the window's."""
        self._parts.pool.hold(slots, self._parts.clock.now_ns())
        self.trim_window()

    # -- rounds

    def destage_if_due(self) -> bool:
        did = False
        self._run_calls()
        if not self._warmed:
            self._warmed = True
            self.warm()
        if self._destage_due():
            did = self.destage()
        return self._step_gc() or did

    def _destage_due(self) -> bool:
        parts, options = self._parts, self._parts.options
        states = [volume.core.state() for volume in parts.catalog.all()]
        now = parts.clock.monotonic()
        if not parts.history.points:
            self._points_at = now + POINT_DELAY_S
        if self._wanted or now >= self._points_at:
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
        self.collector.note_change()
        if parts.history.points:  # those that could not be built; or they came meanwhile
            self._points_at = parts.clock.monotonic() + (
                POINT_RETRY_S if parts.destager.unsettled else POINT_DELAY_S
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

    def settle(self, number: int, seq: int, timeout_s: float = float("inf")) -> None:
        """Wait until a point is in chunks, or is not there any more, or `timeout_s` is over. From
        any other thread.

        Raises what a round failed with, when that happens again and again."""
        parts = self._parts
        key = (number, seq)
        if not self._workers:
            for _ in range(2):  # a round that stands, and the one that has the point
                if key in parts.history.points:
                    self.destage()
            return
        with self._progress:
            failures = self._failures
            rounds = parts.destager.rounds
            deadline = parts.clock.monotonic() + timeout_s
            while key in parts.history.points and not self.stopping:
                left_s = deadline - parts.clock.monotonic()
                if left_s <= 0.0:
                    return
                self._wanted = True  # again each time: a round that was under way has not got it
                self._destage_worker.wake()
                self._progress.wait(min(DESTAGE_INTERVAL_S, left_s))
                parts.seal.check()
                if self._failures >= failures + SETTLE_FAILURES and self._failure is not None:
                    raise self._failure
                if parts.destager.rounds > rounds + 1 and parts.destager.unsettled:
                    raise NoSuchVersion(
                        f"volume {number}", f"seq:{seq}", "the log is damaged there; see the log"
                    )

    @contextmanager
    def without_gc(self) -> Iterator[None]:
        """Until the block ends gc moves and removes nothing. From any other thread."""
        with self._progress:
            self._gc_pauses += 1
        try:
            self.submit(lambda: None)  # what is under way comes to its end
            yield
        finally:
            with self._progress:
                self._gc_pauses -= 1

    def submit(self, call: Callable[[], T]) -> T:
        """Run `call` on the destager's thread, between rounds and slices of gc. From any other.

        What it raises is raised here; an OSError seals the store as well."""
        if not self._workers:
            return call()
        future: Future[T] = Future()
        with self._progress:
            if self.stopping:
                raise StoreClosing
            self._calls.append((future, call))
        self._destage_worker.wake()
        return future.result()

    def _run_calls(self) -> None:
        while self._calls:
            future, call = self._calls.popleft()
            try:
                future.set_result(call())
            except OSError as error:
                future.set_exception(error)
                raise
            except BaseException as error:  # whoever waits has to know
                future.set_exception(error)

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

    def dropped(self) -> None:
        """A volume, a snapshot or a policy is gone: there is something for gc, without a round."""
        self.collector.note_change()

    def collect(self) -> gc.GcReport:
        """A whole run of gc, now. On the destager's thread."""
        self._parts.seal.check()
        self.thin()
        return self.collector.collect()

    def _step_gc(self) -> bool:
        """A slice of gc, if one is due; whether to go on at once."""
        if self._gc_pauses:
            return False
        self._parts.seal.check()
        status = self.collector.status()
        if not status.running and status.next_run_s is not None and status.next_run_s <= 0.0:
            self.thin()  # what goes here is dead in the run that begins
        return self.collector.step(GC_SLICE_S) and not self._destage_due()

    def _step_scrub(self) -> bool:
        """A slice of scrub; whether to go on at once. On a thread of its own: it only reads."""
        self._parts.seal.check()
        return self.scrubber.step(SCRUB_SLICE_S)

    def damage_locations(self) -> Iterator[Location]:
        """What of which volumes and versions the damage that scrub knows of hits. Lazy; any
        thread. What is in the journal only is not looked at."""
        parts = self._parts
        damages = self.scrubber.status().damages
        return locate(parts.chunks, parts.manifests, damages, self._named_roots())

    def _named_roots(self) -> Iterator[NamedRoot]:
        history = self._parts.history
        for volume in sorted(self._parts.catalog.all(), key=lambda volume: volume.name):
            record = volume.record
            head, chunk_size = record.head, record.chunk_size
            yield NamedRoot(
                *(volume.name, head.root, head.height, record.size, chunk_size),
                _commits(head.commit),
            )
            names = {snapshot.seq: snapshot.name for snapshot in history.snapshots(record.number)}
            for row in history.versions(record.number):
                ref = names.get(row.seq, f"seq:{row.seq}")
                yield NamedRoot(
                    *(f"{volume.name}@{ref}", row.root, row.height, row.size, chunk_size),
                    _commits(row.commit),
                )

    def _busy(self) -> bool:
        """Whether clients have written or read in the last second."""
        now = self._parts.clock.monotonic()
        _, _, _, hits, misses = self._parts.table.stats()
        seen = (self._parts.journal.state()[0], hits + misses)
        if seen != self._busy_seen:
            self._busy_seen, self._busy_at = seen, now
        return now - self._busy_at < BUSY_S

    def _short(self) -> bool:
        return self._parts.space.short

    def _history_budget(self) -> int:
        """Bytes in packs that versions without a name may have to themselves."""
        parts = self._parts
        return 0 if parts.space.short else parts.window_segments * parts.geometry.segment_bytes

    def roots(self) -> Iterator[gc.Root]:
        """Every tree that anyone can still read: heads, versions, what is open or comes in.

        Versions that only a policy keeps come last, newest first, and are optional."""
        parts = self._parts
        optional: list[VersionRow] = []
        rounds = list(parts.history.rounds())
        for volume in parts.catalog.all():
            head = volume.record.head
            yield gc.Root(head.root, head.height, _commits(head.commit))
            rows, needed = self._needed(volume.record.number, rounds)
            for row in rows:
                if row.seq in needed:
                    yield _root(row)
                else:
                    optional.append(row)
        for device in parts.opened.all():
            yield _root(device.version.row)
        for row in parts.tracker.rows():
            yield _root(row)
        yield from parts.receives.roots()
        for tree in parts.referred.trees():
            yield _referred_root(tree)
        optional.sort(key=lambda row: row.time_ns, reverse=True)
        for row in optional:
            yield replace(_root(row), optional=True, tag=row)

    def _protect(self, row: VersionRow) -> bool:
        """The tree of `row` has a new holder, which `roots` may have been asked too early for."""
        return self.collector.protect(_root(row))

    def _dropped(self, root: gc.Root) -> bool:
        """gc has no room for a version that only a policy keeps."""
        row = root.tag
        assert isinstance(row, VersionRow)
        history = self._parts.history
        with self._parts.catalog.lock:
            if history.is_held(row.number, row.seq) or history.names_seq(row.number, row.seq):
                return False
            history.drop_versions([row])
            return True

    def thin(self) -> int:
        """Forget the versions that nothing keeps; how many."""
        parts = self._parts
        count = 0
        rounds = list(parts.history.rounds())
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

    def _thinned(self, number: int, rounds: list[RoundRow]) -> Iterator[VersionRow]:
        """Version rows of a volume that may go; `rounds`: oldest first."""
        rows, needed = self._needed(number, rounds)
        policy = retention.parse(self._parts.history.settings(number).keep)
        now_ns = self._parts.clock.now_ns()
        stays = retention.select([row.time_ns for row in rows], policy, now_ns)
        for row, kept in zip(rows, stays, strict=True):
            if not kept and row.seq not in needed:
                yield row

    def _needed(self, number: int, rounds: list[RoundRow]) -> tuple[list[VersionRow], set[int]]:
        """Version rows of a volume, oldest first, and the seqs of those that must stay: those with
        a name, the newest, what the log is replayed over, and what it does not tell."""
        history = self._parts.history
        # Before the rows: a point that a round settles meanwhile has its version in both or none.
        points = [seq for point_number, seq in list(history.points) if point_number == number]
        rows = list(history.versions(number))
        needed = {snapshot.seq for snapshot in history.snapshots(number)}
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


def _root(row: VersionRow) -> gc.Root:
    return gc.Root(row.root, row.height, _commits(row.commit))


def _referred_root(tree: Tree) -> gc.Root:
    # What is missing there is damage that a read tells of; the log can do without.
    return gc.Root(tree.root, tree.height, partial=True)


def _commits(commit: bytes) -> tuple[bytes, ...]:
    return (commit,) if any(commit) else ()
