"""What must hold for a store that was opened on a crash state of a workload.

always        it opens, and is not sealed; all volumes are the state at one position of the log,
              not before the last acked flush (I2, I3), sector for sector (I5); what was under
              way is there as a whole or not at all; snapshots have their bytes (I7); the index
              finds every chunk that a head or a listed version reaches (I9)
every 6th     its recovery is cut off as well, at points and with survivors drawn by the state:
              the next recovery shows the same
every 8th     it goes on: versions open, writes are taken, a destage round, a whole gc, a whole
              scrub that finds nothing, kill -9, and all is there (I4, I9)
"""

import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.sim.catalogue.life import Lived, Workload
from tests.sim.crash_window import StateName, all_names, cut_points, images
from tests.sim.image import Image
from tests.sim.store_rig import IndexChanged, MetaCommitted, StoreRig
from tests.sim.trace import Mark, Trace
from tests.sim.versions_life import Known, VersionsLife
from tests.sim.versions_model import Model
from volume.layout import ZERO_ID

NESTED_EVERY = 6
NESTED_IMAGES = 2
GOES_ON_EVERY = 8
ALL_CHECKS = 0  # a number of which every check is made
SAMPLE = 4  # versions of each volume that are opened where it goes on


@dataclass(frozen=True, slots=True)
class Moment:
    """What belongs to a point of a trace besides its disk."""

    meta: Mapping[bytes, bytes]
    index: Mapping[bytes, bytes]
    """What is in index/ after a power cut."""
    known: Known | None
    promise: int
    """Two moments of the same number promise the same."""


class Moments:
    """The moments of a trace, found once."""

    def __init__(
        self,
        trace: Trace,
        base_meta: Mapping[bytes, bytes],
        base_index: Mapping[bytes, bytes],
    ) -> None:
        """`base_meta`, `base_index`: what was durable of them when the trace began."""
        meta, index, known, number = base_meta, base_index, None, 0
        self._at = []
        promises: dict[object, int] = {}
        promise = 0
        for op in trace.ops:
            self._at.append(Moment(meta, index, known, promise))
            if not isinstance(op, Mark):
                continue
            match op.value:
                case MetaCommitted(items):
                    meta, number = items, number + 1
                case IndexChanged(items, synced=True):
                    index = items
                case Known():
                    known = op.value
                case _:
                    continue
            key = (number, None if known is None else _promise(known.model))
            promise = promises.setdefault(key, len(promises) + 1)
        self._at.append(Moment(meta, index, known, promise))

    def at(self, point: int) -> Moment:
        return self._at[point]


def _promise(model: Model) -> object:
    """What a crash must leave, and may: equal for models that decide alike about one disk. (How
    much has been written does not matter: what is on a disk was written before.)"""
    volumes = (
        (v.number, v.name, v.epoch, tuple((n, s.seq, s.pinned) for n, s in v.snapshots.items()))
        for v in model.volumes.values()
    )
    return model.durable, model.pending, tuple(volumes)


def check_state(lived: Lived, moment: Moment, image: Image, number: int) -> None:
    """Raise unless the store recovers from this state with all promises kept. `number` decides
    which of the rarer checks are made."""
    model = Model() if moment.known is None else moment.known.model.copy()
    options = lived.workload.options
    clock = None if moment.known is None else moment.known.clock()
    rig = StoreRig(image, moment.meta, moment.index, options=options, clock=clock, boot="boot-2")
    opened_at = len(rig.disk.trace.ops)
    model.recovered(rig)
    model.check_snapshots(rig)
    life = VersionsLife(options, rig=rig, model=model)
    _check_reachable(life)
    assert rig.store.status().state == "ok", rig.store.status()
    if number % NESTED_EVERY == 0:
        _check_cut_recovery(rig, model, opened_at)
    if number % GOES_ON_EVERY == 0:
        _check_goes_on(life)


def _check_reachable(life: VersionsLife) -> None:
    """I9: a pack has every chunk and node that heads and listed versions reach."""
    store = life.rig.store
    reached: set[bytes] = set()

    def enter(node: bytes) -> bool:
        new = node not in reached
        reached.add(node)
        return new

    for volume in life.model.volumes.values():
        head = life.rig.volume(volume.name).record.head
        reached |= {head.commit} - {ZERO_ID}
        store._manifests.walk(head.root, head.height, enter, reached.update)
        for row in store._history.versions(volume.number):
            reached |= {row.commit} - {ZERO_ID}
            store._manifests.walk(row.root, row.height, enter, reached.update)
    lost = [chunk for chunk in reached if store._index.get(chunk) is None]
    assert not lost, f"{len(lost)} chunks of heads or versions are in no pack"


