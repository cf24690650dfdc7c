"""Upkeep: what a store does by itself, and when.

Two threads (`volume.background`) call `tend` and `destage_if_due`; tests and simulations call
`tend`, `destage` and `collect` by hand. Rounds and gc run on one thread, since both write packs;
`tend` keeps segments, space, the window, schedules and open versions in order beside it.

How far back single writes can be gone to is `volume.window`'s, which versions stay is
`volume.thinning`'s: this only says when they look.

A volume that is stuck (`volume.destager`) keeps the log from the place on where its oldest write is
that is not in chunks, whoever wrote what comes behind it. Nothing of it may be dropped, and nobody
is refused for it; so

    what it keeps is lent to the journal, beyond its limit: as many segments as the journal may
    have, taken from the share of the any-write window, while space is not short. Writers notice
    nothing, whichever volume they write to.
    When that is used up, the journal fills as it does when the disk is too slow: writers of all
    volumes are slowed down from 60 % on, and in the end wait. None gets an error.

So the log, the hot maps over it and the time of a replay have a bound (twice the usual one), and an
operator has until then to repair, restore or delete the volume.
"""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from volume import gc, memory
from volume.background import Worker
from volume.backlog import delay_for
from volume.builder import Lost
from volume.damage import MAX_WHAT_BYTES, Damage
from volume.diskerror import seals
from volume.errors import (
    CorruptData,
    NoSuchVersion,
    OutOfSpace,
    StoreClosing,
    StoreSealed,
    VolumeError,
)
from volume.historyrows import VersionRow
from volume.idle import Idle
from volume.lmdbroom import NO_SPACE_ERRNOS
from volume.locate import Location, locate
from volume.scrub import Scrubber, ScrubPace
from volume.scrubbed import KeptScrubState, named_roots
from volume.segments import TRIM_RESERVE
from volume.sites import rare
from volume.thinning import Thinning, root_of, root_of_tree
from volume.upkept import Upkept
from volume.volume import Volume
from volume.window import Window

log = logging.getLogger(__name__)

T = TypeVar("T")

UPKEEP_INTERVAL_S = 0.1
DESTAGE_INTERVAL_S = 0.25
RELEASE_INTERVAL_S = 10.0  # between two times that pages of the index are given back
WINDOW_INTERVAL_S = 1.0
SCRUB_INTERVAL_S = 0.5
SCRUB_SLICE_S = 0.25
GC_SLICE_S = 0.25  # of gc between two looks at what is hot
REST_FILL = 0.4
"""Up to this fill of the journal a round rests as long as it works while clients are busy; beyond
it the round is what they would have to wait for."""
MAX_REST_S = 0.02
HURRIED_FILL = 0.5
"""While clients write at full speed a round waits until this part of the journal is used, twice
what it waits for otherwise: the processors are theirs, and what they overwrite meanwhile is never
hashed. It begins before writers are slowed down (`volume.backlog`)."""
BUSY_S = 1.0  # clients are at work for so long after their last request
GIVE_BACK_BYTES = 64 << 20  # destaged, and then nothing is hot: freed memory goes back
POINT_DELAY_S = 5.0  # points wait that long for others: a round takes them all
POINT_RETRY_S = 60.0  # before a point that could not be brought into chunks is tried again
ROOM_WAIT_S = 30.0  # for a round that frees journal space
STUCK_ROUNDS = 2  # in a row without space: nothing more is taken until one has got through
SETTLE_FAILURES = 2  # rounds that may fail while somebody waits for a point


