"""A device of another node as a `Disk` for shards: what writes, reads, verifies and rebuilds shards
here does it there, unchanged.

    open(.new, create)   a file to write to        PUT_SHARD for each part
    rename(.new, name)   it is finished            FINISH_SHARD: verified, synced, named there
    open(name)           a shard                   GET_SHARD
    unlink(.new)         it is given up            DROP_SHARD
    unlink(name)         nothing: the other node removes what no row names, by itself

`File.sync` and `Disk.sync_dir` do nothing: all is durable when `rename` has returned.

The first GET of a shard brings header and page table with it, so that what follows is one request
for each part that is read. A node that is not connected is an OSError at once, not after a wait.
"""

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from typing_extensions import Buffer

from transport.peer import messages as m
from transport.peer.wire import Message
from transport.shardfile import ShardName
from volume.disk import File

FIRST_BYTES: Final = 64 << 10
"""Of the first GET: header and page table of a shard of 60 MiB."""
NEW: Final = ".new"
NO_SHARD: Final = ShardName(bytes(32), 1, 1, 0)
"""That no pack has."""
AGAIN_S: Final = 5.0
"""Before a node is asked again for a device that it does not have."""


class AskShards(Protocol):
    """Asks the node of a device, and waits. Any thread but the sessions'."""

    def __call__(self, node: bytes, message: m.Request, timeout_s: float) -> Message:
        """The answer. OSError: there is none, or it is an ERROR."""


class NoAnswer(OSError):
    """The other node cannot be asked, or does not answer in time."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EHOSTUNREACH, text)


def refusal(error: m.Error) -> OSError:
    """What an ERROR of the other node is here."""
    code = errno.ENOENT if error.code == m.Code.UNKNOWN else errno.EREMOTEIO
    return OSError(code, error.text or os.strerror(code))


class RemoteDevice:
    """Satisfies `volume.disk.Disk`, as far as shards need it. Any thread."""

    def __init__(self, ask: AskShards, node: bytes, device: bytes, timeout_s: float) -> None:
        self._ask = ask
        self._node = node
        self._device = device
        self._timeout_s = timeout_s

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> File:
        if path.endswith(NEW):
            return _NewShard(self, _named(path.removesuffix(NEW)))
        assert read_only, path
        return _Shard(self, _named(path), uncached=False)

    def open_uncached(self, path: str) -> File:
        return _Shard(self, _named(path), uncached=True)

    def rename(self, old: str, new: str) -> None:
        assert old == new + NEW
        self.done(m.FinishShard(self._device, *_named(new)))

    def unlink(self, path: str) -> None:
        if path.endswith(NEW):
            self.done(m.DropShard(self._device, *_named(path.removesuffix(NEW))))

    def sync_dir(self, path: str) -> None:
        pass

    def mkdir(self, path: str) -> None:
        pass

    def list(self, path: str) -> list[str]:
        raise OSError(errno.ENOTSUP, "what another node has is not listed from here")

    def free_bytes(self) -> int:
        raise OSError(errno.ENOTSUP, "how much room another node has is not known here")

    def total_bytes(self) -> int:
        raise OSError(errno.ENOTSUP, "how large another node's device is is not known here")

    # -- for its files

    def done(self, message: m.Request) -> int:
        answer = self._ask(self._node, message, self._timeout_s)
        assert isinstance(answer, m.ShardAck)
        return answer.size

    def put(self, name: ShardName, data: bytes, at: int) -> None:
        self.done(m.PutShard(self._device, *name, at, (data,)))

    def get(self, name: ShardName, length: int, at: int, *, uncached: bool) -> tuple[int, bytes]:
        """Size of the file, and what it has there. OSError: also for an answer that is too long."""
        message = m.GetShard(self._device, *name, at, length, int(uncached))
        answer = self._ask(self._node, message, self._timeout_s)
        assert isinstance(answer, m.ShardPart)
        data = b"".join(bytes(part) for part in answer.payload)
        if len(data) > length:
            raise OSError(errno.EREMOTEIO, f"{len(data)} bytes of {name.path}, asked for {length}")
        return answer.size, data


def _named(path: str) -> ShardName:
    name = ShardName.parse(path.rpartition("/")[2])
    assert name is not None, path
    return name


class _Remote:
    """What the two kinds of files do not do."""

    def pread(self, length: int, offset: int) -> bytes:
        raise OSError(errno.EBADF, "a shard that is being written is not read")

    def pwrite(self, data: Buffer, offset: int) -> int:
        raise OSError(errno.EBADF, "a shard that is finished is not written to")

    def truncate(self, size: int) -> None:
        raise OSError(errno.ENOTSUP, "shards are not cut")

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass

    def native(self) -> object:
        return self


class _NewShard(_Remote):
    def __init__(self, device: RemoteDevice, name: ShardName) -> None:
        self._device = device
        self._name = name

    def pwrite(self, data: Buffer, offset: int) -> int:
        view = memoryview(data).cast("B")
        for at in range(0, len(view), m.MAX_PART_BYTES):
            part = bytes(view[at : at + m.MAX_PART_BYTES])
            self._device.put(self._name, part, offset + at)
        return len(view)

    def size(self) -> int:
        raise OSError(errno.EBADF, "a shard that is being written has no size yet")


class _Shard(_Remote):
    def __init__(self, device: RemoteDevice, name: ShardName, *, uncached: bool) -> None:
        self._device = device
        self._name = name
        self._uncached = uncached
        self._size, self._first = device.get(name, FIRST_BYTES, 0, uncached=uncached)

    def size(self) -> int:
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        if offset + length <= len(self._first):
            return self._first[offset : offset + length]
        parts = []
        while length > 0:
            wanted = min(length, m.MAX_PART_BYTES)
            _, data = self._device.get(self._name, wanted, offset, uncached=self._uncached)
            parts.append(data)
            if len(data) < wanted:
                break
            offset += wanted
            length -= wanted
        return b"".join(parts)


class DevicesThere:
    """Whether nodes have the devices that the map says are theirs. A node whose disk was replaced
    by an empty one has another device, and tells of the shards of that one; what was on the old one
    it has not. So it is asked for a shard that cannot be, of the device that is meant: UNKNOWN says
    that the device is there. Any thread that may wait."""

    def __init__(
        self, ask: AskShards, timeout_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._ask = ask
        self._timeout_s = timeout_s
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._sessions: dict[bytes, int] = {}
        """How many of a node have ended."""
        self._there: set[tuple[bytes, bytes]] = set()
        self._not_there: dict[tuple[bytes, bytes], float] = {}
        """Until when that is believed: it may have been an error of the disk."""

    def has(self, node: bytes, device: bytes) -> bool:
        key = (node, device)
        with self._lock:
            session = self._sessions.get(node, 0)
            if key in self._there:
                return True
            if self._monotonic() < self._not_there.get(key, float("-inf")):
                return False
        try:
            self._ask(node, m.GetShard(device, *NO_SHARD, 0, 1, 0), self._timeout_s)
            found = True
        except FileNotFoundError:
            found = True
        except NoAnswer:
            return False
        except OSError:
            found = False
        with self._lock:
            if session == self._sessions.get(node, 0):
                if found:
                    self._there.add(key)
                else:
                    self._not_there[key] = self._monotonic() + AGAIN_S
        return found

    def forget(self, node: bytes) -> None:
        """Its session has ended: it may come back with another device."""
        with self._lock:
            self._sessions[node] = self._sessions.get(node, 0) + 1
            self._there = {each for each in self._there if each[0] != node}
            self._not_there = {key: at for key, at in self._not_there.items() if key[0] != node}
