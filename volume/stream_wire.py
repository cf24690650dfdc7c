"""The version stream as bytes: one version of a volume, whole or as a difference to another.

    header (128)  commit    frame  frame  ...    end frame

    frame = header (64)  stored bytes of one chunk, as the packs have them

Frames come in post-order of the tree: the chunks of a leaf, then the leaf, ..., the root last. So
whatever was received up to any point is a handful of *whole* subtrees: nothing in a receiver's
store ever refers to what is not there, a short list names all of it (see `volume.forest`), and
"the last frame that is stored" says what is missing. Each frame has its Position in the tree, which
only ever rises; to resume is to leave out the frames up to a position, whatever the sender would
leave out otherwise.

Checks: each frame has a crc32c (finds the damaged place), the end frame has the BLAKE3 of all that
came before it (the stream is whole), and every chunk is named by the BLAKE3 of its own bytes up to
the commit's id (end to end, also over a stream that was resumed in between).

No I/O here. `Decoder` takes bytes in any pieces, which may be hostile: it holds at most one frame
beyond what it was just fed, and raises nothing but InvalidStream. All integers are
little-endian; docs/stream-format.md has the tables.
"""

import base64
import binascii
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from blake3 import blake3
from typing_extensions import Buffer

from native import crc32c
from volume import commits
from volume.chunks import StoredChunk, chunk_id_of
from volume.commits import Commit
from volume.errors import CorruptManifest
from volume.layout import (
    COMMIT_HEADER,
    FAN_OUT,
    KIND_DATA,
    KIND_NODE,
    NODE_BITMAP_LENGTH,
    NODE_HEADER,
    NODE_IDS_LENGTH,
    STRING_LENGTH,
    ZERO_ID,
    ChunkId,
)
from volume.manifest import MAX_HEIGHT, height_for
from volume.model import (
    BLOCK_SIZES,
    MAX_CHUNK_SIZE,
    MAX_VOLUME_SIZE,
    MIN_CHUNK_SIZE,
)
from volume.stream_errors import InvalidStream, StreamRefused

MAGIC = b"BLKDSTRM"
VERSION = 1
HEADER = struct.Struct("<8s I I 32s 32s Q B 3x I Q Q 12x I")
"""magic, version, flags, target commit, base commit, resume position (end, rank), length of the
commit, frame count, length of the whole stream, reserved, crc32c of the 124 bytes before it."""
FLAG_DIFFERENCE = 1  # there is a base
FLAG_RESUMED = 2  # frames up to the resume position are left out
FLAG_COUNTED = 4  # frame count and length are known
_FLAGS = FLAG_DIFFERENCE | FLAG_RESUMED | FLAG_COUNTED

FRAME_MAGIC = b"BSTF"
FRAME = struct.Struct("<4s B B B B I I Q 32s 4x I")
"""magic, kind, codec, rank, flags, raw length, stored length, end, chunk id, reserved, crc32c of
the 60 bytes before it and of the stored bytes after it."""
FRAME_FLAG_REPEATED = 1  # a node that the receiver has by now: without its bytes
KIND_END = 4
KIND_BREAK = 5  # instead of the end: the sender cannot go on, and the stored bytes say why
MAX_REASON_BYTES = 1000
_CRC = struct.Struct("<I")

MAX_COMMIT_BYTES = COMMIT_HEADER.size + commits.MAX_PARENTS * 32 + 3 * (STRING_LENGTH.size + 512)
MAX_NODE_BYTES = NODE_HEADER.size + NODE_BITMAP_LENGTH + NODE_IDS_LENGTH

TOKEN = struct.Struct("<B 32s 32s Q B")
"""version, target commit, base commit, position (end, rank); a crc32c follows."""
TOKEN_VERSION = 1


class Position(NamedTuple):
    """A subtree's place in post-order: how many chunks from the volume's start it ends, and its
    rank: 0 for a chunk, 1 for a leaf, ..., the height of the tree for the root."""

    end: int
    rank: int


START = Position(0, 0)


class StreamHeader(NamedTuple):
    """What a stream is about. Counts are None when the sender did not know them."""

    target: ChunkId
    commit: Commit
    commit_bytes: bytes
    base: ChunkId | None
    resume: Position
    frame_count: int | None
    length: int | None
    """Bytes of the whole stream, this header and the end frame included."""


class Frame(NamedTuple):
    """One chunk; `chunk` is None for a node that is named only."""

    position: Position
    chunk_id: ChunkId
    chunk: StoredChunk | None


class End(NamedTuple):
    """The stream is whole: its BLAKE3 holds."""

    frame_count: int


class Break(NamedTuple):
    """The sender could not go on. What came before is sound."""

    reason: str


Event: TypeAlias = StreamHeader | Frame | End | Break


