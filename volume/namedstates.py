"""The names of a volume as a copy of it on another node needs them, and their trees.

    of each: u64 seq, u64 created ns, u64 time ns, u64 size, u8 flags (SNAPSHOT_*), u8 height,
             root (32), u8 length of the name, the name (ASCII)

A member that the log does not lead to gets the trees of those that it lacks as streams, oldest
first, before that of the newest state (`volume.replicacopy`); the list comes with the end of them.
It comes from another node: `decode` believes nothing.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from typing_extensions import Buffer

from volume import layout
from volume.errors import InvalidName
from volume.history import History
from volume.historyrows import SnapshotRow
from volume.layout import ChunkId
from volume.manifest import MAX_HEIGHT
from volume.model import MAX_VOLUME_SIZE
from volume.refs import check_snapshot_name

MAX_BYTES: Final = 4 << 20  # of a list: a frame of a message
_ROW: Final = struct.Struct("<Q Q Q Q B B 32s B")


@dataclass(frozen=True, slots=True)
class NamedState:
    """A snapshot, and the tree of what it names."""

    name: str
    seq: int
    created_ns: int
    pinned: bool
    scheduled: bool
    time_ns: int
    size: int
    root: ChunkId
    height: int

    def row(self, number: int) -> SnapshotRow:
        return SnapshotRow(
            number, self.name, self.seq, self.created_ns, self.pinned, self.scheduled
        )


def names_at(history: History, number: int, seq: int) -> list[SnapshotRow]:
    """The names of a volume as they were at record `seq`, by the seqs of what they name."""
    rows = {row.name: row for row in history.snapshots(number) if row.seq <= seq}
    rows.update((row.name, row) for row in history.undo_of(number, seq).back)
    return sorted(rows.values(), key=lambda row: (row.seq, row.name))


def encode(states: Iterable[NamedState]) -> bytes:
    out = []
    for each in states:
        flags = layout.SNAPSHOT_PINNED * each.pinned | layout.SNAPSHOT_SCHEDULED * each.scheduled
        name = each.name.encode("ascii")
        out.append(
            _ROW.pack(
                *(each.seq, each.created_ns, each.time_ns, each.size),
                *(flags, each.height, each.root, len(name)),
            )
            + name
        )
    return b"".join(out)


def decode(data: Buffer) -> list[NamedState]:
    """ValueError, which says what is wrong."""
    view, at = memoryview(data).cast("B"), 0
    found: dict[str, NamedState] = {}
    trees: dict[int, tuple[int, int, bytes]] = {}
    try:
        while at < len(view):
            seq, created, time_ns, size, flags, height, root, length = _ROW.unpack_from(view, at)
            at += _ROW.size + length
            if at > len(view):
                raise ValueError("is cut off")
            name = bytes(view[at - length : at]).decode("ascii")
            check_snapshot_name(name)
            if name in found or not (0 < size <= MAX_VOLUME_SIZE and 1 <= height <= MAX_HEIGHT):
                raise ValueError(f"has {name} twice, or of {size} bytes, height {height}")
            tree = (size, height, root)
            if trees.setdefault(seq, tree) != tree:
                raise ValueError(f"has record {seq} twice, with other states")
            pinned = bool(flags & layout.SNAPSHOT_PINNED)
            scheduled = bool(flags & layout.SNAPSHOT_SCHEDULED)
            found[name] = NamedState(
                name, seq, created, pinned, scheduled, time_ns, size, ChunkId(root), height
            )
    except (struct.error, InvalidName) as error:
        raise ValueError(f"makes no sense ({error})") from error
    return list(found.values())
