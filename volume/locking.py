"""One process per data directory: an advisory lock on the file `lock`, which names its holder."""

import contextlib
import fcntl
import os
from pathlib import Path

from volume.errors import DirectoryLocked

LOCK_FILE = "lock"


class DirectoryLock:
    """Held from construction to `release`, or to the end of the process. DirectoryLocked."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise DirectoryLocked(
                str(path), f"process {holder}" if holder else "another process"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
