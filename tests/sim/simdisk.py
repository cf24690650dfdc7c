"""A disk in memory that can lose power, fill up, lie and break, and that remembers every operation.

`SimDisk` implements volume.disk.Disk and `SimFile` volume.disk.File. All reads see all writes, as
through a page cache; what a power cut may leave of them is decided afterwards by `tests.sim.crash`
from the `trace`. One lock makes every call atomic, so threads of the C core may call at any time;
a scripted stall waits outside of it.

After a power cut (`crash_at`, `power_off`) every call on the disk and on its files raises PowerCut.
It is a BaseException: no handler in the code under test can take it for a disk error and carry on.

What it ignores: permissions, links, folder renames, and read errors in crash images.
"""

import errno
import os
import posixpath
import threading

from typing_extensions import Buffer

from tests.sim import trace
from tests.sim.faults import Action, Fail, FaultScript, Lie, Misdirect, ShortWrite, Stall
from tests.sim.image import PAGE_SIZE, Contents, Image
from volume.disk import SECTOR_SIZE
from volume.diskerror import SyncFailed

DEFAULT_CAPACITY = 1 << 30  # bytes; larger than any simulated store should grow


class PowerCut(BaseException):
    """The machine is off. Build a new SimDisk from a crash image to go on."""


class Inode:
    """A file, with or without a name. `path` is its last name, for faults and messages."""

    __slots__ = ("bad_sectors", "contents", "linked", "number", "open_count", "path")

    def __init__(self, number: int, path: str, contents: Contents) -> None:
        self.number = number
        self.path = path
        self.contents = contents
        self.linked = True
        self.open_count = 0
        self.bad_sectors: set[int] = set()


def os_error(code: int, path: str) -> OSError:
    return OSError(code, os.strerror(code), path)


def normal_path(path: str) -> str:
    """ "" for the root, else "a/b"; EINVAL for what leaves the data directory."""
    clean = posixpath.normpath(path)
    if clean.startswith(("/", "..")):
        raise os_error(errno.EINVAL, path)
    return "" if clean == "." else clean


class SimFile:
    """An open file of a SimDisk. Positional, thread-safe, usable by the C core as it is."""

    def __init__(self, disk: "SimDisk", inode: Inode, read_only: bool) -> None:
        self._disk = disk
        self._inode = inode
        self._read_only = read_only
        self._closed = False

    def pread(self, length: int, offset: int) -> bytes:
        return self._disk.pread(self._usable(), length, offset)

    def pwrite(self, data: Buffer, offset: int) -> int:
        return self._disk.pwrite(self._usable(writing=True), bytes(data), offset)

    def sync(self) -> None:
        self._disk.sync(self._usable())

    def size(self) -> int:
        return self._disk.size(self._usable())

    def truncate(self, size: int) -> None:
        self._disk.truncate(self._usable(writing=True), size)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._disk.release(self._inode)

    def native(self) -> object:
        return self

    def _usable(self, writing: bool = False) -> Inode:
        if self._closed or (writing and self._read_only):
            raise os_error(errno.EBADF, self._inode.path)
        return self._inode


class _Powered:
    """The lock, and the certainty that the power is still on (a stalled call may lose it)."""

    __slots__ = ("_disk",)

    def __init__(self, disk: "SimDisk") -> None:
        self._disk = disk

    def __enter__(self) -> None:
        self._disk._lock.acquire()
        try:
            self._disk._check_power()
        except PowerCut:
            self._disk._lock.release()
            raise

    def __exit__(self, *exc: object) -> None:
        self._disk._lock.release()


