"""The operator of a world: snapshots, clones, restores, sizes and garbage, beside clients at work.

One thing at a time. What it asks for is noted before it is asked (`Pending`): when the daemon is
gone before it answers, it has happened as a whole or not at all, and the next start tells which.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tests.nbd_client import OptionError
from tests.sim.world.ledger import Ledger, Snapshot
from tests.sim.world.stamps import Violation
from tests.sim.world.threads import Threads
from volume.errors import NoSuchVersion, VolumeBusy
from volume.model import VolumeInfo
from volume.store import Store

T = TypeVar("T")

CLONES_AT_MOST = 3
CLONE = "clone"
RECENT = 60  # records of a volume, of which one is gone back to


@dataclass(slots=True)
class Pending:
    """What was asked for at position `since` of the log, and not answered."""

    kind: str
    since: int
    volume: str = ""
    name: str = ""
    volumes: tuple[str, ...] = ()
    size: int = 0
    snapshot: Snapshot | None = None
    taken: list[Snapshot] = field(default_factory=list)
    """What a snapshot would be, if it is there."""


class Surroundings(Protocol):
    """What the operator needs of its world."""

    run: Threads
    ledger: Ledger
    pending: Pending | None
    counts: Counter[str]

    def call(self, work: Callable[[Store], T]) -> T:
        """Have the daemon do something; ServerGone."""

    def image(self, export: str) -> bytes: ...
    def write_some(self, volume: str, rng: random.Random) -> None:
        """A client writes to a volume for a moment."""


def _copied(store: Store, source: str, name: str) -> VolumeInfo:
    with store.receive(name) as receiver:
        for piece in store.send(source):
            receiver.feed(piece)
        return receiver.end()


class Operator:
    def __init__(self, world: Surroundings, sizes: dict[str, int]) -> None:
        self._world = world
        self._sizes = sizes
        self._clones = 0

    def act(self, kind: str, index: int, rng: random.Random) -> None:
        getattr(self, "_" + kind.replace("-", "_"))(index, rng)

    # -- names

    def _snapshot(self, index: int, rng: random.Random) -> None:
        ledger = self._world.ledger
        volumes = rng.choice((("left",), ("right",), ("left", "right")))
        name, sync = f"s{index}", rng.random() < 0.3
        covered = ledger.acked
        pending = self._ask(Pending("snapshot", ledger.position, name=name, volumes=volumes))
        self._world.call(lambda store: store.snapshots.create(name, volumes, sync=sync))
        self._world.pending = None
        made = ledger.snapshot_made(name, volumes, pending.since)
        if made.position < covered:
            raise Violation(f"I7 snapshot {name} is of {made.position}, {covered} was acked before")
        if sync:
            ledger.flush_acked(made.position)

    def _read_snapshot(self, index: int, rng: random.Random) -> None:
        snapshot = self._any_snapshot(rng)
        if snapshot is not None:
            image = self._world.image(f"{snapshot.volume}@{snapshot.name}")
            self._world.ledger.check_snapshot(snapshot, image)

    def _read_seq(self, index: int, rng: random.Random) -> None:
        """A state that has no name, somewhere in the window."""
        volume = self._world.ledger.by_name[rng.choice(sorted(self._sizes))]
        if not volume.seqs:
            return
        seq, position = rng.choice(volume.seqs[-RECENT:])
        contents, generation = volume.contents(position), volume.generation
        try:
            image = self._world.image(f"{volume.name}@seq:{seq}")
        except OptionError:
            return  # the window has moved on
        if generation == volume.generation:
            self._world.ledger.check_version(f"{volume.name}@seq:{seq}", image, contents)
            self._world.counts["versions read by seq"] += 1

    def _drop_snapshot(self, index: int, rng: random.Random) -> None:
        snapshot = self._any_snapshot(rng)
        if snapshot is None:
            return
        ledger, key = self._world.ledger, (snapshot.volume, snapshot.name)
        self._ask(Pending("drop-snapshot", ledger.position, *key))
        self._world.call(lambda store: store.snapshots.delete(*key))
        self._world.pending = None
        del ledger.snapshots[key]

    def _any_snapshot(self, rng: random.Random) -> Snapshot | None:
        snapshots = self._world.ledger.snapshots
        return snapshots[rng.choice(sorted(snapshots))] if snapshots else None

    # -- volumes

    def _clone(self, index: int, rng: random.Random) -> None:
        ledger = self._world.ledger
        snapshot = self._any_snapshot(rng)
        if snapshot is None or len(ledger.by_name) >= len(self._sizes) + CLONES_AT_MOST:
            return
        source, name = f"{snapshot.volume}@{snapshot.name}", f"{CLONE}{index}"
        self._ask(Pending("clone", ledger.position, name=name, snapshot=snapshot))
        info = self._world.call(lambda store: store.versions.clone(source, name))
        self._world.pending = None
        ledger.add(name, snapshot.size, info.number).rebase(snapshot.contents, ledger.position + 1)
        if rng.random() < 0.7:
            self._world.write_some(name, rng)

    def _copy(self, index: int, rng: random.Random) -> None:
        """A clone by way of a stream."""
        ledger = self._world.ledger
        snapshot = self._any_snapshot(rng)
        if snapshot is None or len(ledger.by_name) >= len(self._sizes) + CLONES_AT_MOST:
            return
        source, name = f"{snapshot.volume}@{snapshot.name}", f"{CLONE}{index}"
        self._ask(Pending("clone", ledger.position, name=name, snapshot=snapshot))
        try:
            info = self._world.call(lambda store: _copied(store, source, name))
        except NoSuchVersion:
            if snapshot.contents:
                raise
            self._world.pending = None  # nothing has ever been written: there is no commit
            return
        self._world.pending = None
        ledger.add(name, snapshot.size, info.number).rebase(snapshot.contents, ledger.position + 1)

    def _drop_clone(self, index: int, rng: random.Random) -> None:
        ledger = self._world.ledger
        names = sorted(name for name in ledger.by_name if name.startswith(CLONE))
        if not names:
            return
        name = rng.choice(names)
        self._ask(Pending("drop-clone", ledger.position, name))
        self._world.call(lambda store: store.delete_volume(name, force=True))
        self._world.pending = None
        ledger.drop(name)

    def _restore(self, index: int, rng: random.Random) -> None:
        ledger = self._world.ledger
        snapshot = self._any_snapshot(rng)
        if snapshot is None:
            return
        name, covered = snapshot.volume, ledger.acked
        volume = ledger.by_name[name]
        force = rng.random() < 0.8
        pending = Pending("restore", ledger.position, name, snapshot=snapshot)
        self._ask(pending)
        volume.becoming = snapshot.contents
        try:
            self._world.call(lambda store: store.versions.restore(name, snapshot.name, force=force))
        except VolumeBusy:
            self._world.pending = volume.becoming = None
            return
        self._world.pending = None
        ledger.flush_acked(covered)
        ledger.restored(volume, snapshot, pending.since)

    def _resize(self, index: int, rng: random.Random) -> None:
        ledger = self._world.ledger
        name = rng.choice(sorted(self._sizes))
        volume, covered = ledger.by_name[name], ledger.acked
        size = rng.randrange(self._sizes[name] // 4, self._sizes[name] + 1, 4096)
        if size == volume.size:
            return
        before, volume.size = volume.size, min(volume.size, size)
        self._ask(Pending("resize", ledger.position, name, size=size))
        try:
            self._world.call(lambda store: store.resize_volume(name, size, force=True))
        except BaseException:
            volume.size = before  # until the next start tells
            raise
        self._world.pending = None
        ledger.flush_acked(covered)
        volume.size = size

    # -- the rest

    def _collect(self, index: int, rng: random.Random) -> None:
        self._world.call(lambda store: store.collect())

    def _rest(self, index: int, rng: random.Random) -> None:
        self._world.run.sleep(0.3 + rng.random())

    def _ask(self, pending: Pending) -> Pending:
        self._world.pending = pending
        return pending
