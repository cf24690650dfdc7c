"""gc: what no root reaches is removed from the packs. Mark and sweep, never counters.

A run of the `Collector` is cut into slices; destage rounds go on between them.

    mark     walk every tree and set one bit for each chunk reached, by pack and ordinal of the
             entry (`volume.marks`). A node whose bit is set is not walked again: what versions
             share costs nothing (data can never have the id of a node, see `volume.manifest`).
             A chunk that should be there and is not ends the run before anything was removed.
    window   versions that the any-write window needs are weighed: what each takes beside the
             others is told to the caller (`weighed`), who may need fewer of them the next time.
    history  versions that nobody named, newest first, until their share of the disk is used up;
             the rest is given back to the caller (`dropped`).
    sweep    packs with nothing to keep are removed; those with less than MIN_LIVE of their bytes
             to keep, and several small ones, are copied forward: what is kept is verified and
             appended to the newest pack, then the old one is removed. A pack with a damaged
             footer, or in which what is kept does not all verify, stays as it is and is counted.

What happens between the slices
- *The epoch barrier.* Whatever a round puts, and whatever it finds to be there already, lives for
  this run (`ChunkStore.watch`). So a head that moves needs no second look: each node of its new
  tree was put meanwhile, or is of the old tree, which was a root or is covered in the same way.
- A *new name for an old tree* (a clone, a restore, an opened version) puts nothing. Who makes one
  registers it where `roots` will find it, and then calls `protect`.
- Only packs that were there when the run began are swept, copies go to later ones.
- A slice leaves nothing half done: what it copied is durable and in the index, a pack is looked
  through and removed in one go.

*Condemned*: a dead entry is removed when an earlier run, at least `condemn_s` before, found it dead
as well. Until then it is kept, and a put that finds it brings it back to life. This is memory only:
after a restart the period begins anew. When the disk is full nobody can wait for it.

Order, and what a crash after each step leaves:

    removing  1  index forgets the dead      entries nobody can find; the next gc removes the pack
              2  unlink                      as before, or done
    copying   1  kept entries appended       copies that nothing refers to; swept as dead later
              2  packs synced                the same
              3  index points at the copies  the old pack holds only dead entries; removed later
              4  index forgets the dead      the same
              5  unlink                      as before, or done

The index is not synced, so a power cut may undo 3 and 4 but keep 5; it is then rebuilt from the
packs (`Meta.index_trusted`), where the copies are. A pack that comes back because its unlink was
not durable brings entries back that are true to their ids, and is removed again by a later gc.

Threads: `step` and `collect` on the writer's thread, between rounds: everything put is synced.
`protect`, `note_change`, `run_now`, `status` and `dry_run` on any. Readers go on all the time; a
chunk that moves under them is found again (`volume.chunks`).
"""

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from volume.chunks import ChunkStore
from volume.errors import CorruptData
from volume.gcmodel import Dropped, GcReport, Hooks, Root, Weighed, ignore, never
from volume.gcrun import Run
from volume.manifest import Manifests
from volume.marks import Condemned, Marks
from volume.sites import rare

log = logging.getLogger(__name__)

BUSY_SLICE_S = 0.02  # a slice while clients are at work; longer ones show in their latencies
BUSY_SHARE = 0.1  # of the time, for gc, while clients are at work
FULL_REST_S = 1.0  # between two runs while the disk is full
RUN_SHARE = 20  # gc rests at least this many times as long as its last run worked


@dataclass(frozen=True, slots=True)
class GcStatus:
    """What gc is doing."""

    running: bool
    phase: str
    """"idle", "mark", "history", "sweep" or "copy"."""
    progress: float
    """Of the run, 0.0 to 1.0; an estimate."""
    last: GcReport | None
    ended_s: float | None
    """Seconds since the last run ended."""
    next_run_s: float | None
    """Seconds until the next run; None while one goes on, or when there is nothing to look for."""
    condemned_bytes: int
    """Of pack entries that are dead, but stay for a while."""


