"""References: payload of records that a member has already is not sent, but named.

A record that writes whole chunks which the primary's store has, from whenever and whatever volume,
is mostly one that the member's store has too: both make the same chunks of the same records. So an
APPEND with large records may travel as APPEND_BRIEF: its record bytes without these chunks, and
where which of them belong. The member puts them in from its own store, each checked by its id, and
appends: what is in its journal is whole, the very same bytes. What it cannot read, or does not
have, it does not make up: it answers LACKS, and the whole APPEND is sent.

To look costs a hash and a lookup for each chunk, on a thread that may wait, and what is written
mostly is new. So it is sampled: of an APPEND one chunk is looked up, and the others only if that
one is known; after a miss the next look is twice as many bytes later, up to MAX_SPACING. Records
shorter than a chunk are never looked at. A member that lacked something gets whole records for a
while.

Nothing here is remembered that could be wrong: a reference is a guess, and the member's store
decides.
"""

import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from typing_extensions import Buffer

from native import is_zero
from transport.group.acks import NodeId
from transport.peer import messages as m
from volume.chunks import chunk_id_of
from volume.errors import BadRecords, CorruptData, UnknownFormat
from volume.layout import ZERO_ID, ChunkId

MAX_SPACING: Final = 1 << 19
"""Bytes of large records between two looks, where none pays: 64 KiB are hashed of these."""
DOUBT_BYTES: Final = 16 << 20
"""A member that lacked what it was thought to have gets so much whole, then twice as much..."""
MAX_DOUBT: Final = 1 << 30
MEMO: Final = 2  # APPENDs whose brief form is kept: for the other members, which get the same

_RECORD: Final = struct.Struct("<4s B B 18x Q Q Q")
"""Of a record's header (docs/disk-format.md): magic, version, op; seq, offset, length."""
_HEADER: Final = 64
_MAGIC: Final = b"bdJR"
_WRITE: Final = 1

Known = Callable[[Sequence[ChunkId]], list[bool]]
"""Which of some chunks this node's store has."""
Get = Callable[[ChunkId], bytes | None]
"""The bytes of a chunk, checked; None: not here. CorruptData, UnknownFormat, OSError."""
Spot = tuple[int, int]
"""(frame, offset in it) where a whole chunk begins."""


class References:
    """Of one volume at its primary. `worth`, `lacked` and `took` on one thread, `brief` on any."""

    def __init__(self, chunk_size: int, known: Known) -> None:
        self._chunk_size = chunk_size
        self._known = known
        self._spacing = 0
        self._passed = 0
        self._looked: tuple[int, int, int] | None = None
        """What was found to be worth a look last."""
        self._doubts: dict[NodeId, int] = {}
        """Bytes that a member gets whole yet..."""
        self._doubted: dict[NodeId, int] = {}
        """...and how much that was, the last time."""
        self._lock = threading.Lock()
        self._memo: OrderedDict[tuple[int, int, int], m.AppendBrief | None] = OrderedDict()

    def worth(self, member: NodeId, append: m.Append) -> bool:
        """Whether to look at an APPEND to a member."""
        length = sum(map(_length, append.payload))
        if length < self._chunk_size * (append.last_seq - append.first_seq + 1):
            return False
        doubt = self._doubts.get(member, 0)
        if doubt:
            self._doubts[member] = max(0, doubt - length)
            return False
        key = _key(append)
        if key == self._looked:  # another member gets the same
            return self._memo.get(key, key) is not None
        self._passed += length
        if self._passed < self._spacing:
            return False
        self._passed = 0
        self._looked = key
        return True

    def brief(self, append: m.Append) -> m.AppendBrief | None:
        """The same with references; None where there is nothing to refer to. Waits for the disk."""
        key = _key(append)
        with self._lock:
            if key in self._memo:
                return self._memo[key]
            found = self._brief(append)
            self._spacing = 0 if found else min(2 * self._spacing or self._chunk_size, MAX_SPACING)
            self._memo[key] = found
            while len(self._memo) > MEMO:
                self._memo.popitem(last=False)
            return found

    def lacked(self, member: NodeId) -> None:
        """It has not had what was referred to."""
        doubt = min(max(DOUBT_BYTES, 2 * self._doubted.get(member, 0)), MAX_DOUBT)
        self._doubts[member] = self._doubted[member] = doubt

    def took(self, member: NodeId) -> None:
        """It has had all of it."""
        self._doubted.pop(member, None)

    def _brief(self, append: m.Append) -> m.AppendBrief | None:
        frames = [memoryview(each).cast("B") for each in append.payload]
        spots = _spots(frames, self._chunk_size)[: m.MAX_REFERENCES]
        if not spots or not self._ids(frames, spots[:1]):
            return None
        found = self._ids(frames, spots)
        cut = [_without(frame, at, found, self._chunk_size) for at, frame in enumerate(frames)]
        rows = tuple((*spot, chunk_id) for spot, chunk_id in found.items())
        return m.AppendBrief(
            *(append.volume, append.epoch, append.written, append.first_seq, append.last_seq),
            *(append.sync, self._chunk_size, rows, tuple(cut)),
        )

    def _ids(self, frames: list[memoryview], spots: list[Spot]) -> dict[Spot, ChunkId]:
        """Those of the chunks that are known, in order."""
        ids = []
        for frame, offset in spots:
            data = frames[frame][offset : offset + self._chunk_size]
            ids.append(ZERO_ID if is_zero(data) else chunk_id_of(data))
        known = iter(self._known([each for each in ids if each != ZERO_ID]))
        return {
            spot: chunk_id
            for spot, chunk_id in zip(spots, ids, strict=True)
            if chunk_id == ZERO_ID or next(known)
        }