def _check_cut_recovery(rig: StoreRig, model: Model, opened_at: int) -> None:
    """Cut the power at two moments of what `rig` did to open; the next one shows the same."""
    trace = Trace(rig.disk.trace.base, rig.disk.trace.inodes, rig.disk.trace.ops[:opened_at])
    moments = Moments(trace, rig.base_meta, rig.base_index)
    points = cut_points(trace, (Known,))
    rng = random.Random(len(points))
    for point in rng.sample(points, min(NESTED_IMAGES, len(points))):
        name = rng.choice(all_names(trace, [point]))
        for _, image in images(trace, [name]):
            moment = moments.at(point)
            again = StoreRig(
                *(image, moment.meta, moment.index),
                options=rig.options,
                clock=rig.clock,
                boot="boot-3",
            )
            model.copy().recovered(again)


def _check_goes_on(life: VersionsLife) -> None:
    life.rig.tend()
    life.check_now(SAMPLE)
    for volume in list(life.model.volumes.values()):
        life.write(volume, 512, 1024)
    life.settle()
    life.scrub()
    life.check_now(SAMPLE)
    life.kill()
    life.model.check_heads(life.rig)
    life.model.check_snapshots(life.rig)


@dataclass(slots=True)
class Tally:
    """What a run over one workload came to."""

    states: int = 0
    """Distinct: disk, meta/ and promise together."""
    disks: int = 0
    names: int = 0
    """All states that the trace has by name; many of them are the same."""


class StateFailed(AssertionError):
    """A state breaks a promise; the message has the command that replays it."""


def check_workload(
    lived: Lived,
    *,
    limit: int | None,
    tally: Tally | None = None,
    told: Callable[[], None] = lambda: None,
) -> Tally:
    """Check distinct states of a workload: `limit` of them, drawn by its name; None: all. `told` is
    called for each.

    StateFailed at the first one that breaks a promise."""
    tally = tally or Tally()
    with _quiet():
        for number, (name, moment, image) in enumerate(distinct_states(lived, limit, tally)):
            told()
            try:
                check_state(lived, moment, image, number + 1)
            except Exception as error:
                raise StateFailed(_message(lived, name, error)) from error
    return tally


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hundreds of recoveries log what power cuts did. pytest keeps the records of a test, which
    keep errors, and by their tracebacks whole stores."""
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def check_named(lived: Lived, name: StateName) -> None:
    """Check one state, with all checks. Raises what it finds."""
    moments = Moments(lived.trace, lived.base_meta, {})
    for _, image in images(lived.trace, [name]):
        check_state(lived, moments.at(name.point), image, ALL_CHECKS)


def check_in_gate(workload: Workload) -> None:
    """What the commit gate does with a workload. StateFailed, AssertionError."""
    tally = check_workload(workload.lived(), limit=workload.gate)
    assert tally.states >= workload.states, (
        f"{workload.name} has {tally.states} states only; let it do more, or say so"
    )


def _message(lived: Lived, name: StateName, error: Exception) -> str:
    workload = lived.workload.name
    return (
        f"{workload}, state {name}: {error!r}\n"
        f"replay: scripts/crash-states --workload {workload} --state {name}"
    )


def distinct_states(
    lived: Lived, limit: int | None, tally: Tally
) -> Iterator[tuple[StateName, Moment, Image]]:
    """States that differ in disk, meta/ or promise, in an order that depends on the workload only;
    what they come to is added to `tally`."""
    trace = lived.trace
    moments = Moments(trace, lived.base_meta, {})
    names = all_names(trace, cut_points(trace, (Known, IndexChanged)))
    tally.names = len(names)
    batch = len(names)
    if limit is not None:
        random.Random(lived.workload.name).shuffle(names)
        batch = limit + limit // 2
    disks, seen = set[bytes](), set[tuple[bytes, int]]()
    for start in range(0, len(names), max(1, batch)):
        for name, image in images(trace, names[start : start + batch]):
            moment = moments.at(name.point)
            digest = image.digest()
            if (digest, moment.promise) in seen:
                continue
            seen.add((digest, moment.promise))
            disks.add(digest)
            tally.states, tally.disks = len(seen), len(disks)
            yield name, moment, image
            if len(seen) == limit:
                return
