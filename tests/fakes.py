"""Devices and exports in memory, for tests of the front ends.

`MemoryDevice` satisfies blockd.device.LastingDevice. It is sparse: a block takes memory once
written, so a device of 2^60 bytes is fine. With `deferred = True` requests are executed when
submitted but finished only by `finish()`, as on a device that waits for a disk.

`snapshot` keeps a version of a device; `FakeExports` opens it as "disk@name", and the device tells
what changed since.
"""

import errno
import threading
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from blockd.access.rules import AccessList, Client, Grant, Rule
from blockd.device import STATE_CHANGED, STATE_HOLE, STATE_ZERO, BlockDevice, Changes, Done
from blockd.nbd.access import ExportPolicy
from native import (
    FLAG_IF_SEQ,
    FLAG_NO_HOLE,
    OP_BLOCK_STATUS,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Request,
)
from volume.errors import NoSuchVersion, NoSuchVolume

MAX_EXTENTS = 1 << 14
WAIT_S = 30.0  # only a hang reaches it
_WRITING = (OP_WRITE, OP_UNMAP, OP_WRITE_ZEROES)
_PAST_END = {OP_WRITE: errno.ENOSPC, OP_WRITE_ZEROES: errno.ENOSPC}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the device saw it."""

    op: int
    offset: int
    length: int
    flags: int


class FakeChanges:
    """What `MemoryDevice.changes_since` finds: the numbers of the blocks written since `ref`."""

    def __init__(self, ref: str, blocks: set[int]) -> None:
        self.ref = ref
        self.blocks = blocks


class MemoryDevice:
    """See the module's text. `seen` and `batch_sizes` record what was submitted."""

    def __init__(
        self,
        name: str = "disk",
        size: int = 1 << 20,
        *,
        block_size: int = 4096,
        read_only: bool = False,
        deferred: bool = False,
    ) -> None:
        self.name = name
        self.size = size
        self.block_size = block_size
        self.read_only = read_only
        self.deferred = deferred
        self.uuid = self.volume_uuid = uuid.uuid5(uuid.NAMESPACE_URL, name).bytes
        self.retired = False
        """Set it to have every request end with ESHUTDOWN."""
        self.seq = 0
        self.clients: list[str] = []
        self.closes = 0
        """How often the last client went: a version is closed by that, and must not be twice."""
        self.snapshots: dict[str, MemoryDevice] = {}
        self.seen: list[Seen] = []
        self.batch_sizes: list[int] = []
        self._blocks: dict[int, bytearray] = {}
        self._changed: dict[str, set[int]] = {}  # since each snapshot
        self._failures: list[tuple[int, str | None]] = []
        self._waiting: list[tuple[Request, Done]] = []

    # What a front end calls.

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        self.batch_sizes.append(len(batch))
        for request in batch:
            self.seen.append(Seen(request.op, request.offset, request.length, request.flags))
            self._execute(request)
        if self.deferred:
            self._waiting += [(request, done) for request in batch]
        else:
            done(list(batch))

    def attach(self, client: str) -> None:
        self.clients.append(client)

    def detach(self, client: str) -> None:
        self.clients.remove(client)
        self.closes += not self.clients

    def changes_since(self, ref: str) -> Changes:
        if ref not in self._changed:
            raise NoSuchVersion(self.name, ref)
        return FakeChanges(ref, self._changed[ref])

    # What tests call.

    def snapshot(self, ref: str) -> "MemoryDevice":
        """Keep the content of now as version `ref`."""
        version = self.copy(f"{self.name}@{ref}", read_only=True)
        self.snapshots[ref] = version
        self._changed[ref] = set()
        return version

    def copy(self, name: str, *, read_only: bool) -> "MemoryDevice":
        copied = MemoryDevice(
            name,
            self.size,
            block_size=self.block_size,
            read_only=read_only,
            deferred=self.deferred,
        )
        copied._blocks = {number: bytearray(block) for number, block in self._blocks.items()}
        copied._changed = {ref: set(blocks) for ref, blocks in self._changed.items()}
        return copied

    @property
    def waiting(self) -> int:
        """Requests that were submitted and not finished."""
        return len(self._waiting)

    def finish(self, count: int | None = None, *, newest_first: bool = False) -> None:
        """Finish up to `count` of the waiting requests (all by default), oldest or newest first."""
        waiting = len(self._waiting)
        for _ in range(waiting if count is None else min(count, waiting)):
            request, done = self._waiting.pop(-1 if newest_first else 0)
            done([request])

    def fail_next(self, error: int, message: str | None = None) -> None:
        """The next request that is executed fails with errno `error`."""
        self._failures.append((error, message))

    def read(self, offset: int, length: int) -> bytes:
        data = bytearray()
        while length:
            number, at = divmod(offset, self.block_size)
            part = min(self.block_size - at, length)
            block = self._blocks.get(number)
            data += bytes(part) if block is None else block[at : at + part]
            offset += part
            length -= part
        return bytes(data)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.seq += 1
        done = 0
        while done < len(data):
            number, at = divmod(offset + done, self.block_size)
            part = min(self.block_size - at, len(data) - done)
            self._note_change((number,))
            block = self._blocks.setdefault(number, bytearray(self.block_size))
            block[at : at + part] = data[done : done + part]
            done += part

    # Inside.

    def _execute(self, request: Request) -> None:
        if self.retired:
            request.error = errno.ESHUTDOWN
        elif self._failures:
            request.error, request.message = self._failures.pop(0)
        elif request.offset + request.length > self.size:
            request.error = _PAST_END.get(request.op, errno.EINVAL)
        elif self.read_only and request.op in _WRITING:
            request.error = errno.EPERM
        elif request.flags & FLAG_IF_SEQ and request.seq != self.seq:
            request.error = errno.ECANCELED
        elif request.op == OP_READ:
            request.data = self.read(request.offset, request.length)
        elif request.op == OP_WRITE:
            assert isinstance(request.data, (bytes, memoryview))
            self.write(request.offset, request.data)
        elif request.op in (OP_UNMAP, OP_WRITE_ZEROES):
            self._zero(request.offset, request.length, keep=bool(request.flags & FLAG_NO_HOLE))
        elif request.op == OP_BLOCK_STATUS and request.data is None:
            request.data = self._extents(request.offset, request.length)
        elif request.op == OP_BLOCK_STATUS:
            assert isinstance(request.data, FakeChanges)
            runs = self._runs(request.data.blocks, request.offset, request.length)
            request.data = [(run, STATE_CHANGED if hit else 0) for run, hit in runs]

    def _zero(self, offset: int, length: int, *, keep: bool) -> None:
        self.seq += 1
        end = offset + length
        first, last = -(-offset // self.block_size), end // self.block_size  # whole blocks
        self._note_change(number for number in self._blocks if first <= number < last)
        for number in [number for number in self._blocks if first <= number < last]:
            if keep:
                self._blocks[number] = bytearray(self.block_size)
            else:
                del self._blocks[number]
        if keep:
            for number in range(first, last):
                self._blocks.setdefault(number, bytearray(self.block_size))
        if first > last:  # within one block
            self.write(offset, bytes(length))
        else:
            self.write(offset, bytes(first * self.block_size - offset))
            self.write(last * self.block_size, bytes(end - last * self.block_size))

    def _note_change(self, numbers: Iterable[int]) -> None:
        found = list(numbers)
        for changed in self._changed.values():
            changed.update(found)

    def _extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        runs = self._runs(self._blocks, offset, length)
        return [(run, 0 if hit else STATE_HOLE | STATE_ZERO) for run, hit in runs]

    def _runs(self, blocks: Iterable[int], offset: int, length: int) -> list[tuple[int, bool]]:
        """(length, whether in a block of `blocks`), from `offset` on; neighbours may agree."""
        found: list[tuple[int, bool]] = []
        at, end = offset, offset + length
        hits = sorted(
            number
            for number in blocks
            if offset // self.block_size <= number <= (end - 1) // self.block_size
        )
        for number in hits:
            start = max(number * self.block_size, offset)
            after = min((number + 1) * self.block_size, end)
            if start > at:
                found.append((start - at, False))
            found.append((after - start, True))
            at = after
        if at < end:
            found.append((end - at, False))
        return found[:MAX_EXTENTS]


class MirroredDevice(MemoryDevice):
    """A volume that other nodes have as well (`blockd.device.MayBeElsewhere`)."""

    mirrored = True

    def __init__(self, name: str = "disk", size: int = 1 << 20, *, block_size: int = 4096) -> None:
        super().__init__(name, size, block_size=block_size)
        self.opened = True
        self.leads = True

    @property
    def elsewhere(self) -> str | None:
        return None if self.leads else f"volume {self.name}: not served here"

    def move_away(self) -> None:
        """Another node takes it over."""
        self.opened = self.leads = False


@dataclass
class FakeExports:
    """Satisfies blockd.device.Exports and Versions; the first device is the default export too."""

    devices: list[MemoryDevice]
    asked: list[str] = field(default_factory=list)
    """Names that `open_version` was asked for."""
    opened: list[MemoryDevice] = field(default_factory=list)
    """Versions that `open_version` gave."""
    fail_with: Exception | None = None
    """Raised by every question about versions."""
    disk: threading.Event = field(default_factory=threading.Event)
    """Cleared, it keeps whoever asks for a version waiting."""

    def __post_init__(self) -> None:
        self.disk.set()

    def names(self) -> list[str]:
        return [device.name for device in self.devices]

    def get(self, name: str) -> BlockDevice | None:
        if not name and self.devices:
            return self.devices[0]
        return next((device for device in self.devices if device.name == name), None)

    def open_version(self, name: str) -> BlockDevice:
        self.asked.append(name)
        self._wait()
        volume, _, ref = name.partition("@")
        device = next((device for device in self.devices if device.name == volume), None)
        if device is None:
            raise NoSuchVolume(volume)
        if ref not in device.snapshots:
            raise NoSuchVersion(volume, ref)
        version = device.snapshots[ref].copy(name, read_only=True)
        self.opened.append(version)
        return version

    def version_names(self, volume: str | None, limit: int) -> list[str]:
        self._wait()
        names = [
            f"{device.name}@{ref}"
            for device in self.devices
            if volume in (None, device.name)
            for ref in reversed(device.snapshots)
        ]
        return names[:limit]

    def _wait(self) -> None:
        assert self.disk.wait(WAIT_S), "the test never let the disk answer"
        if self.fail_with is not None:
            raise self.fail_with

    @property
    def leaked(self) -> list[str]:
        """Versions that were opened and not closed exactly once."""
        return [version.name for version in self.opened if version.closes != 1]


@dataclass
class FakePolicies:
    """Satisfies blockd.nbd.access.Policies; names without an entry are open to everybody."""

    by_name: dict[str, ExportPolicy] = field(default_factory=dict)

    def policy(self, export_name: str) -> ExportPolicy:
        return self.by_name.get(export_name, ExportPolicy())


@dataclass
class FakeAccess:
    """Satisfies blockd.access.book.VolumeAccess: lists by the names of volumes."""

    lists: dict[str, AccessList] = field(default_factory=dict)

    def grant(self, device: BlockDevice, client: Client) -> Grant:
        access = self.lists.get(device.name.partition("@")[0])
        return Grant.WRITE if access is None else access.grant(client)

    def put(self, volume: str, *rules: Rule) -> None:
        """Give a volume a list of these rules."""
        self.lists[volume] = AccessList(rules)