def _length(frame: Buffer) -> int:
    return len(frame) if isinstance(frame, bytes) else memoryview(frame).nbytes


def _key(append: m.Append) -> tuple[int, int, int]:
    return append.written, append.first_seq, append.last_seq


def _spots(frames: list[memoryview], chunk_size: int) -> list[Spot]:
    """Where whole chunks of the volume lie in records, as a tap gives those."""
    found = []
    for number, frame in enumerate(frames):
        at = 0
        while at + _HEADER <= len(frame):
            magic, _, op, _, offset, length = _RECORD.unpack_from(frame, at)
            if magic != _MAGIC or op != _WRITE or at + _HEADER + length > len(frame):
                break  # what else there may be is short, and is sent as it is
            first = -offset % chunk_size
            begin = at + _HEADER
            found += [
                (number, begin + start)
                for start in range(first, length - chunk_size + 1, chunk_size)
            ]
            at += -(-(_HEADER + length) // _HEADER) * _HEADER
    return found


def _without(frame: memoryview, number: int, found: dict[Spot, ChunkId], chunk_size: int) -> bytes:
    """A frame without these chunks."""
    parts, at = [], 0
    for each, offset in found:
        if each == number:
            parts.append(frame[at:offset])
            at = offset + chunk_size
    return b"".join((*parts, frame[at:]))


def whole(brief: m.AppendBrief, name: str, chunk_size: int, get: Get) -> m.Append | int:
    """The APPEND that a brief one is for, of volume `name`; else how many of its chunks are lacking
    here. BadRecords. `get` gives chunks of `chunk_size` bytes; nothing else is put in."""
    if brief.chunk_size != chunk_size:
        raise BadRecords(name, f"chunks of {brief.chunk_size} bytes are referred to")
    chunks: dict[ChunkId, bytes] = {ZERO_ID: bytes(chunk_size)}
    lacking = 0
    for chunk_id in {row[2] for row in brief.references}:
        if chunk_id != ZERO_ID:
            found = _get(chunk_id, chunk_size, get)
            lacking += found is None
            chunks[chunk_id] = found or b""
    if lacking:
        return lacking
    payload = tuple(
        _filled(name, number, memoryview(frame).cast("B"), brief, chunks)
        for number, frame in enumerate(brief.payload)
    )
    return m.Append(
        *(brief.volume, brief.epoch, brief.written, brief.first_seq, brief.last_seq, brief.sync),
        payload,
    )


def _get(chunk_id: ChunkId, chunk_size: int, get: Get) -> bytes | None:
    try:
        data = get(chunk_id)
    except (CorruptData, UnknownFormat, OSError):  # it is sent, and stored anew
        return None
    return data if data is not None and len(data) == chunk_size else None


def _filled(
    name: str,
    number: int,
    frame: memoryview,
    brief: m.AppendBrief,
    chunks: dict[ChunkId, bytes],
) -> Buffer:
    parts: list[Buffer] = []
    at = length = 0
    for each, offset, chunk_id in brief.references:
        if each != number:
            continue
        gap = offset - length
        if gap < 0 or at + gap > len(frame):
            raise BadRecords(name, f"a chunk belongs to byte {offset} of {len(frame)}")
        parts += (frame[at : at + gap], chunks[chunk_id])
        at += gap
        length = offset + brief.chunk_size
    return b"".join((*parts, frame[at:])) if parts else frame
