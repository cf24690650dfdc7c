"""The ordered record of everything that changed a simulated disk, and of what was promised when.

Position p is `ops[p]`; point p is the moment before it, so point `len(ops)` is the end. Files are
known by inode; names are directory entries that come and go. A sync covers the operations before
position `upto`: the length of the trace when the call *began*, because a write that arrives while
fdatasync runs is not promised by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.sim.image import Image

SyncOutcome = Literal["ok", "failed", "lied"]


@dataclass(frozen=True, slots=True)
class Write:
    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    inode: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """`failed`: what was dirty is now clean but not durable, and no later sync writes it (Linux).
    `lied`: reported as done, did nothing."""

    inode: int
    upto: int
    outcome: SyncOutcome = "ok"


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The medium flipped bits: every version of that byte is hit, synced or not."""

    inode: int
    offset: int
    mask: int


@dataclass(frozen=True, slots=True)
class Create:
    path: str
    inode: int


@dataclass(frozen=True, slots=True)
class Rename:
    old: str
    new: str
    inode: int


@dataclass(frozen=True, slots=True)
class Unlink:
    path: str
    inode: int


@dataclass(frozen=True, slots=True)
class Mkdir:
    path: str


@dataclass(frozen=True, slots=True)
class SyncDir:
    path: str
    upto: int
    outcome: SyncOutcome = "ok"


@dataclass(frozen=True, slots=True)
class Mark:
    """No operation: what the test knows at this point, such as "flush acked at seq 7"."""

    value: object


NameOp = Create | Rename | Unlink | Mkdir
Op = Write | Truncate | Sync | Corrupt | NameOp | SyncDir | Mark


@dataclass(slots=True)
class Trace:
    """`base` was wholly durable when the trace began; `inodes` numbers its files."""

    base: Image
    inodes: Mapping[str, int]
    ops: list[Op] = field(default_factory=list)

    def marks(self, point: int) -> Sequence[object]:
        """Values of the marks set before `point`, in order."""
        return [op.value for op in self.ops[:point] if isinstance(op, Mark)]