class Upkeep:
    """Decides when. `tend` on one thread, `destage_if_due`, `destage` and `collect` on another."""

    def __init__(self, parts: Upkept) -> None:
        self._parts = parts
        now = parts.clock.monotonic()
        self._workers: list[Worker] = []
        self._idle = Idle(parts.table, parts.manifests.cache)
        self.hot_since: float | None = None
        self._moved_bytes = 0  # destaged since memory was given back
        self._seen_lsn = 0
        self._seen_at = now
        self._busy_seen = (0, 0)
        self._busy_at = -BUSY_S
        self._asked_at = now
        self.thinning = Thinning(
            parts.clock,
            parts.catalog,
            parts.history,
            parts.opened,
            parts.tracker,
            parts.receives,
            parts.referred,
            parts.space,
            parts.window_segments * parts.geometry.segment_bytes,
        )
        self.collector = gc.Collector(
            parts.chunks,
            parts.manifests,
            gc.Hooks(
                self.thinning.roots,
                moved=self.forget_pack,
                removed=self.forget_pack,
                weighed=lambda weights: self.window.weighed(weights),
                dropped=self.thinning.dropped,
                history_budget=self.thinning.budget,
                busy=self._busy,
                full=self._short,
                should_stop=lambda: self.stopping,
            ),
            parts.clock.monotonic,
            gc.Pace(parts.options.gc_interval_s, parts.options.gc_condemn_s),
        )
        self.window = Window(
            parts.clock,
            parts.geometry,
            parts.window_segments,
            parts.journal,
            parts.pool,
            parts.catalog,
            parts.history,
            parts.past,
            parts.referred,
            parts.space,
            rounds=lambda: parts.destager.rounds,
            changed=self.collector.note_change,
        )
        for holder in (parts.catalog, parts.opened, parts.tracker):
            holder.protect = self._protect
        parts.catalog.attached = self._client_came
        parts.chunks.packs.striped.window.dropped = self.forget_pack
        parts.referred.protect = lambda tree: self.collector.protect(root_of_tree(tree))
        self.scrubber = Scrubber(
            parts.chunks,
            KeptScrubState(parts.history),
            parts.clock,
            busy=self._busy,
            should_stop=lambda: self.stopping,
            pace=ScrubPace(parts.options.scrub_interval_s),
        )
        self._window_at = now
        self._released_at = now
        self._points_at = now
        self._wanted = False
        self._rested_at = now
        self._no_rest = threading.Event()  # set when the threads are to end
        self._gc_pauses = 0
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._no_destager = False
        self._rounds_without_space = 0
        self._progress = threading.Condition()
        self._failures = 0
        self._failure: Exception | None = None

    # -- threads

    def start(self) -> None:
        self._destage_worker = Worker(
            *("blockd-destage", DESTAGE_INTERVAL_S, self.destage_if_due, self._parts.seal.close),
            ended=self._destager_ended,
        )
        self._upkeep_worker = Worker(
            "blockd-upkeep", UPKEEP_INTERVAL_S, self._tend_all, self._parts.seal.close
        )
        scrub = Worker("blockd-scrub", SCRUB_INTERVAL_S, self._step_scrub, self._parts.seal.close)
        self._workers = [self._destage_worker, self._upkeep_worker, scrub]
        for worker in self._workers:
            worker.start()

    def stop(self) -> None:
        self._no_rest.set()
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

    def _client_came(self) -> None:
        """A volume has its first client, whose reads should find its chunks' places cached."""
        if self._workers:
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
        parts.pool.lent = parts.lent_segments()
        fill = 1.0 if rare("backlog.delayed") else parts.fill()
        parts.backlog.delay_s = delay_for(fill)
        parts.journal.set_delay(int(parts.backlog.delay_s * 1e9))
        made, refused = False, None
        try:
            made = parts.pool.tend()
        except OSError as error:
            if seals(error):
                raise
            if error.errno not in NO_SPACE_ERRNOS:  # without space the journal stays as it is
                refused = error
        if parts.backlog.count and (parts.journal.state()[3] > 1 or parts.space.full):
            parts.backlog.wake()
        now = parts.clock.monotonic()
        if now - self._window_at >= WINDOW_INTERVAL_S:
            self._window_at = now
            self._trim_window()
        if parts.seal.reason is None:
            parts.history.flush()
            parts.opened.tend()
            parts.snapshots.tend()
        if now - self._released_at >= RELEASE_INTERVAL_S and not self._busy():
            self._released_at = now
            parts.chunks.index.release_memory()
        if refused is not None:
            raise refused
        return made

    def _tend_all(self) -> bool:
        made = self.tend()
        self._parts.catalog.append_heads()
        self.give_back_memory()
        return made

    def give_back_memory(self) -> None:
        """When nobody has asked for anything for a while; rounds append to the log, and count."""
        if self._busy():
            self._asked_at = self._parts.clock.monotonic()
        quiet_s = self._parts.clock.monotonic() - self._asked_at
        self._idle.look(quiet_s, working=self.collector.status().running)

    def _trim_window(self) -> None:
        if self.window.trim():
            self.refresh_space()

    def released(self, slots: list[int]) -> None:
        """The checkpoint has passed these segments: they are the window's."""
        self._parts.pool.hold(slots, self._parts.clock.now_ns())
        self._trim_window()

    # -- rounds

    def destage_if_due(self) -> bool:
        did = False
        self._run_calls()
        self._warm_attached()
        if self._destage_due():
            self._moved_bytes += self.hot_bytes()
            did = self.destage()
            if self._moved_bytes >= GIVE_BACK_BYTES and not self.hot_bytes():
                self._moved_bytes = 0
                memory.give_back()
        return self._step_gc() or did

    def _destage_due(self) -> bool:
        parts, options = self._parts, self._parts.options
        volumes = [each for each in parts.catalog.all() if not parts.destager.is_stuck(each)]
        states = [volume.core.state() for volume in volumes]
        now = parts.clock.monotonic()
        if parts.destager.retry_due:
            return True
        if not parts.history.points:
            self._points_at = now + POINT_DELAY_S
        if self._wanted or now >= self._points_at:
            self._wanted = False
            return True
        lsn = parts.journal.state()[0]
        if lsn != self._seen_lsn:
            self._seen_lsn, self._seen_at = lsn, now
        fill = options.destage_fill
        if parts.pool.hurried:
            fill = max(fill, min(2 * fill, HURRIED_FILL))
        filled = parts.passed_bytes() >= fill * parts.geometry.limit
        if not any(state[4] for state in states):
            self.hot_since = None
            # segments of volumes that are gone
            return filled and parts.journal.state()[4] > 0 and not parts.destager.held_up
        if self.hot_since is None:
            self.hot_since = now
        return (
            rare("destage.due")
            or now - self.hot_since >= options.destage_age_s
            or now - self._seen_at >= options.destage_idle_s
            or filled
            or sum(state[5] for state in states) >= options.hot_map_bytes
        )

    def rest(self) -> None:
        """Between two pieces of a round: leave busy clients the time that the last one took."""
        if not self._workers:
            return
        parts = self._parts
        worked_s = parts.clock.monotonic() - self._rested_at
        if parts.fill() < REST_FILL and not self._calls and self._busy():
            self._no_rest.wait(min(worked_s, MAX_REST_S))
        self._rested_at = parts.clock.monotonic()

    def _warm_attached(self) -> None:
        """Warm each volume when a client is attached to it for the first time, and when its clients
        have come back after a rest."""
        for volume in self._parts.catalog.all():
            if self._idle.wants_warming(volume.record.number, volume):
                self.warm(volume)

    def warm(self, volume: Volume) -> None:
        """Cache where a volume's chunks are, so that the first reads need not look.

        Stops when there is something to destage, or damage, which a read then reports."""
        resolver = self._parts.resolver
        head = volume.head()
        try:
            resolver.warm(
                *(volume.target(), head, resolver.stored_chunks(head)),
                go_on=lambda: not self.stopping and not self._destage_due(),
            )
        except (CorruptData, OSError) as error:
            log.warning("warming stopped volume=%s error=%s", volume.name, error)

    def destage(self) -> bool:
        """One destage round over everything that is hot; whether there was anything.

        OutOfSpace: everything stays in the journal, and the next call tries again."""
        parts = self._parts
        parts.seal.check()
        self._rested_at = parts.clock.monotonic()
        try:
            did = parts.destager.run(parts.catalog.unlocked)
        except OutOfSpace as error:
            self._rounds_without_space += 1
            self.refresh_space(stuck=True)
            self._trim_window()
            self.collect()
            parts.backlog.wake()
            self._tell(error)
            raise
        except (VolumeError, OSError) as error:
            self._seal_for(error)
            self._tell(error)
            raise
        self._rounds_without_space = 0
        self.hot_since = None
        if did:
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

        Raises what a round failed with, when that happens again and again; CorruptData when the
        volume is stuck."""
        parts = self._parts
        key = (number, seq)
        if not self._workers:
            for _ in range(2):  # a round that stands, and the one that has the point
                if key in parts.history.points:
                    self._check_not_stuck(number)
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
                self._wait_for_round(
                    lambda: key not in parts.history.points, min(DESTAGE_INTERVAL_S, left_s)
                )
                parts.seal.check()
                self._check_not_stuck(number)
                if self._failures >= failures + SETTLE_FAILURES and self._failure is not None:
                    raise self._failure
                if parts.destager.rounds > rounds + 1 and parts.destager.unsettled:
                    raise NoSuchVersion(
                        f"volume {number}", f"seq:{seq}", "the log is damaged there; see the log"
                    )
            if key in parts.history.points:
                raise StoreClosing

    def _check_not_stuck(self, number: int) -> None:
        for held_up in self._parts.destager.held_up:
            if held_up.number == number:
                raise CorruptData(str(held_up))

    def _wait_for_round(self, reached: Callable[[], bool], timeout_s: float) -> None:
        """Until `reached()`, or a round has done something or failed, or the time is over. Rounds
        that found nothing to do are told of as well: to ask for another one at once would keep
        both threads busy. `_progress` is held."""
        before = (self._parts.destager.rounds, self._failures)
        self._progress.wait_for(
            lambda: reached() or before != (self._parts.destager.rounds, self._failures), timeout_s
        )

    @contextmanager
    def without_gc(self) -> Iterator[None]:
        """Until the block ends gc moves and removes nothing. From any other thread."""
        with self._progress:
            self._gc_pauses += 1
        try:
            with suppress(StoreSealed):  # then nothing is under way
                self.submit(lambda: None)  # what is under way comes to its end
            yield
        finally:
            with self._progress:
                self._gc_pauses -= 1

    def submit(self, call: Callable[[], T]) -> T:
        """Run `call` on the destager's thread, between rounds and slices of gc. From any other.

        What it raises is raised here; an OSError may seal the store as well (`volume.diskerror`).
        StoreSealed when it was sealed before the call's turn came."""
        if not self._workers:
            try:
                return call()
            except OSError as error:
                self._seal_for(error)
                raise
        future: Future[T] = Future()
        with self._progress:
            if self.stopping:
                raise StoreClosing
            if self._no_destager:
                self._parts.seal.check()
            self._calls.append((future, call))
        self._destage_worker.wake()
        return future.result()

    def _seal_for(self, error: Exception) -> None:
        """Whoever runs a round, its own thread or one that waits for it: the store is sealed by the
        time that the error is told."""
        if isinstance(error, OSError) and seals(error):
            self._parts.seal.close(error)

    def _destager_ended(self) -> None:
        """Its thread is about to end, as the store is sealed: whoever waits for it is told."""
        with self._progress:
            self._no_destager = True
            calls = list(self._calls)
            self._calls.clear()
        reason = self._parts.seal.reason
        for future, _ in calls:
            future.set_exception(StoreClosing() if reason is None else StoreSealed(reason))

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
        """Wait until a segment is ready, or a round has freed what it could; ROOM_WAIT_S at most.
        StoreSealed. From any other thread."""
        if not self._workers:
            self.destage()
            self.tend()
            return
        rounds, failures = self._parts.destager.rounds, self._failures
        deadline = self._parts.clock.monotonic() + ROOM_WAIT_S
        with self._progress:
            while (
                not self._has_room()
                and self._parts.destager.rounds == rounds
                and self._failures == failures
                and self._parts.clock.monotonic() < deadline
                and not self.stopping
            ):
                self._parts.seal.check()
                self._wanted = True
                self._destage_worker.wake()
                self._upkeep_worker.wake()
                self._wait_for_round(self._has_room, DESTAGE_INTERVAL_S)
        self._upkeep_worker.wake()

    def _has_room(self) -> bool:
        return self._parts.journal.state()[3] > TRIM_RESERVE

    # -- gc

    def dropped(self) -> None:
        """A volume, a snapshot or a policy is gone: there is something for gc, without a round."""
        self.collector.note_change()

    def collect(self) -> gc.GcReport:
        """A whole run of gc, now. On the destager's thread."""
        self._parts.seal.check()
        self.thinning.thin()
        return self.collector.collect()

    def _step_gc(self) -> bool:
        """A slice of gc, if one is due; whether to go on at once."""
        if self._gc_pauses:
            return False
        self._parts.seal.check()
        if rare("gc.due"):
            self.collector.run_now()
        status = self.collector.status()
        if not status.running and status.next_run_s is not None and status.next_run_s <= 0.0:
            self.thinning.thin()  # what goes here is dead in the run that begins
        return self.collector.step(GC_SLICE_S) and not self._destage_due()

    def _step_scrub(self) -> bool:
        """A slice of scrub; whether to go on at once. On a thread of its own: it only reads."""
        self._parts.seal.check()
        return self.scrubber.step(SCRUB_SLICE_S)

    def lost(self, found: list[Lost]) -> None:
        """A round has stored these as lost. On the destager's thread."""
        places = [(lost, self._parts.chunks.place(lost.chunk_id)) for lost in found]
        self.scrubber.note(
            Damage(place.pack, place.offset, lost.chunk_id, f"lost: {lost.why}"[:MAX_WHAT_BYTES])
            for lost, place in places
            if place is not None
        )

    def damage_locations(self, damages: Iterable[Damage] | None = None) -> Iterator[Location]:
        """What of which volumes and versions damage hits; without `damages`, what scrub knows of.
        Lazy; any thread. What is in the journal only is not looked at."""
        parts = self._parts
        if damages is None:
            damages = self.scrubber.status().damages
        roots = named_roots(parts.catalog, parts.history)
        return locate(parts.chunks, parts.manifests, damages, roots)

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

    def _protect(self, row: VersionRow) -> bool:
        """The tree of `row` has a new holder, which `roots` may have been asked too early for."""
        return self.collector.protect(root_of(row))

    def forget_pack(self, number: int) -> None:
        self._parts.resolver.forget_pack(number)
        self._parts.table.drop_pack(number)

    # -- figures

    def journal_bytes(self) -> int:
        """Bytes of the journal that hold what is not in chunks."""
        return self._parts.journal_bytes()

    def hot_bytes(self) -> int:
        return self._parts.hot_bytes()

    def refresh_space(self, *, stuck: bool = False) -> None:
        """`stuck`: a round has just found no space. Small writes take whole chunks, so a round may
        need far more than what is hot; what fits is known when one gets through, and writes that
        wait for it get their ENOSPC instead."""
        stuck = stuck or self._rounds_without_space >= STUCK_ROUNDS
        # A journal that can still grow needs no segment kept back: it makes another one.
        reserved = 0 if self._parts.pool.can_grow() else TRIM_RESERVE
        self._parts.space.refresh(self.hot_bytes(), reserved, stuck=stuck)
