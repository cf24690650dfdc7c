"""Devices and exports in memory, for tests of the front ends.

`MemoryDevice` satisfies blockd.device.BlockDevice. It is sparse: a block takes memory once written,
so a device of 2^60 bytes is fine. With `deferred = True` requests are executed when submitted
but finished only by `finish()`, as on a device that waits for a disk.
"""

import errno
from collections.abc import Sequence
from dataclasses import dataclass, field

from blockd.device import STATE_HOLE, STATE_ZERO, BlockDevice, Done
from blockd.nbd.access import ExportPolicy
from native import (
    FLAG_NO_HOLE,
    OP_BLOCK_STATUS,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Request,
)

MAX_EXTENTS = 1 << 14
_WRITING = (OP_WRITE, OP_UNMAP, OP_WRITE_ZEROES)
_PAST_END = {OP_WRITE: errno.ENOSPC, OP_WRITE_ZEROES: errno.ENOSPC}


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the device saw it."""

    op: int
    offset: int
    length: int
    flags: int


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
        self.clients: list[str] = []
        self.seen: list[Seen] = []
        self.batch_sizes: list[int] = []
        self._blocks: dict[int, bytearray] = {}
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

    # What tests call.

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
        done = 0
        while done < len(data):
            number, at = divmod(offset + done, self.block_size)
            part = min(self.block_size - at, len(data) - done)
            block = self._blocks.setdefault(number, bytearray(self.block_size))
            block[at : at + part] = data[done : done + part]
            done += part

    # Inside.

    def _execute(self, request: Request) -> None:
        if self._failures:
            request.error, request.message = self._failures.pop(0)
        elif request.offset + request.length > self.size:
            request.error = _PAST_END.get(request.op, errno.EINVAL)
        elif self.read_only and request.op in _WRITING:
            request.error = errno.EPERM
        elif request.op == OP_READ:
            request.data = self.read(request.offset, request.length)
        elif request.op == OP_WRITE:
            assert isinstance(request.data, (bytes, memoryview))
            self.write(request.offset, request.data)
        elif request.op in (OP_UNMAP, OP_WRITE_ZEROES):
            self._zero(request.offset, request.length, keep=bool(request.flags & FLAG_NO_HOLE))
        elif request.op == OP_BLOCK_STATUS:
            request.data = self._extents(request.offset, request.length)

    def _zero(self, offset: int, length: int, *, keep: bool) -> None:
        end = offset + length
        first, last = -(-offset // self.block_size), end // self.block_size  # whole blocks
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

    def _extents(self, offset: int, length: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        at, end = offset, offset + length
        allocated = sorted(
            number
            for number in self._blocks
            if offset // self.block_size <= number <= (end - 1) // self.block_size
        )
        for number in allocated:
            start = max(number * self.block_size, offset)
            after = min((number + 1) * self.block_size, end)
            if start > at:
                found.append((start - at, STATE_HOLE | STATE_ZERO))
            found.append((after - start, 0))
            at = after
        if at < end:
            found.append((end - at, STATE_HOLE | STATE_ZERO))
        return found[:MAX_EXTENTS]


@dataclass
class FakeExports:
    """Satisfies blockd.device.Exports; the first device is the default export too."""

    devices: list[MemoryDevice]

    def names(self) -> list[str]:
        return [device.name for device in self.devices]

    def get(self, name: str) -> BlockDevice | None:
        if not name and self.devices:
            return self.devices[0]
        return next((device for device in self.devices if device.name == name), None)


@dataclass
class FakePolicies:
    """Satisfies blockd.nbd.access.Policies; names without an entry are open to everybody."""

    by_name: dict[str, ExportPolicy] = field(default_factory=dict)

    def policy(self, export_name: str) -> ExportPolicy:
        return self.by_name.get(export_name, ExportPolicy())