@dataclass(frozen=True, slots=True)
class ResumeToken:
    """Where a sender is to go on, and with what. Text that a shell need not quote."""

    target: ChunkId
    base: ChunkId | None
    position: Position

    def encode(self) -> str:
        body = TOKEN.pack(TOKEN_VERSION, self.target, self.base or ZERO_ID, *self.position)
        return base64.urlsafe_b64encode(body + _CRC.pack(crc32c(body))).decode().rstrip("=")

    @staticmethod
    def decode(text: str) -> "ResumeToken":
        """StreamRefused when `text` is not a token, or not all of one."""
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            data = b""
        body = data[: TOKEN.size]
        if len(data) != TOKEN.size + _CRC.size or _CRC.pack(crc32c(body)) != data[TOKEN.size :]:
            raise StreamRefused("the resume token is not whole; copy it again as it was printed")
        version, target, base, end, rank = TOKEN.unpack(body)
        if version != TOKEN_VERSION:
            raise StreamRefused(f"the resume token has version {version}, which is not known here")
        return ResumeToken(target, None if base == ZERO_ID else base, Position(end, rank))


# -- encode ---------------------------------------------------------------------------------------


class Encoder:
    """Makes the bytes of one stream, in order: `header`, `frame` and `repeated`, `end`."""

    def __init__(self) -> None:
        self._digest = blake3()
        self._frames = 0

    def header(
        self,
        target: ChunkId,
        commit_bytes: bytes,
        *,
        base: ChunkId | None = None,
        resume: Position = START,
        frame_count: int | None = None,
        length: int | None = None,
    ) -> bytes:
        flags = FLAG_DIFFERENCE if base is not None else 0
        flags |= FLAG_RESUMED if resume != START else 0
        flags |= FLAG_COUNTED if length is not None else 0
        fixed = HEADER.pack(
            MAGIC,
            VERSION,
            flags,
            target,
            base or ZERO_ID,
            *resume,
            len(commit_bytes),
            frame_count or 0,
            length or 0,
            0,
        )
        fixed = fixed[: -_CRC.size] + _CRC.pack(crc32c(fixed[: -_CRC.size]))
        return self._out(fixed + commit_bytes)

    def frame(self, position: Position, chunk_id: ChunkId, chunk: StoredChunk) -> bytes:
        """`chunk` with its bytes."""
        self._frames += 1
        fields = (chunk.kind, chunk.codec, position.rank, 0, chunk.raw_length, len(chunk.stored))
        return self._out(_frame(fields, position.end, chunk_id, chunk.stored))

    def repeated(self, position: Position, chunk_id: ChunkId) -> bytes:
        """A node that came before, or is in the base."""
        self._frames += 1
        fields = (KIND_NODE, 0, position.rank, FRAME_FLAG_REPEATED, 0, 0)
        return self._out(_frame(fields, position.end, chunk_id, b""))

    def end(self) -> bytes:
        return _frame((KIND_END, 0, 0, 0, 0, 0), self._frames, self._digest.digest(), b"")

    def _out(self, data: bytes) -> bytes:
        self._digest.update(data)
        return data


def _frame(
    fields: tuple[int, int, int, int, int, int], end: int, chunk_id: ChunkId, stored: bytes
) -> bytes:
    head = FRAME.pack(FRAME_MAGIC, *fields, end, chunk_id, 0)[: -_CRC.size]
    return b"".join((head, _CRC.pack(crc32c(stored, crc32c(head))), stored))


def break_frame(reason: str) -> bytes:
    """What takes the place of all that a sender still had to send."""
    text = reason.encode()[:MAX_REASON_BYTES].decode(errors="ignore").encode()
    return _frame((KIND_BREAK, 0, 0, 0, len(text), len(text)), 0, ZERO_ID, text)


def _reason(text: bytes) -> str:
    """It is shown to people, and may come from anybody."""
    shown = text.decode(errors="replace")
    return "".join(each if each.isprintable() else "?" for each in shown)


def frame_length(stored_length: int) -> int:
    """Bytes of a frame with that many stored bytes."""
    return FRAME.size + stored_length


# -- decode ---------------------------------------------------------------------------------------


