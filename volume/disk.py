"""Disk, clock and randomness behind small interfaces, so that a whole store runs on simulated ones.

`Disk` is one data directory as a flat name space of relative paths ("journal/0000000a.seg").
Durability follows POSIX and nothing more: file *contents* are durable after `File.sync()`; that a
file *exists* under its name is durable after `Disk.sync_dir()` of its folder (and of that folder's
parent when it is new). Between those calls a crash may keep any subset of unsynced 512-byte
sectors, and any subset of unsynced creations, renames and removals.

The C core does its own I/O on open files: it takes `File.native()`, which is either a file
descriptor (real disk) or the File object itself, whose `pread`/`pwrite`/`sync` it then calls.
LMDB does its own I/O as well; see `volume.meta` and `volume.index` for how that is simulated.
"""

import errno
import fcntl
import mmap
import os
import time
import uuid
from pathlib import Path
from typing import Protocol

from typing_extensions import Buffer

from volume.diskerror import SyncFailed
from volume.sites import rare

DIRECT_ALIGNMENT = 4096  # of reads past the page cache; no disk of today wants more
SECTOR_SIZE = 512  # bytes that a disk writes whole or not at all


class File(Protocol):
    """An open file. Every method may raise OSError."""

    def pread(self, length: int, offset: int) -> bytes:
        """Up to `length` bytes at `offset`; shorter only at the end of the file."""

    def pwrite(self, data: Buffer, offset: int) -> int:
        """Write all of `data` at `offset` or raise; returns its length. Not durable."""

    def sync(self) -> None:
        """Make the contents durable (fdatasync). SyncFailed: never call it again, seal."""

    def size(self) -> int: ...
    def truncate(self, size: int) -> None: ...
    def close(self) -> None: ...

    def native(self) -> object:
        """What the C core does I/O on: a file descriptor, or this object."""


class Disk(Protocol):
    """One data directory. Paths are relative, with '/'; every method may raise OSError."""

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> File:
        """Open a file for reading and writing; `create` demands that it is new (EEXIST)."""

    def open_uncached(self, path: str) -> File:
        """Open a file for reading, past the page cache: what is read is what the disk has, and
        pushes nothing out that others want to stay."""

    def mkdir(self, path: str) -> None:
        """Make a folder if it is not there."""

    def list(self, path: str) -> list[str]:
        """Sorted names of the files in folder `path`."""

    def rename(self, old: str, new: str) -> None: ...
    def unlink(self, path: str) -> None: ...
    def sync_dir(self, path: str) -> None:
        """Make durable which files folder `path` has. SyncFailed: seal."""

    def free_bytes(self) -> int:
        """Bytes that can still be allocated on the file system that holds the directory."""

    def total_bytes(self) -> int:
        """Size of that file system in bytes."""


class Clock(Protocol):
    """Time and identity. Everything that is not a function of inputs comes through here."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970."""

    def monotonic(self) -> float:
        """Seconds that never go back."""

    def boottime_ns(self) -> int:
        """Nanoseconds that never go back, and go on while the machine sleeps: for leases."""

    def new_uuid(self) -> bytes:
        """16 random bytes."""


class PosixFile:
    """A file descriptor; owned, closed by `close`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pread(self, length: int, offset: int) -> bytes:
        parts = []
        while length:
            some = length // 2 if length > 1 and rare("disk.short-read") else length
            part = os.pread(self._fd, some, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, data: Buffer, offset: int) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            part = view[done:]
            if len(part) > 1 and rare("disk.short-write"):
                part = part[: len(part) // 2]
            done += os.pwrite(self._fd, part, offset + done)
        return done

    def sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise SyncFailed(error.errno, error.strerror) from error

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def close(self) -> None:
        os.close(self._fd)

    def native(self) -> object:
        return self._fd


class UncachedFile(PosixFile):
    """Reads with O_DIRECT. File systems that refuse it are read as usual, and the kernel is told
    that the pages are not wanted any more. For one thread."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self._direct = _set_direct(fd, True)
        self._buffer = mmap.mmap(-1, DIRECT_ALIGNMENT)

    def pread(self, length: int, offset: int) -> bytes:
        start = offset // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT
        span = -(-(offset + length) // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT - start
        if self._direct:
            try:
                return self._pread_direct(start, span)[offset - start :][:length]
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct = _set_direct(self._fd, False)
        data = super().pread(length, offset)
        os.posix_fadvise(self._fd, start, span, os.POSIX_FADV_DONTNEED)
        return data

    def _pread_direct(self, start: int, span: int) -> bytes:
        """Both are aligned. Shorter only at the end of the file."""
        if len(self._buffer) < span:
            self._buffer = mmap.mmap(-1, span)  # anonymous memory begins at a page
        done = 0
        with memoryview(self._buffer) as view:
            while done < span:
                with view[done:span] as part:
                    count = os.preadv(self._fd, [part], start + done)
                done += count
                if count == 0 or done % DIRECT_ALIGNMENT:
                    break
        return self._buffer[:done]


def _set_direct(fd: int, wanted: bool) -> bool:
    """Turn O_DIRECT on or off; whether it is on."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return wanted


class PosixDisk:
    """The real thing, rooted at a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> PosixFile:
        flags = os.O_CLOEXEC | (os.O_RDONLY if read_only else os.O_RDWR)
        if create:
            flags |= os.O_CREAT | os.O_EXCL
        return PosixFile(os.open(self.root / path, flags, 0o600))

    def open_uncached(self, path: str) -> PosixFile:
        fd = os.open(self.root / path, os.O_CLOEXEC | os.O_RDONLY)
        try:
            return UncachedFile(fd)
        except BaseException:
            os.close(fd)
            raise

    def mkdir(self, path: str) -> None:
        (self.root / path).mkdir(mode=0o700, exist_ok=True)

    def list(self, path: str) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.root / path) if entry.is_file())

    def rename(self, old: str, new: str) -> None:
        os.rename(self.root / old, self.root / new)

    def unlink(self, path: str) -> None:
        os.unlink(self.root / path)

    def sync_dir(self, path: str) -> None:
        fd = os.open(self.root / path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            raise SyncFailed(error.errno, error.strerror, path) from error
        finally:
            os.close(fd)

    def free_bytes(self) -> int:
        stat = os.statvfs(self.root)
        return stat.f_bavail * stat.f_frsize

    def total_bytes(self) -> int:
        stat = os.statvfs(self.root)
        return stat.f_blocks * stat.f_frsize


class SystemClock:
    """The machine's clocks and its random source."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def new_uuid(self) -> bytes:
        return uuid.uuid4().bytes