class SimDisk:
    """One data directory on a disk of `capacity` bytes, starting as `image`.

    `record=False` keeps no trace (for long runs without crash enumeration).
    """

    def __init__(
        self, image: Image | None = None, *, capacity: int = DEFAULT_CAPACITY, record: bool = True
    ) -> None:
        image = image or Image()
        self.capacity = capacity
        self.faults = FaultScript()
        self._lock = threading.RLock()
        self._on = _Powered(self)
        self._record = record
        self._dirs = {"", *image.dirs}
        self._names: dict[str, Inode] = {}
        self._allocated = 0  # blocks
        self._next_inode = 1
        self._crash_at: int | None = None
        self._off = False
        self.op_count = 0
        """State-changing operations so far; what `crash_at` counts."""
        for path, contents in sorted(image.files.items()):
            self._add(path, contents.copy())
        self.trace = self._new_trace(image)

    # -- volume.disk.Disk

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> SimFile:
        path = normal_path(path)
        self._enter("open", path)
        with self._on:
            if path in self._dirs:
                raise os_error(errno.EISDIR, path)
            inode = self._names.get(path)
            if create:
                if inode is not None:
                    raise os_error(errno.EEXIST, path)
                self._check_parent(path)
                inode = self._add(path, Contents())
                self._done(trace.Create(path, inode.number))
            elif inode is None:
                raise os_error(errno.ENOENT, path)
            inode.open_count += 1
            return SimFile(self, inode, read_only)

    def open_uncached(self, path: str) -> SimFile:
        return self.open(path, read_only=True)

    def mkdir(self, path: str) -> None:
        path = normal_path(path)
        self._enter("mkdir", path)
        with self._on:
            if path in self._names:
                raise os_error(errno.EEXIST, path)
            if path not in self._dirs:
                self._check_parent(path)
                self._dirs.add(path)
                self._done(trace.Mkdir(path))

    def list(self, path: str) -> list[str]:
        path = normal_path(path)
        self._enter("list", path)
        with self._on:
            self._check_dir(path)
            return sorted(
                posixpath.basename(name) for name in self._names if posixpath.dirname(name) == path
            )

    def rename(self, old: str, new: str) -> None:
        old, new = normal_path(old), normal_path(new)
        self._enter("rename", old)
        with self._on:
            inode = self._named(old)
            if new in self._dirs:
                raise os_error(errno.EISDIR, new)
            self._check_parent(new)
            if old == new:
                return
            replaced = self._names.pop(new, None)
            del self._names[old]
            self._names[new] = inode
            inode.path = new
            if replaced is not None:
                self._unlinked(replaced)
            self._done(trace.Rename(old, new, inode.number))

    def unlink(self, path: str) -> None:
        path = normal_path(path)
        self._enter("unlink", path)
        with self._on:
            inode = self._named(path)
            del self._names[path]
            self._unlinked(inode)
            self._done(trace.Unlink(path, inode.number))

    def sync_dir(self, path: str) -> None:
        path = normal_path(path)
        upto = len(self.trace.ops)
        try:
            action = self._enter("sync_dir", path)
        except OSError as error:
            self._done(trace.SyncDir(path, upto, "failed"))
            raise SyncFailed(error.errno, error.strerror, path) from error
        with self._on:
            self._check_dir(path)
            self._done(trace.SyncDir(path, upto, "lied" if isinstance(action, Lie) else "ok"))

    def free_bytes(self) -> int:
        with self._on:
            return max(0, self.capacity - self._allocated * PAGE_SIZE)

    def total_bytes(self) -> int:
        return self.capacity

    # -- what SimFile calls

    def pread(self, inode: Inode, length: int, offset: int) -> bytes:
        _check_offset(inode, offset)
        self._enter("pread", inode.path, offset, length)
        with self._on:
            data = inode.contents.read(length, offset)
            if inode.bad_sectors and data:
                last = (offset + len(data) - 1) // SECTOR_SIZE
                touched = range(offset // SECTOR_SIZE, last + 1)
                if not inode.bad_sectors.isdisjoint(touched):
                    raise os_error(errno.EIO, inode.path)
            return data

    def pwrite(self, inode: Inode, data: bytes, offset: int) -> int:
        action = self._enter("pwrite", inode.path, offset, len(data))
        with self._on:
            if isinstance(action, Lie):
                return len(data)
            if isinstance(action, ShortWrite):
                self._write(inode, data[: action.length], offset)
                raise os_error(action.errno, inode.path)
            if isinstance(action, Misdirect):
                offset += action.shift
            self._write(inode, data, offset)
            return len(data)

    def sync(self, inode: Inode) -> None:
        upto = len(self.trace.ops)
        try:
            action = self._enter("sync", inode.path)
        except OSError as error:
            self._done(trace.Sync(inode.number, upto, "failed"))
            raise SyncFailed(error.errno, error.strerror, inode.path) from error
        outcome: trace.SyncOutcome = "lied" if isinstance(action, Lie) else "ok"
        self._done(trace.Sync(inode.number, upto, outcome))

    def size(self, inode: Inode) -> int:
        with self._on:
            return inode.contents.size

    def truncate(self, inode: Inode, size: int) -> None:
        self._enter("truncate", inode.path)
        with self._on:
            before = inode.contents.block_count
            inode.contents.resize(size)
            self._allocated += inode.contents.block_count - before
            self._done(trace.Truncate(inode.number, size))

    def release(self, inode: Inode) -> None:
        with self._lock:  # closing works without power, so that clean-up code can run
            inode.open_count -= 1
            self._free_if_unused(inode)

    # -- what the test does to the disk

    def mark(self, value: object) -> None:
        """Note in the trace what is known at this point (an ack, a promise, a commit elsewhere)."""
        with self._on:
            if self._record:
                self.trace.ops.append(trace.Mark(value))

    def crash_at(self, count: int) -> None:
        """Cut the power right after the `count`-th state-changing operation from now (from 1)."""
        if count < 1:
            raise ValueError(f"crash_at({count}): operations count from 1")
        with self._lock:
            self._crash_at = self.op_count + count

    def crash_never(self) -> None:
        """Take `crash_at` back."""
        with self._lock:
            self._crash_at = None

    def power_off(self) -> None:
        """Cut the power now. The trace stays readable."""
        with self._lock:
            self._off = True

    @property
    def is_off(self) -> bool:
        """The power has been cut. C code that was writing turned that into an I/O error."""
        return self._off

    def flip_bit(self, path: str, offset: int, bit: int = 0) -> None:
        """Corrupt one bit of a file on the medium, behind the back of every cache."""
        with self._lock:
            inode = self._named(normal_path(path))
            if offset >= inode.contents.size:
                raise ValueError(f"{path}: no byte {offset}, its size is {inode.contents.size}")
            byte = inode.contents.read(1, offset)[0]
            before = inode.contents.block_count
            inode.contents.write(bytes([byte ^ (1 << bit)]), offset)
            self._allocated += inode.contents.block_count - before
            self._done(trace.Corrupt(inode.number, offset, 1 << bit))

    def break_sector(self, path: str, offset: int) -> None:
        """Reads of the sector at `offset` fail with EIO until it is written whole."""
        with self._lock:
            self._named(normal_path(path)).bad_sectors.add(offset // SECTOR_SIZE)

    def image(self) -> Image:
        """The disk as a killed process leaves it: everything written is there."""
        with self._lock:
            files = {path: inode.contents.copy() for path, inode in self._names.items()}
            return Image(frozenset(self._dirs - {""}), files, len(self.trace.ops), "killed")

    def restart_trace(self) -> None:
        """Take everything so far as durable and begin an empty trace (to leave set-up out)."""
        with self._lock:
            self.trace = self._new_trace(self.image())

    # -- inside; the lock is held

    def _enter(self, op: str, path: str, offset: int = 0, length: int = 0) -> Action | None:
        """Begin a call: count it against the faults, fail or stall it. Takes the lock itself."""
        with self._lock:
            self._check_power()
            if not self.faults:
                return None
            action = self.faults.next_action(op, path, offset, length)
        if isinstance(action, Fail):
            raise action.error(path)
        if isinstance(action, Stall):
            action.hook()
        return action

    def _done(self, op: trace.Op) -> None:
        """The operation has happened: record it, then lose power if that was planned."""
        with self._lock:
            self._check_power()
            self.op_count += 1
            if self._record:
                self.trace.ops.append(op)
            if self.op_count == self._crash_at:
                self._off = True
                raise PowerCut(f"planned power cut after operation {self.op_count}: {type(op)}")

    def _check_power(self) -> None:
        if self._off:
            raise PowerCut("the simulated machine has no power; start a new SimDisk on an image")

    def _write(self, inode: Inode, data: bytes, offset: int) -> None:
        """Write what fits, as POSIX does; ENOSPC when that is not all."""
        _check_offset(inode, offset)
        missing = inode.contents.missing_blocks(offset, len(data))
        spare = max(0, self.capacity // PAGE_SIZE - self._allocated)
        full = len(missing) > spare
        if full:
            data = data[: max(0, missing[spare] * PAGE_SIZE - offset)]
        if data:
            before = inode.contents.block_count
            inode.contents.write(data, offset)
            self._allocated += inode.contents.block_count - before
            inode.bad_sectors -= _whole_sectors(offset, len(data), inode.bad_sectors)
            self._done(trace.Write(inode.number, offset, data))
        if full:
            raise os_error(errno.ENOSPC, inode.path)

    def _add(self, path: str, contents: Contents) -> Inode:
        inode = Inode(self._next_inode, path, contents)
        self._next_inode += 1
        self._names[path] = inode
        self._allocated += contents.block_count
        return inode

    def _unlinked(self, inode: Inode) -> None:
        inode.linked = False
        self._free_if_unused(inode)

    def _free_if_unused(self, inode: Inode) -> None:
        """Blocks of a file without a name are freed when nobody has it open any more."""
        if not inode.linked and inode.open_count == 0:
            self._allocated -= inode.contents.block_count
            inode.contents = Contents()

    def _named(self, path: str) -> Inode:
        self._check_power()
        if path in self._dirs:
            raise os_error(errno.EISDIR, path)
        if path not in self._names:
            raise os_error(errno.ENOENT, path)
        return self._names[path]

    def _check_dir(self, path: str) -> None:
        if path not in self._dirs:
            raise os_error(errno.ENOTDIR if path in self._names else errno.ENOENT, path)

    def _check_parent(self, path: str) -> None:
        self._check_dir(posixpath.dirname(path))

    def _new_trace(self, base: Image) -> trace.Trace:
        return trace.Trace(base, {path: inode.number for path, inode in self._names.items()})


def _check_offset(inode: Inode, offset: int) -> None:
    if offset < 0:
        raise os_error(errno.EINVAL, inode.path)


def _whole_sectors(offset: int, length: int, among: set[int]) -> set[int]:
    """Those of `among` that the range covers from end to end."""
    first, end = -(-offset // SECTOR_SIZE), (offset + length) // SECTOR_SIZE
    return {sector for sector in among if first <= sector < end}
