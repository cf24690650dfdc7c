"""Faults by script: which call goes wrong, and how. Every fault is counted, so each fires exactly
as written and a test can assert that it did.

A `Fault` names a call (operation, path pattern, a byte that the I/O covers) and the n-th such call
meets its action. Faults are tried in the order in which they were added; every fault counts every
call that it matches, and the first one that is due decides.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

OPERATIONS = frozenset(
    ("open", "pread", "pwrite", "sync", "truncate", "mkdir", "list", "rename", "unlink", "sync_dir")
)


@dataclass(frozen=True, slots=True)
class Fail:
    """The call raises OSError(errno) and does nothing."""

    errno: int = errno.EIO

    def error(self, path: str) -> OSError:
        return OSError(self.errno, f"{os.strerror(self.errno)} (scripted fault)", path)


@dataclass(frozen=True, slots=True)
class ShortWrite:
    """pwrite: the first `length` bytes land, then OSError(errno)."""

    length: int
    errno: int = errno.EIO


@dataclass(frozen=True, slots=True)
class Misdirect:
    """pwrite: the data lands `shift` bytes away in the same file, and success is reported."""

    shift: int


@dataclass(frozen=True, slots=True)
class Lie:
    """pwrite, sync, sync_dir: success is reported, nothing is done."""


@dataclass(frozen=True, slots=True)
class Stall:
    """`hook` is called first, without the disk's lock, so that other threads go on; then the call
    runs as usual. A hook may wait for an event, and what it raises the caller gets."""

    hook: Callable[[], None]


Action = Fail | ShortWrite | Misdirect | Lie | Stall

ALLOWED: dict[type, frozenset[str]] = {
    Fail: OPERATIONS,
    Stall: OPERATIONS,
    ShortWrite: frozenset(("pwrite",)),
    Misdirect: frozenset(("pwrite",)),
    Lie: frozenset(("pwrite", "sync", "sync_dir")),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` (from 1) call of `op` whose path matches, and the `count` - 1 such calls after it.

    `path` is an fnmatch pattern on the file's name ("journal/*"; for a rename, the old name).
    `covers` demands that a pread or pwrite touches that byte offset. `count=None`: for ever.
    """

    op: str
    action: Action
    path: str = "*"
    nth: int = 1
    count: int | None = 1
    covers: int | None = None

    def __post_init__(self) -> None:
        if self.op not in ALLOWED[type(self.action)]:
            raise ValueError(f"fault {self.action} cannot happen to {self.op!r}")
        if self.nth < 1:
            raise ValueError(f"fault on {self.op!r}: nth is {self.nth}, calls count from 1")

    def matches(self, op: str, path: str, offset: int, length: int) -> bool:
        if op != self.op or not fnmatchcase(path, self.path):
            return False
        return self.covers is None or offset <= self.covers < offset + length


class FaultScript:
    """The faults of one disk and what became of them. Guarded by the disk's lock."""

    def __init__(self) -> None:
        self._seen: list[tuple[Fault, int]] = []
        self.fired: list[tuple[Fault, str]] = []
        """Each fault that happened, with the path that it hit, in order."""

    def add(self, *faults: Fault) -> None:
        """Begin to count calls for `faults` now."""
        self._seen.extend((fault, 0) for fault in faults)

    def clear(self) -> None:
        """Heal: no fault happens any more."""
        self._seen.clear()

    def __bool__(self) -> bool:
        """Whether there is any to count calls for."""
        return bool(self._seen)

    def next_action(self, op: str, path: str, offset: int = 0, length: int = 0) -> Action | None:
        """Count one call; the action that it meets, if any."""
        due: Fault | None = None
        for position, (fault, seen) in enumerate(self._seen):
            if fault.matches(op, path, offset, length):
                seen += 1
                self._seen[position] = (fault, seen)
                last = None if fault.count is None else fault.nth + fault.count - 1
                if due is None and seen >= fault.nth and (last is None or seen <= last):
                    due = fault
        if due is None:
            return None
        self.fired.append((due, path))
        return due.action