class Decoder:
    """Bytes in, events out. After an error it must not be fed again."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._consumed = 0
        self._digest = blake3()
        self._header: StreamHeader | None = None
        self._frames = 0
        self.ended = False
        self._broken = False

    def feed(self, data: Buffer) -> Iterator[Event]:
        """What `data` completes; take all of it before the next call. InvalidStream."""
        del self._buffer[: self._at]
        self._at = 0
        self._buffer += data
        while (event := self._next()) is not None:
            yield event

    @property
    def offset(self) -> int:
        """Bytes of the stream up to the last whole event."""
        return self._consumed

    def _next(self) -> Event | None:
        if self.ended or self._broken:
            if len(self._buffer) > self._at:
                raise self._invalid("bytes follow its end")
            return None
        if self._header is None:
            return self._take_header()
        return self._take_frame()

    def _take_header(self) -> StreamHeader | None:
        if len(self._buffer) < HEADER.size:
            self._check_magic(MAGIC)
            return None
        fixed = bytes(self._buffer[: HEADER.size])
        (magic, version, flags, target, base, end, rank, length, frames, total, crc) = (
            HEADER.unpack(fixed)
        )
        if magic != MAGIC:
            raise self._invalid("it is not a version stream of blockd")
        if crc != crc32c(fixed[: -_CRC.size]):
            raise self._invalid("its header fails its checksum")
        if version != VERSION or flags & ~_FLAGS:
            raise self._invalid(
                f"version {version}, flags {flags:#x} are not known here; a newer blockd wrote it"
            )
        if not 0 < length <= MAX_COMMIT_BYTES:
            raise self._invalid(f"its commit claims {length} bytes")
        if len(self._buffer) < HEADER.size + length:
            return None
        commit_bytes = bytes(self._buffer[HEADER.size : HEADER.size + length])
        commit = self._commit(target, commit_bytes)
        resume = Position(end, rank)
        counted = bool(flags & FLAG_COUNTED)
        fields_hold = (
            fixed == HEADER.pack(*HEADER.unpack(fixed))  # reserved bytes are zeros
            and bool(flags & FLAG_DIFFERENCE) == (base != ZERO_ID)
            and bool(flags & FLAG_RESUMED) == (resume != START)
            and (resume == START or self._fits(resume, commit))
            and (counted or (not frames and not total))
        )
        if not fields_hold:
            raise self._invalid("the fields of its header contradict each other")
        self._header = StreamHeader(
            target,
            commit,
            commit_bytes,
            None if base == ZERO_ID else base,
            resume,
            frames if counted else None,
            total if counted else None,
        )
        self._taken(HEADER.size + length)
        return self._header

    def _commit(self, target: ChunkId, data: bytes) -> Commit:
        if chunk_id_of(data) != target:
            raise self._invalid("its commit is not the one that its header names")
        try:
            commit = commits.decode(data, "its commit")
        except CorruptManifest as error:
            raise self._invalid(str(error)) from error
        if not commit_holds(commit):
            raise self._invalid("the sizes in its commit are not possible")
        return commit

    def _take_frame(self) -> Frame | End | Break | None:
        start = self._at
        if len(self._buffer) - start < FRAME.size:
            self._check_magic(FRAME_MAGIC)
            return None
        head = bytes(self._buffer[start : start + FRAME.size])
        magic, kind, codec, rank, flags, raw, stored, end, chunk_id, crc = FRAME.unpack(head)
        if magic != FRAME_MAGIC or raw > MAX_CHUNK_SIZE or stored > raw:
            raise self._invalid("there is no frame")
        stop = start + FRAME.size + stored
        if len(self._buffer) < stop:
            return None
        data = bytes(self._buffer[start + FRAME.size : stop])
        if crc != crc32c(data, crc32c(head[: -_CRC.size])):
            raise self._invalid("a frame fails its checksum")
        if kind == KIND_END:
            return self._end(head, end, chunk_id, stop - start)
        if kind == KIND_BREAK:
            return self._break(head + data)
        position = Position(end, rank)
        holds = self._frame_holds(kind, position, flags, raw, stored) and chunk_id != ZERO_ID
        if not holds or head != FRAME.pack(*FRAME.unpack(head)):  # reserved bytes are zeros
            raise self._invalid("the fields of a frame contradict each other")
        self._frames += 1
        self._taken(stop - start)
        repeated = bool(flags & FRAME_FLAG_REPEATED)
        return Frame(position, chunk_id, None if repeated else StoredChunk(kind, codec, raw, data))

    def _frame_holds(
        self, kind: int, position: Position, flags: int, raw: int, stored: int
    ) -> bool:
        assert self._header is not None
        if flags & ~FRAME_FLAG_REPEATED or kind not in (KIND_DATA, KIND_NODE):
            return False
        if not self._fits(position, self._header.commit) or (position.rank == 0) != (
            kind == KIND_DATA
        ):
            return False
        if flags & FRAME_FLAG_REPEATED:
            return kind == KIND_NODE and raw == stored == 0
        if kind == KIND_DATA:
            return raw == self._header.commit.chunk_size and stored > 0
        return 0 < stored <= raw <= MAX_NODE_BYTES

    @staticmethod
    def _fits(position: Position, commit: Commit) -> bool:
        """Whether there can be such a subtree in the commit's tree."""
        end, rank = position
        if not 0 <= rank <= commit.height or not 0 < end <= FAN_OUT**commit.height:
            return False
        return bool(end % FAN_OUT**rank == 0)

    def _end(self, head: bytes, frames: int, digest: bytes, length: int) -> End:
        expected = self._digest.digest()
        if head[: -_CRC.size] != _end_frame(frames, digest):
            raise self._invalid("the fields of its end frame contradict each other")
        if frames != self._frames or digest != expected:
            raise self._invalid("what came does not add up to the checksum of the whole stream")
        self.ended = True
        self._at += length
        self._consumed += length
        return End(frames)

    def _break(self, frame: bytes) -> Break:
        text = frame[FRAME.size :]
        if len(text) > MAX_REASON_BYTES or frame != _frame(
            (KIND_BREAK, 0, 0, 0, len(text), len(text)), 0, ZERO_ID, text
        ):
            raise self._invalid("the fields of its last frame contradict each other")
        self._broken = True
        self._at += len(frame)
        self._consumed += len(frame)
        return Break(_reason(text))

    def _taken(self, length: int) -> None:
        with memoryview(self._buffer) as view:
            self._digest.update(view[self._at : self._at + length])
        self._at += length
        self._consumed += length

    def _check_magic(self, magic: bytes) -> None:
        """Say at once when the first bytes are of something else."""
        found = bytes(self._buffer[self._at : self._at + len(magic)])
        if not magic.startswith(found):
            what = "it is not a version stream of blockd" if magic == MAGIC else "there is no frame"
            raise self._invalid(what)

    def _invalid(self, what: str) -> InvalidStream:
        return InvalidStream(f"the stream is damaged at byte {self._consumed}: {what}")


