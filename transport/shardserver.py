"""The shards on a device of this node, for other nodes: what they ask, checked and done.

Whoever is let in is a node of the cluster, and may be wrong all the same: names, offsets and
lengths are looked at, and a shard gets its name only after all of it was read here and is what its
own header says; one that is there already is not replaced by one of another stripe. So the worst
that a peer can leave is a `.new` file, of which there are MAX_UNFINISHED at most, and shards that
no row names; the node's own round removes both (`transport.striping`).

A device that failed to write or to sync is not written to any more, and read as long as that goes.
"""

import contextlib
import errno
import logging
import threading
from typing import Final

from native import ERASURE_MAX_SHARDS
from transport.peer import messages as m
from transport.peer.wire import Message
from transport.shardfile import (
    FOLDER,
    HEADER_LENGTH,
    MAX_SHARD_BYTES,
    CorruptShard,
    ShardFile,
    ShardName,
    prepare,
)
from volume.disk import Disk
from volume.diskerror import seals
from volume.errors import CorruptData, UnknownFormat
from volume.layout import PAGE_SIZE

log = logging.getLogger(__name__)

MAX_UNFINISHED: Final = 256
"""Shards that are being written to one device at once."""
MAX_FILE_BYTES: Final = (
    HEADER_LENGTH + MAX_SHARD_BYTES // PAGE_SIZE * 4 + PAGE_SIZE + MAX_SHARD_BYTES
)
NEW: Final = ".new"
DAMAGED: Final = ".damaged"
"""An empty file beside a shard that was found damaged, until it is made again: a start does not
make it sound."""

ShardRequest = m.PutShard | m.FinishShard | m.DropShard | m.GetShard


