"""The simulated disk in a world: operations take time, others run meanwhile, the journal is tapped.

Calls of the C core hold its locks, so that no other thread may run before they return: they take no
time. The one exception is the sync of the journal, which every caller in a world makes under one
simulated lock (`tests.sim.world.machine`).
"""

import random
from collections.abc import Callable, Iterable, Mapping

from typing_extensions import Buffer

from tests.sim.faults import Action
from tests.sim.image import Image
from tests.sim.simdisk import DEFAULT_CAPACITY, Inode, SimDisk, SimFile
from tests.sim.world.primitives import WALL_START_S
from tests.sim.world.threads import NS, Threads
from volume.kv import MemoryKeyValue

Tap = Callable[[str, int, bytes], None]
"""Told of each write to a file: its path, offset, and what landed."""

WAIT_CHANCE = 0.12  # of an operation to take time; else others may only go first
SYNC_S = (0.0002, 0.004)
OPERATION_S = (0.00002, 0.0005)


class NativeFile:
    """What the C core does its I/O on: open by itself, as the duplicate of a descriptor is, until
    the core lets go of it."""

    def __init__(self, disk: "WorldDisk", inode: Inode, read_only: bool) -> None:
        inode.open_count += 1
        self._file = SimFile(disk, inode, read_only)
        self._disk = disk

    def pread(self, length: int, offset: int) -> bytes:
        with self._disk.at_once():
            return self._file.pread(length, offset)

    def pwrite(self, data: Buffer, offset: int) -> int:
        with self._disk.at_once():
            return self._file.pwrite(data, offset)

    def sync(self) -> None:
        self._file.sync()

    def __del__(self) -> None:
        self._file.close()


class WorldFile(SimFile):
    def native(self) -> object:
        return NativeFile(self._disk, self._inode, self._read_only)  # type: ignore[arg-type]


def _untold(path: str, offset: int, data: bytes) -> None:
    pass


class _AtOnce:
    """Operations inside take no time."""

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *exc: object) -> None:
        self.depth -= 1


class WorldDisk(SimDisk):
    def __init__(
        self,
        run: Threads,
        image: Image | None,
        tap: Tap,
        *,
        capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        self._run = run
        self._tap = tap
        self._at_once = _AtOnce()
        self.operations: dict[str, int] = {}
        self._inodes: dict[int, Inode] = {}
        self._synced_sizes: dict[int, int] = {}
        self._unsynced_writes: dict[int, list[tuple[int, int]]] = {}  # of journal files, by inode
        self._synced_writes: dict[int, list[tuple[int, int]]] = {}
        super().__init__(image, capacity=capacity)

    def forget_world(self) -> None:
        """The machine is off for good. What the core holds must not hold the world: the garbage
        collector cannot look into it, and would keep every world that there was."""
        self._tap = _untold
        self._run = Threads("")

    def at_once(self) -> _AtOnce:
        return self._at_once

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> SimFile:
        file = super().open(path, create=create, read_only=read_only)
        return WorldFile(self, file._inode, read_only)

    def _enter(self, op: str, path: str, offset: int = 0, length: int = 0) -> Action | None:
        self.operations[op] = self.operations.get(op, 0) + 1
        if not self._at_once.depth and not self._off:
            self._take_time(op)
        return super()._enter(op, path, offset, length)

    def _take_time(self, op: str) -> None:
        run = self._run
        draw = run.random.random()
        if draw < WAIT_CHANCE or op == "sync":
            shortest, longest = SYNC_S if op == "sync" else OPERATION_S
            run.sleep(
                shortest + draw / WAIT_CHANCE * (longest - shortest)
                if op != "sync"
                else shortest + draw * (longest - shortest)
            )
        else:
            run.pause(0.3)

    def _write(self, inode: Inode, data: bytes, offset: int) -> None:
        super()._write(inode, data, offset)
        if inode.path.startswith("journal/"):
            if not offset:  # the segment begins anew
                self._synced_writes.pop(inode.number, None)
                self._unsynced_writes.pop(inode.number, None)
            self._unsynced_writes.setdefault(inode.number, []).append((offset, len(data)))
        self._tap(inode.path, offset, data)

    def stall(self, seconds: float) -> None:
        """What a scripted stall does: nothing where a lock of the core may be held."""
        if not self._at_once.depth:
            self._run.sleep(seconds)

    def synced_place(self, folder: str, rng: random.Random) -> tuple[str, int] | None:
        """A byte of a file in `folder` that has been there when the file was last synced."""
        found = sorted(
            (inode.path, min(self._synced_sizes[number], inode.contents.size))
            for number, inode in self._inodes.items()
            if inode.linked and inode.path.startswith(folder)
        )
        found = [(path, size) for path, size in found if size]
        if not found:
            return None
        path, size = rng.choice(found)
        return path, rng.randrange(size)

    def synced_record(self, rng: random.Random) -> tuple[str, int] | None:
        """A byte of what was written to the journal and then synced."""
        found = [
            (self._inodes[number].path, offset, length)
            for number, writes in sorted(self._synced_writes.items())
            for offset, length in writes
            if offset and self._inodes[number].linked
        ]
        if not found:
            return None
        path, offset, length = rng.choice(found)
        return path, offset + rng.randrange(length)

    def sync(self, inode: Inode) -> None:
        size = inode.contents.size
        writes = self._unsynced_writes.pop(inode.number, [])
        super().sync(inode)
        self._synced_writes.setdefault(inode.number, []).extend(writes)
        self._inodes[inode.number] = inode
        self._synced_sizes[inode.number] = min(size, inode.contents.size)


class WorldKeyValue(MemoryKeyValue):
    """LMDB: an update is one moment, some time after it was asked for."""

    def __init__(self, run: Threads, items: Mapping[bytes, bytes] | None, synced: bool) -> None:
        super().__init__(items)
        self._run = run
        self._takes_time = synced
        self.durable = dict(items or {})
        """What a power cut leaves."""

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        gone = list(deletes)
        if self._takes_time:
            self._run.sleep(SYNC_S[0] + self._run.random.random() * SYNC_S[0] * 4)
        else:
            self._run.pause(0.1)
        super().update(puts, gone)
        if self._takes_time:
            self.durable = self.snapshot()

    def sync(self) -> None:
        self._run.pause()
        self.durable = self.snapshot()


class WorldClock:
    """volume.disk.Clock on the world's time."""

    def __init__(self, run: Threads, seed: str) -> None:
        self._run = run
        self._random = random.Random(f"uuid:{seed}")
        self.step_ns = 0
        """How far somebody has set the date."""

    def now_ns(self) -> int:
        return WALL_START_S * NS + self._run.now_ns + self.step_ns

    def monotonic(self) -> float:
        return self._run.now_s

    def boottime_ns(self) -> int:
        return self._run.now_ns

    def new_uuid(self) -> bytes:
        return self._random.randbytes(16)
