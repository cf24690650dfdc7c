"""Crash states: what a power cut at each point of a trace may leave, and a plan of which to try.

`CrashState` replays a trace and builds legal images from it; the rules are in `filestate` (what
files hold) and `namespace` (which files exist). `CrashPlanner` walks a trace and yields distinct
images: every legal one where there are few, otherwise the shapes that find bugs (nothing,
everything, all but one operation, one alone, prefixes, a torn last write) and random draws from a
seed. The same trace, seed and budget give the same images in the same order.

An image is new when its digest *or the number of marks before it* is new: a state that was harmless
before a flush was acknowledged may be a lost write after it.
"""

import itertools
import math
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.sim.filestate import FileState
from tests.sim.image import Contents, Image
from tests.sim.namespace import NameSpace, subject
from tests.sim.trace import (
    Corrupt,
    Create,
    Mark,
    Mkdir,
    Op,
    Rename,
    Sync,
    SyncDir,
    Trace,
    Truncate,
    Unlink,
    Write,
)


class CrashState:
    """A trace replayed up to some point. `apply` must get every operation, in order."""

    def __init__(self, trace: Trace) -> None:
        self.point = 0
        self.names = NameSpace(trace.base.dirs, trace.inodes)
        self.files = {
            inode: FileState(trace.base.files[path].copy()) for path, inode in trace.inodes.items()
        }

    def apply(self, op: Op) -> None:
        position, self.point = self.point, self.point + 1
        match op:
            case Write(inode, offset, data):
                self._file(inode).write(position, offset, data)
            case Truncate(inode, size):
                self._file(inode).truncate(position, size)
            case Corrupt(inode, offset, mask):
                self._file(inode).corrupt(offset, mask)
            case Sync(inode, upto, "ok"):
                self._file(inode).settle(upto)
            case Sync(inode, _, "failed"):
                self._file(inode).fail_sync(position)
            case SyncDir(path, upto, "ok"):
                self.names.settle(path, upto)
                self._forget_unreachable()
            case Create() | Rename() | Unlink() | Mkdir():
                self.names.add(position, op)
            case Sync() | SyncDir() | Mark():
                pass

    def _file(self, inode: int) -> FileState:
        """A file that was open but unlinked when the trace began is not in its base."""
        return self.files.setdefault(inode, FileState())

    def _forget_unreachable(self) -> None:
        used = {*self.names.durable.values(), *map(subject, self.names.pending.values())}
        self.files = {inode: state for inode, state in self.files.items() if inode in used}

    def pending(self) -> list[int]:
        """Positions of all operations that a cut may undo, ascending."""
        files = (state.positions() for state in self.files.values())
        return sorted(set(self.names.pending).union(*files))

    def sectors_of(self, position: int) -> list[int]:
        """Sectors that the pending write at `position` changed, ascending."""
        return sorted(
            sector
            for state in self.files.values()
            for sector, versions in state.sectors.items()
            if any(version.position == position for version in versions)
        )

    def image(
        self,
        why: str,
        kept: Collection[int],
        torn: Collection[tuple[int, int]] = (),
        short: Collection[int] = (),
    ) -> Image:
        """The disk when just the operations at `kept` survived (see FileState.with_kept)."""
        dirs, names = self.names.reachable(kept)
        files = {
            path: self._file(inode).with_kept(kept, torn, short)
            for path, inode in sorted(names.items())
        }
        return Image(dirs, files, self.point, why)

    def drawn(self, why: str, rng: random.Random) -> Image:
        """Any legal image: names, sizes and sectors drawn on their own."""
        kept: set[int] = set()
        for chain in self.names.chains():
            kept.update(chain[: rng.randint(0, len(chain))])
        dirs, names = self.names.reachable(kept)
        files = {path: self._file(inode).drawn(rng) for path, inode in sorted(names.items())}
        return Image(dirs, files, self.point, why)

    def outcomes(self, limit: int) -> Iterator[Image] | None:
        """Every legal image, or None when there may be more than `limit`."""
        chains = self.names.chains()
        if math.prod(len(chain) + 1 for chain in chains) > limit:
            return None
        per_file: dict[int, list[Contents]] = {}
        choices = []
        total = 0
        for lengths in itertools.product(*(range(len(chain) + 1) for chain in chains)):
            kept = {p for chain, n in zip(chains, lengths, strict=True) for p in chain[:n]}
            if self.names.closed(kept) != kept:
                continue
            dirs, names = self.names.reachable(kept)
            for inode in names.values():
                if inode not in per_file:
                    outcomes = self._file(inode).outcomes(limit)
                    if outcomes is None:
                        return None
                    per_file[inode] = outcomes
            total += math.prod(len(per_file[inode]) for inode in names.values())
            if total > limit:
                return None
            choices.append((dirs, names))
        return (
            Image(dirs, dict(zip(names, files, strict=True)), self.point, f"outcome {number}")
            for dirs, names in choices
            for number, files in enumerate(
                itertools.product(*(per_file[inode] for inode in names.values()))
            )
        )

    def killed(self) -> Image:
        """The disk when only the process died: everything written is there."""
        dirs, names = self.names.reachable(self.names.pending)
        files = {path: self._file(inode).current.copy() for path, inode in sorted(names.items())}
        return Image(dirs, files, self.point, "killed")