class Pace(NamedTuple):
    """How gc shares the machine, and how long dead things stay. Times are seconds."""

    interval_s: float = 10.0
    """Between two runs, at least."""
    condemn_s: float = 60.0
    """Dead entries stay that long; 0: they go in the run that finds them dead."""
    busy_copy_rate: int = 32 * 1024 * 1024
    """Bytes per second that are copied while clients are at work."""


DEFAULT_PACE = Pace()


class _Stopped(Exception):
    pass


class Collector:
    """Runs gc in slices. See the module's text for threads and order."""

    def __init__(
        self,
        store: ChunkStore,
        manifests: Manifests,
        hooks: Hooks,
        monotonic: Callable[[], float],
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self._store = store
        self._manifests = manifests
        self._hooks = hooks
        self._monotonic = monotonic
        self._pace = pace
        self._condemned = Condemned(pace.condemn_s)
        self._lock = threading.Lock()  # `_run`, and what is protected while it marks
        self._run: Run | None = None
        self._changed = True  # something may have died since the last run began
        self._waiting = False  # something dead stayed, since it had not been dead for long enough
        self._asked = False
        self._resume_at = 0.0
        self._ended_at = monotonic()
        self._rest_s = pace.interval_s
        self._last: GcReport | None = None
        self._shares: dict[int, float] = {}

    # -- the writer's thread

    def step(self, budget_s: float) -> bool:
        """Work for about `budget_s`, if there is anything to do now; whether to call again at once.

        False: nothing is due, or gc rests for the sake of clients; call again in a moment (the
        worker's interval will do). Damage ends the run and is told by `status`; OSError: a write or
        a sync has failed, seal the store."""
        now = self._monotonic()
        full = self._hooks.full()
        if self._run is None:
            if self._due_in(now, full) > 0.0:
                return False
            self._begin(thorough=False, full=full)
        elif now < self._resume_at and not full:
            return False
        busy = not full and self._hooks.busy()
        self._advance(now + (min(budget_s, BUSY_SLICE_S) if busy else budget_s), busy)
        return self._run is not None and not busy

    def collect(self, *, thorough: bool = False) -> GcReport:
        """A whole run over the roots of now, without rests; what it did.

        `thorough`: packs are copied for a single dead entry, so that nothing dead is left but what
        is condemned. Raises what ended it early: CorruptData, OSError; `error` is set as well."""
        self._finish()  # what was begun before saw other roots
        self._begin(thorough=thorough, full=self._hooks.full())
        run = self._run
        assert run is not None
        self._finish()
        if run.failure is not None:
            raise run.failure
        return run.report

    def _finish(self) -> None:
        while self._run is not None:
            self._advance(None, busy=False)

    def _begin(self, *, thorough: bool, full: bool) -> None:
        assert self._store.pending_count == 0, "gc runs between rounds"
        self._changed = self._asked = False  # before the roots are asked for
        run = self._new_run(thorough=thorough, full=full)
        with self._lock:
            self._run = run
        self._store.watch = run.used
        self._resume_at = 0.0

    def _new_run(self, *, thorough: bool, full: bool) -> Run:
        """One that has not begun yet."""
        return Run(
            self._store,
            self._manifests,
            self._hooks,
            self._condemned,
            self._lock,
            self._monotonic,
            thorough=thorough,
            patient=not full,
        )

    def _advance(self, deadline: float | None, busy: bool) -> None:
        """Go on with the run until `deadline`, or to its end."""
        run = self._run
        assert run is not None
        assert self._store.pending_count == 0, "gc runs between rounds"
        began = now = self._monotonic()
        try:
            for copied in run.work:
                now = self._monotonic()
                if self._hooks.should_stop():
                    raise _Stopped
                if busy and copied:
                    self._resume_at = now + copied / self._pace.busy_copy_rate
                    break
                if deadline is not None and (now >= deadline or rare("gc.yields")):
                    break
            else:
                self._end(run, None, began)
                return
        except _Stopped:
            run.report.stopped = True
            self._end(run, None, began)
            return
        except CorruptData as error:
            self._end(run, error, began)
            return
        except BaseException:
            self._end(run, None, began, told=False)
            raise
        run.report.work_s += now - began
        if busy:
            rest_s = (now - began) * (1 / BUSY_SHARE - 1)
            self._resume_at = max(self._resume_at, now + rest_s)

    def _end(self, run: Run, error: CorruptData | None, began: float, *, told: bool = True) -> None:
        self._store.watch = None
        with self._lock:
            self._run = None
        now = self._monotonic()
        report = run.report
        report.bytes_after = self._store.packs.total_bytes
        report.work_s += now - began
        report.duration_s = now - run.started
        if error is not None:
            report.error, run.failure = str(error), error
            log.error("gc stopped, nothing that is needed was removed error=%s", error)
        elif told:
            log.info("gc done report=%s", report)
        self._last = report
        if run.shares:
            self._shares = run.shares
        self._ended_at = now
        self._rest_s = max(self._pace.interval_s, RUN_SHARE * report.work_s)
        self._waiting = report.condemned_chunks > 0
        if error is not None or report.stopped or not told:
            self._changed = True  # there is something left to do

    # -- any thread

    def note_change(self) -> None:
        """Something may have died: a head moved, a volume or a snapshot was deleted."""
        self._changed = True

    @property
    def idle(self) -> bool:
        """Whether no run is under way. On the writer's thread that stays so until it goes on."""
        return self._run is None

    def live_share(self, number: int) -> float | None:
        """Of a pack's bytes, how much the last run kept; None when it has not looked at it."""
        return self._shares.get(number)

    def run_now(self) -> None:
        """Let the next `step` begin a run, unless one goes on."""
        self._asked = True

    def protect(self, root: Root) -> bool:
        """A tree has a new name, which `roots` tells of from now on: whether all of it is there.

        False: a run has found it without any name, and may have removed parts of it already; the
        new name must go again. May be called at any time, costs a lookup, and never waits."""
        with self._lock:
            return self._run is None or self._run.protect(root)

    def status(self) -> GcStatus:
        with self._lock:
            run = self._run
            last = self._last
        now = self._monotonic()
        wait_s = self._due_in(now, self._hooks.full())
        return GcStatus(
            running=run is not None,
            phase="idle" if run is None else run.phase,
            progress=0.0 if run is None else run.progress(last.chunks_live if last else 0),
            last=last,
            ended_s=None if last is None else now - self._ended_at,
            next_run_s=None if run is not None or wait_s == float("inf") else wait_s,
            condemned_bytes=last.condemned_bytes if last else 0,
        )

    def dry_run(self) -> GcReport:
        """What a run would do now, removing nothing. Takes as long as a run; any thread.

        What is written meanwhile may not be in it. CorruptData: a run would end early."""
        run = self._new_run(thorough=False, full=self._hooks.full())
        report = run.report
        report.dry = True
        for _ in run.rehearsal():
            if self._hooks.should_stop():
                report.stopped = True
                break
        report.work_s = report.duration_s = self._monotonic() - run.started
        return report

    def _due_in(self, now: float, full: bool) -> float:
        """Seconds until the next run; 0.0: now; infinite: there is nothing to look for."""
        if self._asked:
            return 0.0
        rested_s = now - self._ended_at
        if full and (self._changed or self._waiting):
            return max(0.0, FULL_REST_S - rested_s)
        if self._changed:
            return max(0.0, self._rest_s - rested_s)
        if self._waiting:
            return max(0.0, max(self._rest_s, self._pace.condemn_s) - rested_s)
        return float("inf")


def collect(
    store: ChunkStore,
    manifests: Manifests,
    roots: Iterable[Root],
    *,
    monotonic: Callable[[], float],
    moved: Callable[[int], None] = ignore,
    removed: Callable[[int], None] = ignore,
    should_stop: Callable[[], bool] = never,
    thorough: bool = False,
) -> GcReport:
    """One whole run without a condemn period, as for a store that nobody else uses."""
    hooks = Hooks(lambda: roots, moved=moved, removed=removed, should_stop=should_stop)
    collector = Collector(store, manifests, hooks, monotonic, Pace(condemn_s=0.0))
    return collector.collect(thorough=thorough)


__all__ = [
    "Collector",
    "Dropped",
    "GcReport",
    "GcStatus",
    "Hooks",
    "Marks",
    "Pace",
    "Root",
    "Weighed",
    "collect",
]