class ShardServer:
    """One device. `answer` on any thread that may wait."""

    def __init__(self, disk: Disk, device: bytes, reserve_bytes: int) -> None:
        """`reserve_bytes`: what shards leave free. OSError."""
        self.disk = disk
        self.device = device
        self.failed: str | None = None
        """Why it is not written to any more."""
        self._reserve_bytes = reserve_bytes
        self._lock = threading.Lock()
        """Of what is unfinished: it is begun, finished and dropped one at a time."""
        prepare(disk)
        self._begun = set(self.unfinished())
        """Paths of `.new` files that other nodes have begun, or that were here at the start."""

    def names(self) -> list[ShardName]:
        """All shards that are there. OSError."""
        found = map(ShardName.parse, self.disk.list(FOLDER))
        return [name for name in found if name is not None]

    def unfinished(self) -> list[str]:
        """Paths of `.new` files. OSError."""
        return [f"{FOLDER}/{each}" for each in self.disk.list(FOLDER) if each.endswith(NEW)]

    def marked(self) -> set[ShardName]:
        """Shards that were found damaged, and not made again since. OSError."""
        names = (
            each.removesuffix(DAMAGED) for each in self.disk.list(FOLDER) if each.endswith(DAMAGED)
        )
        return {name for name in map(ShardName.parse, names) if name is not None}

    def mark(self, name: ShardName) -> None:
        """It was found damaged: durable on return. OSError."""
        with contextlib.closing(self.disk.open(name.path + DAMAGED, create=True)) as file:
            file.sync()
        self.disk.sync_dir(FOLDER)

    def unmark(self, name: ShardName) -> None:
        """OSError."""
        self.remove(name.path + DAMAGED)

    def answer(self, request: ShardRequest) -> Message:
        """What is asked, done, or an ERROR."""
        if request.device != self.device:
            text = f"device {request.device.hex()} is not here; {self.device.hex()} is"
            return m.Error(m.Code.FAILED, 0, text)  # of its shards nobody can tell
        width = request.data + request.parity
        if not request.number < width <= ERASURE_MAX_SHARDS:
            text = f"shard {request.number} of {request.data}+{request.parity} cannot be"
            return m.Error(m.Code.FAILED, 0, text)
        name = ShardName(request.pack, request.data, request.parity, request.number)
        try:
            if isinstance(request, m.GetShard):
                return self._get(name, request)
            if self.failed is not None and not isinstance(request, m.DropShard):
                return m.Error(m.Code.SEALED, 0, f"device {self.device.hex()}: {self.failed}")
            with self._lock:
                return self._change(name, request)
        except FileNotFoundError:
            return m.Error(m.Code.UNKNOWN, 0, f"{name.path}: is not on this device")
        except OSError as error:
            if seals(error) and not isinstance(request, m.GetShard):
                self.failed = f"{name.path}: {error}"
                log.error("device takes no more shards error=%s", self.failed)
            return m.Error(m.Code.FAILED, 0, f"{name.path}: {error}")
        except (CorruptData, UnknownFormat) as error:
            return m.Error(m.Code.FAILED, 0, str(error))

    def check_room(self, length: int) -> None:
        """OSError (ENOSPC) when `length` bytes more would not leave the reserve free."""
        if self.disk.free_bytes() < length + self._reserve_bytes:
            raise OSError(errno.ENOSPC, f"less than {self._reserve_bytes} bytes would be left")

    def remove(self, path: str) -> None:
        """Remove a file below `shards/`, durably; nothing to do when it is not there. OSError."""
        with self._lock:
            self._unlink(path)
            self._begun.discard(path)
            self.disk.sync_dir(FOLDER)

    # -- inner

    def _change(self, name: ShardName, request: m.Request) -> m.ShardAck:
        path = name.path + NEW
        match request:
            case m.PutShard():
                return m.ShardAck(self._put(path, request))
            case m.FinishShard():
                return m.ShardAck(self._finish(name, path))
            case _:
                self._unlink(path)
                self._begun.discard(path)
                return m.ShardAck(0)

    def _put(self, path: str, request: m.PutShard) -> int:
        (payload,) = request.payload
        data = memoryview(payload).cast("B")
        if request.at + len(data) > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"{request.at + len(data)} bytes are no shard")
        self.check_room(len(data))
        try:
            file = self.disk.open(path)
        except FileNotFoundError:
            if len(self._begun) >= MAX_UNFINISHED:
                text = f"{MAX_UNFINISHED} shards are being written to it already"
                raise OSError(errno.EBUSY, text) from None
            file = self.disk.open(path, create=True)
            self._begun.add(path)
        with contextlib.closing(file):
            file.pwrite(data, request.at)
            return file.size()

    def _finish(self, name: ShardName, path: str) -> int:
        try:
            file = self.disk.open(path)
        except FileNotFoundError:
            return self._whole(name, name.path)  # asked again: it has its name
        with contextlib.closing(file):
            size = self._whole(name, path)
            file.sync()
        self.disk.rename(path, name.path)
        self._begun.discard(path)
        self.disk.sync_dir(FOLDER)
        return size

    def _whole(self, name: ShardName, path: str) -> int:
        """Its size. A shard of another stripe of the pack is not to be put in the place of one."""
        with contextlib.closing(ShardFile(self.disk, name, path=path)) as shard:
            shard.verify()
            try:
                there = ShardFile(self.disk, name)
            except (CorruptData, UnknownFormat, OSError):
                return shard.size
            there.close()
            if there.stripe.digest != shard.stripe.digest:
                raise CorruptShard(f"{name.path}: is here, of another stripe of the same pack")
            return shard.size

    def _get(self, name: ShardName, request: m.GetShard) -> m.ShardPart:
        if request.uncached:
            file = self.disk.open_uncached(name.path)
        else:
            file = self.disk.open(name.path, read_only=True)
        with contextlib.closing(file):
            data = file.pread(request.length, request.at)
            return m.ShardPart(file.size(), (data,) if data else ())

    def _unlink(self, path: str) -> None:
        try:
            self.disk.unlink(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
