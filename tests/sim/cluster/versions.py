"""What operators do to a volume as a whole, and what was promised of that.

A snapshot, that one is dropped, another size, and going back to a snapshot are records of the
volume (NOTE): they are told of as done when W members have them, and a takeover keeps or undoes
them as it does writes. So when a node begins to serve, what had been told is so; what had not may
be so or not, and stays as it is then. A snapshot reads as the volume was when it was made, wherever
it is read. A smaller size is to clients as if what is behind it had been trimmed. A volume that
goes back to a snapshot reads as that one from then on, and what it was before has a name, to which
it may go back in turn; whether it did is known by the records that whoever serves next has
(`tests.sim.cluster.history`).
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from native import OP_FLUSH, OP_WRITE, Request
from tests.sim.cluster.history import Branch, History
from tests.sim.cluster.node import Node, VolumeSpec
from tests.sim.cluster.timeline import Process
from tests.sim.store_rig import read_device
from tests.sim.world.stamps import Violation
from volume.disk import SECTOR_SIZE
from volume.errors import NotPrimary, VolumeError
from volume.historyrows import VersionRow

SMALLEST, LARGEST = 20 * 1024, 56 * 1024
"""Bytes; worlds begin with less than the largest, and clients know nothing of what is beyond."""


@dataclass(eq=False, slots=True)
class Told:
    """Something that was asked for. `done`: it was told of as done; `over`: what is not done by now
    will not be."""

    process: Process
    durable: bool = False
    done: bool = False
    over: bool = False


@dataclass(eq=False, slots=True)
class Snapshot:
    name: str
    image: bytes
    """What it has to read as."""
    made: Told
    dropped: Told | None = None


@dataclass(eq=False, slots=True)
class Resize:
    size: int
    told: Told
    operation: int
    """Of the history: what is behind the size is trimmed. 0: nothing is."""


@dataclass(eq=False, slots=True)
class Restore:
    told: Told
    kept: str
    """Name of what the volume was before."""
    epoch: int
    seq: int
    """Of its record."""
    branch: Branch


class Surroundings(Protocol):
    """What it needs of its world."""

    nodes: dict[str, Node]
    history: History
    spec: VolumeSpec

    def primary(self) -> Node | None: ...
    def note(self, what: str) -> None: ...
    def count(self, what: str) -> None: ...


class Versions:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._count = 0
        self._snapshots: dict[str, Snapshot] = {}
        self._size = world.spec.size  # that was told of, or found at a takeover
        self._resizes: list[Resize] = []  # since then
        self._restores: list[Restore] = []  # the same

    # -- what operators do

    def snapshot(self, rng: random.Random) -> None:
        durable = rng.random() < 0.5
        self._with_primary(lambda node: self._snapshot(node, durable))

    def drop(self, rng: random.Random) -> None:
        there = [each for each in self._snapshots.values() if each.made.done and not each.dropped]
        if there:
            snapshot = rng.choice(there)
            self._with_primary(lambda node: self._drop(node, snapshot))

    def resize(self, rng: random.Random) -> None:
        size = rng.randrange(SMALLEST, LARGEST, SECTOR_SIZE)
        self._with_primary(lambda node: self._resize(node, size))

    def restore(self, rng: random.Random) -> None:
        """To some snapshot, or to what it was before the last time; make one where none is."""
        there = [each for each in self._snapshots.values() if each.made.done and not each.dropped]
        before = [each for each in there if each.name.startswith("before")]
        if there:
            snapshot = before[-1] if before and rng.random() < 0.3 else rng.choice(there)
            self._with_primary(lambda node: self._restore(node, snapshot))
        else:
            self.snapshot(rng)

    def _with_primary(self, call: Callable[[Node], None]) -> None:
        node = self._world.primary()
        if node is not None:
            primary = node
            primary.process.run(lambda: call(primary) if _works(primary) else None)

    def _snapshot(self, node: Node, durable: bool) -> None:
        self._count += 1
        told = Told(node.process, durable)
        snapshot = Snapshot(f"s{self._count}", node.onlooker.image(), told)
        self._snapshots[snapshot.name] = snapshot  # the power may go in the middle of it
        notes, volume = node.store._notes, node.volume
        try:
            made = notes.snapshot(snapshot.name, [volume], pinned=False, scheduled=False)
        except (VolumeError, OSError):
            self._world.count("snapshot refused")
            return
        ((_, row, _),) = made
        self._confirm(node, row.seq, told, f"snapshot {snapshot.name}", lambda _: None)

    def _drop(self, node: Node, snapshot: Snapshot) -> None:
        if snapshot.dropped is not None:
            return
        snapshot.dropped = told = Told(node.process, durable=True)
        try:
            seq = node.store._notes.drop(node.volume, snapshot.name)
        except (VolumeError, OSError):
            self._world.count("drop refused")
            return
        self._confirm(node, seq, told, f"drop of {snapshot.name}", lambda _: None)

    def _resize(self, node: Node, size: int) -> None:
        history, whole = self._world.history, self._world.spec.size
        before = min(node.volume.size, whole)
        first, end = size // SECTOR_SIZE, before // SECTOR_SIZE
        operation = history.begin("trim", first, end - first) if first < end else 0
        told = Told(node.process, durable=True)
        self._resizes.append(resize := Resize(size, told, operation))
        try:
            seq = node.store._notes.resize(node.volume, size, force=True)
        except (VolumeError, OSError):
            self._world.count("resize refused")
            self._ended(resize, errno.EIO)
            return
        self._confirm(node, seq, told, f"size {size}", lambda error: self._ended(resize, error))

    def _restore(self, node: Node, snapshot: Snapshot) -> None:
        """As `volume.versions.Versions.restore`, which waits on a thread for W disks."""
        node.cut_clients()
        versions, before = node.store.versions, len(self._restores)
        try:
            with versions.settled(f"{node.volume.name}@{snapshot.name}") as (record, row):
                go = lambda: self._go_back(node, snapshot, record.uuid, row)  # noqa: E731
                versions._between_rounds(go)
        except (VolumeError, OSError):
            self._world.count("restore refused")
            if len(self._restores) > before and not node.machine.disk.is_off:
                self._not_appended(node, self._restores[-1])

    def _go_back(self, node: Node, to: Snapshot, of: bytes, row: VersionRow) -> int:
        epoch, volume = node.serving, node.volume
        if epoch is None or not _works(node):
            raise NotPrimary(volume.name)
        self._count += 1
        told = Told(node.process, durable=True)
        name, image = f"before-{self._count}", node.onlooker.image()
        kept = Snapshot(name, image, Told(node.process, durable=True))
        branch = self._world.history.goes_back(to.image)
        seq = volume.seq + 2  # behind that of the name
        self._restores.append(Restore(told, kept.name, epoch, seq, branch))
        self._snapshots[kept.name] = kept
        self._resizes.append(resize := Resize(row.size, told, 0))
        done = node.store._notes.restore(volume, row, of, kept.name)
        if done != seq:
            raise Violation(f"I2 record {done} is a restore, and not {seq}")

        def ended(error: int) -> None:
            self._ended(resize, error)
            if not error:
                kept.made.done = True
                self._world.history.went_back(branch)

        self._confirm(node, seq, told, f"restored to {to.name}", ended)
        return seq

    def _not_appended(self, node: Node, restore: Restore) -> None:
        """It failed. Unless its record is there, it did not happen."""
        if node.volume.seq < restore.seq:
            self._restores.remove(restore)
            self._world.history.did_not(restore.branch)
            self._resizes = [each for each in self._resizes if each.told is not restore.told]

    def _ended(self, resize: Resize, error: int) -> None:
        if resize.operation:
            self._world.history.end(resize.operation, error)
            resize.operation = 0
        if not error and resize in self._resizes:
            self._size = resize.size
            del self._resizes[: self._resizes.index(resize) + 1]

    def _confirm(
        self, node: Node, seq: int, told: Told, what: str, ended: Callable[[int], None]
    ) -> None:
        """Have it told of when W members have record `seq`."""

        def done(requests: list[Request]) -> None:
            (request,) = requests
            self._world.note(f"{what}: {request.error}")
            if not request.error:
                if told.over:
                    raise Violation(f"I6 {what} is told of as done after it was undone")
                told.done = True
                self._world.count(what.split()[0])
            ended(request.error)

        gate = node.volume.gate
        assert gate is not None
        request = Request(OP_FLUSH if told.durable else OP_WRITE, 0, 0)
        gate.confirm(request, seq, durable=told.durable, done=done)

    # -- what has to be so

    def opened(self, node: Node, *, whole: bool) -> None:
        """A node begins to serve. `whole`: nothing that was told of may be lost. Violation."""
        names = node.names()
        for snapshot in self._snapshots.values():
            self._settle(snapshot, snapshot.name in names, whole)
        size = node.volume.size
        sizes = {self._size, *(each.size for each in self._resizes)}
        if size not in sizes:
            raise Violation(f"I2 the volume has {size} bytes, and not one of {sorted(sizes)}")
        self._size = size
        # What a process that is still there has asked for may yet be told of.
        for resize in self._resizes:
            if not resize.told.process.alive and resize.operation:
                self._ended(resize, errno.EIO)
        self._resizes = [each for each in self._resizes if each.told.process.alive]

    def settle_restores(self, node: Node, *, whole: bool) -> None:
        """A node begins to serve, with all or not: whether the volume went back is known by its
        records. Violation."""
        found = None
        for restore in self._restores:
            there = node.has(restore.epoch, restore.seq)
            if there is None:  # too far back: it had the whole volume from another one
                there = restore.kept in node.names()
            self._world.count("restore kept" if there else "restore undone")
            if there:
                found = restore.branch
            elif restore.told.done:
                raise Violation(f"I2 record {restore.seq}, a restore, was told of, and is gone")
            restore.told.done, restore.told.over = there, not there
        self._restores.clear()
        self._world.history.settle(found, whole=whole)

    @staticmethod
    def _settle(snapshot: Snapshot, there: bool, whole: bool) -> None:
        made, dropped, name = snapshot.made, snapshot.dropped, snapshot.name
        if dropped is not None and dropped.done:
            if there:
                raise Violation(f"I6 snapshot {name} was dropped, and is there again")
            return
        if made.over:
            if there:
                raise Violation(f"I6 snapshot {name} was undone, and is there again")
            return
        if there:
            made.done = made.durable = True  # and stays
            if dropped is not None:
                dropped.over, snapshot.dropped = True, None
        elif dropped is not None:
            dropped.done = True
        elif made.done and (whole or made.durable):
            raise Violation(f"I2 snapshot {name} was told of as made, and is gone")
        else:
            made.over = True

    def last_look(self, members: list[Node]) -> None:
        """All is healed, and nobody changes anything. Violation."""
        primary = members[0]
        names = primary.names()
        for snapshot in self._snapshots.values():
            self._settle(snapshot, snapshot.name in names, whole=True)
        for node in members:
            what = node.name[:4]
            if node.names() != names:
                raise Violation(f"I7 {what} has snapshots {node.names()}, and not {names}")
            if node.volume.size != primary.volume.size:
                raise Violation(f"I3 {what} has a size of {node.volume.size}")
            for name in names:
                self._read(node, name)

    def _read(self, node: Node, name: str) -> None:
        device = node.store.open_version(f"{node.volume.name}@{name}")
        device.attach("onlooker")
        with node.onlooker.seeing_through():
            image = self._world.spec.seen(read_device(device, 0, device.size))
        device.detach("onlooker")
        self._world.count("versions read")
        if image != self._snapshots[name].image:
            raise Violation(f"I7 {node.name[:4]} has another snapshot {name} than was made")


def _works(node: Node) -> bool:
    """It has a part of the volume, and a disk that it believes."""
    return node.replica is not None and node.store._seal.reason is None