def survivors(trace: Trace, rng: random.Random) -> Image:
    """What a power cut leaves at the end of a trace, drawn from `rng`."""
    state = CrashState(trace)
    for op in trace.ops:
        state.apply(op)
    kind = rng.random()
    pending = state.pending()
    if kind < 0.5:
        return state.drawn("drawn", rng)
    if kind < 0.6:
        return state.image("all lost", ())
    if kind < 0.7:
        return state.image("all kept", pending)
    if kind < 0.85:
        kept = pending[: rng.randint(0, len(pending))]
        torn = []
        if kept:
            sectors = state.sectors_of(kept[-1])
            torn = [(kept[-1], sector) for sector in sectors if rng.random() < 0.5]
        return state.image("prefix", kept, torn)
    return state.image("random", [each for each in pending if rng.random() < 0.5])


@dataclass(frozen=True, slots=True)
class Budget:
    """How many images one point may cost; each bound is a count of images."""

    exhaustive: int = 64
    """Every legal state is tried when there are at most this many."""
    singles: int = 12
    """Operations tried as the only one lost, and as the only one kept."""
    prefixes: int = 12
    tears: int = 6
    """Places in the last write where it is torn, tried from both sides."""
    random_ops: int = 4
    """Random subsets of operations, with a random write of them torn."""
    random_sectors: int = 4
    """Draws of every name, size and sector on its own."""


class CrashPlanner:
    """The crash states of one trace. The trace may still grow; what is there is used."""

    def __init__(self, trace: Trace, *, seed: int = 0, budget: Budget | None = None) -> None:
        self._trace = trace
        self._seed = seed
        self._budget = budget or Budget()
        self._digests: set[bytes] = set()

    @property
    def distinct(self) -> int:
        """Distinct disks among the images that `images` has yielded so far."""
        return len(self._digests)

    def points(self) -> list[int]:
        """Every point but those right before a mark: the disk is the same after it, and more has
        been promised."""
        ops = self._trace.ops
        return [p for p in range(len(ops) + 1) if p == len(ops) or not isinstance(ops[p], Mark)]

    def images(self, points: Iterable[int] | None = None) -> Iterator[Image]:
        """Distinct images of all `points` (default: all of `points()`), in ascending order."""
        state = CrashState(self._trace)
        seen: set[tuple[bytes, int]] = set()
        for point in sorted(set(self.points() if points is None else points)):
            self._replay(state, point)
            marks = len(self._trace.marks(point))
            for image in self._plan(state):
                digest = image.digest()
                if (digest, marks) not in seen:
                    seen.add((digest, marks))
                    self._digests.add(digest)
                    yield image

    def states_at(self, point: int) -> list[Image]:
        """Distinct images that a cut at `point` (count of operations done) may leave."""
        images = {i.digest(): i for i in self._plan(self._replay(CrashState(self._trace), point))}
        return list(images.values())

    def image_after_kill(self, point: int) -> Image:
        """What kill -9 leaves at `point`: everything written is there."""
        return self._replay(CrashState(self._trace), point).killed()

    def _replay(self, state: CrashState, point: int) -> CrashState:
        if not state.point <= point <= len(self._trace.ops):
            raise ValueError(f"no point {point} in a trace of {len(self._trace.ops)} operations")
        for op in self._trace.ops[state.point : point]:
            state.apply(op)
        return state

    def _plan(self, state: CrashState) -> Iterator[Image]:
        outcomes = state.outcomes(self._budget.exhaustive)
        if outcomes is not None:
            yield from outcomes
            return
        pending = state.pending()
        everything, names = set(pending), set(state.names.pending)
        yield state.image("all lost", ())
        yield state.image("all kept", everything)
        yield state.image("only names kept", names)
        yield state.image("only contents kept", everything - names)
        for position in _spread(pending, self._budget.singles):
            yield state.image(f"lost {position}", everything - {position})
            yield state.image(f"kept {position} only", {position})
        for count in _spread(range(1, len(pending)), self._budget.prefixes):
            yield state.image(f"kept up to {pending[count - 1]}", pending[:count])
        yield from self._torn_last_write(state, pending)
        yield from self._random(state, pending)

    def _torn_last_write(self, state: CrashState, pending: Sequence[int]) -> Iterator[Image]:
        last = next((p for p in reversed(pending) if state.sectors_of(p)), None)
        if last is None:
            return
        sectors = [(last, sector) for sector in state.sectors_of(last)]
        for count in _spread(range(1, len(sectors)), self._budget.tears):
            yield state.image(f"{last} torn after {count} sectors", pending, sectors[count:])
            yield state.image(f"{last} torn before sector {count}", pending, sectors[:count])

    def _random(self, state: CrashState, pending: Sequence[int]) -> Iterator[Image]:
        rng = random.Random(f"{self._seed}:{state.point}")
        for number in range(self._budget.random_ops):
            kept = [position for position in pending if rng.random() < 0.5]
            torn = rng.choice(kept) if kept else None
            sectors = state.sectors_of(torn) if torn is not None else []
            lost = {(torn, sector) for sector in sectors if torn is not None and rng.random() < 0.5}
            yield state.image(f"random operations #{number}", set(kept), lost)
        for number in range(self._budget.random_sectors):
            yield state.drawn(f"random sectors #{number}", rng)


def _spread(items: Sequence[int], count: int) -> Sequence[int]:
    """Up to `count` of `items`: all, or or spaced evenly except that the last ones are dense."""
    if len(items) <= count:
        return items
    recent = count // 2
    older = items[: len(items) - recent]
    step = len(older) / (count - recent)
    return [*(older[int(i * step)] for i in range(count - recent)), *items[len(items) - recent :]]