def _end_frame(frames: int, digest: bytes) -> bytes:
    packed = FRAME.pack(FRAME_MAGIC, KIND_END, 0, 0, 0, 0, 0, frames, digest, 0)
    return packed[: -_CRC.size]


def commit_holds(commit: Commit) -> bool:
    """Whether the sizes in a commit from elsewhere are those of a volume that could be here."""
    return (
        commit.block_size in BLOCK_SIZES
        and MIN_CHUNK_SIZE <= commit.chunk_size <= MAX_CHUNK_SIZE
        and commit.chunk_size & (commit.chunk_size - 1) == 0
        and 0 < commit.size <= MAX_VOLUME_SIZE
        and commit.size % commit.block_size == 0
        and height_for(commit.size, commit.chunk_size) <= commit.height <= MAX_HEIGHT
    )


# -- progress -------------------------------------------------------------------------------------


class Scanner:
    """How far a stream is that somebody passes on: looks at headers only, checks nothing.

    What it cannot read it counts as bytes."""

    def __init__(self) -> None:
        self.done = 0
        """Bytes seen."""
        self.total: int | None = None
        """Bytes of the stream, when its header says so."""
        self.fraction: float | None = None
        """Of the volume, up to the last frame begun; None before the first."""
        self.frames = 0
        self.ended = False
        """The end frame has gone by."""
        self._why: bytes | None = None
        self._wanted = HEADER.size
        self._head = b""
        self._skip = 0
        self._in_header = True
        self._chunks = 0
        self._commit = b""
        self._commit_left = 0

    @property
    def reason(self) -> str | None:
        """Why the sender broke off, if it said so."""
        return None if self._why is None else _reason(self._why)

    def feed(self, data: bytes) -> None:
        self.done += len(data)
        at = 0
        while at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                if self._commit_left:
                    self._commit += data[at : at + step]
                elif self._why is not None:
                    self._why += data[at : at + step][: MAX_REASON_BYTES - len(self._why)]
                self._skip -= step
                at += step
                if not self._skip and self._commit_left:
                    self._commit_left = 0
                    self._learn_size()
                continue
            piece = data[at : at + self._wanted - len(self._head)]
            self._head += piece
            at += len(piece)
            if len(self._head) == self._wanted:
                self._take(self._head)
                self._head = b""

    def _take(self, head: bytes) -> None:
        if self._in_header:
            magic, _, flags, _, _, _, _, length, _, total, _ = HEADER.unpack(head)
            if magic != MAGIC or length > MAX_COMMIT_BYTES:
                self._skip = 1 << 62
                return
            self.total = total if flags & FLAG_COUNTED else None
            self._in_header = False
            self._skip = self._commit_left = length
            self._wanted = FRAME.size
            return
        magic, kind, _, _, _, _, stored, end, _, _ = FRAME.unpack(head)
        if magic != FRAME_MAGIC:
            self._skip = 1 << 62
            return
        self._skip = stored
        if kind == KIND_END:
            self.ended = True
        elif kind == KIND_BREAK:
            self._why = b""
        elif self._chunks:
            self.frames += 1
            self.fraction = min(1.0, end / self._chunks)

    def _learn_size(self) -> None:
        try:
            commit = commits.decode(self._commit)
        except CorruptManifest:
            return
        if commit_holds(commit):
            self._chunks = -(-commit.size // commit.chunk_size)
