"""NOTE records: what becomes of a volume as a whole, at its place in the order of its records.

    u8 version, u8 kind, 6 zeros, u64 size before, u64 size from here on     known to native code
    u64 time, u64 up to, u8 flags, u8 length of the name, the name           known here
    of RESTORE: volume's id (16), root (32), u8 height                       the same

A NOTE has an epoch and a seq like a write, so it crosses to other nodes as one, is replayed as one,
and a takeover keeps or undoes it as one: what W nodes have is there, in order, whoever is the
primary. What it does to the rows of `meta/` is `volume.noted`'s.

Bytes come from disks and other nodes: `decode` believes nothing.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final

from volume import layout
from volume.errors import CorruptJournal, InvalidName
from volume.layout import ChunkId
from volume.manifest import MAX_HEIGHT
from volume.refs import MAX_NAME_LENGTH, check_snapshot_name

VERSION: Final = 1
HEAD: Final = struct.Struct("<B B 6x Q Q")
"""version, kind, size before, size from here on."""
BODY: Final = struct.Struct("<Q Q B B")
"""time in ns, up to which seq, flags (SNAPSHOT_*), length of the name. The name (ASCII) follows."""
TREE: Final = struct.Struct("<16s 32s B")
"""Of RESTORE, behind BODY: id of the volume whose state it is, root and height of its tree."""
_FLAGS: Final = layout.SNAPSHOT_PINNED | layout.SNAPSHOT_SCHEDULED


class Kind(enum.IntEnum):
    SNAPSHOT = 1
    """The state after this record has a name."""
    DROP = 2
    """A name is gone, unless this record is undone."""
    PIN = 3
    """A snapshot is pinned, or not any more."""
    SETTLED = 4
    """What was done up to a seq is on the disks of W nodes: none of it is undone any more."""
    RESIZE = 5
    """Another size; between the two the volume reads as zeros from here on."""
    RESTORE = 6
    """The volume is from here on what it, or another one, was at a seq."""


NAMED: Final = frozenset((Kind.SNAPSHOT, Kind.DROP, Kind.PIN))
SIZED: Final = frozenset((Kind.RESIZE, Kind.RESTORE))


@dataclass(frozen=True, slots=True)
class Source:
    """What a RESTORE goes back to: the state at `Note.up_to` of that volume. The tree says what is
    in it: a member that has another state there, or none, must not take it for this one."""

    volume: bytes
    """Its id, which it has on all nodes."""
    root: ChunkId
    """ZERO_ID: nothing but zeros."""
    height: int


@dataclass(frozen=True, slots=True)
class Note:
    kind: Kind
    time_ns: int
    size_before: int
    size: int
    name: str = ""
    up_to: int = 0
    pinned: bool = False
    scheduled: bool = False
    source: Source | None = None
    """Of RESTORE alone."""

    def encode(self) -> bytes:
        flags = layout.SNAPSHOT_PINNED * self.pinned | layout.SNAPSHOT_SCHEDULED * self.scheduled
        name = self.name.encode("ascii")
        head = HEAD.pack(VERSION, self.kind, self.size_before, self.size)
        body = BODY.pack(self.time_ns, self.up_to, flags, len(name)) + name
        source = self.source
        tree = b"" if source is None else TREE.pack(source.volume, source.root, source.height)
        return head + body + tree


def decode(what: str, payload: bytes) -> Note:
    """CorruptJournal, which names `what`."""
    try:
        return _decode(payload)
    except (ValueError, InvalidName, struct.error) as error:
        raise CorruptJournal(
            f"{what} says what became of a volume, but makes no sense ({error}); it was written by "
            "another version, or is damaged"
        ) from error


def _decode(payload: bytes) -> Note:
    version, kind, before, size = HEAD.unpack_from(payload)
    time_ns, up_to, flags, length = BODY.unpack_from(payload, HEAD.size)
    rest, source = payload[HEAD.size + BODY.size :], None
    if kind == Kind.RESTORE:
        volume, root, height = TREE.unpack(rest)
        source, rest = Source(volume, ChunkId(root), height), b""
        if not 1 <= height <= MAX_HEIGHT:
            raise ValueError(f"a tree of height {height}")
    name = rest.decode("ascii")
    note = Note(
        *(Kind(kind), time_ns, before, size, name, up_to),
        *(bool(flags & layout.SNAPSHOT_PINNED), bool(flags & layout.SNAPSHOT_SCHEDULED)),
        source,
    )
    if version != VERSION or flags & ~_FLAGS or len(name) != length or length > MAX_NAME_LENGTH:
        raise ValueError(f"version {version}, flags {flags}, a name of {length}")
    if (note.kind in NAMED) != bool(name) or (note.kind not in SIZED and before != size):
        raise ValueError(f"{note.kind.name} of {name!r}, size {before} to {size}")
    if name:
        check_snapshot_name(name)
    return note
