"""Messages about chunks by their ids: which are there, and their bytes."""

from dataclasses import dataclass
from typing import Annotated, Final

from typing_extensions import Buffer

from transport.errors import BadMessage
from transport.peer.fields import Int, Many, Raw
from transport.peer.requests import U32, Epoch, Request, Uuid
from transport.peer.wire import MAX_PAYLOAD_BYTES, Message
from volume.layout import CHUNK_ID_LENGTH, KIND_NAMES
from volume.model import MAX_CHUNK_SIZE

MAX_IDS: Final = 4096  # chunk ids in one HAVE or WANT: 64 bytes of reply for 256 MiB of volume
MAX_CHUNKS: Final = 256  # in one message; each is a frame
ChunkIds = Annotated[tuple[bytes, ...], Many((Raw(CHUNK_ID_LENGTH),), MAX_IDS)]
Room = Annotated[int, Int(4, 1, MAX_PAYLOAD_BYTES)]


@dataclass(frozen=True, slots=True)
class Want(Message):
    """Those of the ids that the receiver does not have."""

    TYPE = 33
    ids: ChunkIds


@dataclass(frozen=True, slots=True)
class Have(Request):
    """The volume has these chunks: which of them do you want?"""

    TYPE = 32
    ANSWER = Want
    volume: Uuid
    epoch: Epoch
    ids: ChunkIds


CHUNK = (Raw(CHUNK_ID_LENGTH), Int(1, 1, max(KIND_NAMES)), Int(1), Int(4, 1, MAX_CHUNK_SIZE))
ChunkRows = Annotated[tuple[tuple[bytes, int, int, int], ...], Many(CHUNK, MAX_CHUNKS)]


@dataclass(frozen=True, slots=True)
class ChunkList(Message):
    """Those of the chunks that there are, and that fit, in the order asked for."""

    TYPE = 37
    FRAMES = (0, MAX_CHUNKS)
    chunks: ChunkRows
    """Id, kind, codec, raw length of each, as pack entries have them."""
    payload: tuple[Buffer, ...]
    """Stored bytes of each; the receiver checks that they are what the id says."""

    def check(self) -> None:
        _check_chunks(self.chunks, self.payload)


@dataclass(frozen=True, slots=True)
class Stored(Message):
    """The chunks are durable."""

    TYPE = 35
    count: U32
    """That it did not have before."""


@dataclass(frozen=True, slots=True)
class Chunks(Request):
    """Store these: as CHUNK_LIST."""

    TYPE = 34
    ANSWER = Stored
    FRAMES = (1, MAX_CHUNKS)
    chunks: ChunkRows
    payload: tuple[Buffer, ...]

    def check(self) -> None:
        _check_chunks(self.chunks, self.payload)


@dataclass(frozen=True, slots=True)
class Get(Request):
    """Chunks by id, in at most `limit` bytes of payload; repeated for what did not fit."""

    TYPE = 36
    ANSWER = ChunkList
    limit: Room
    ids: Annotated[tuple[bytes, ...], Many((Raw(CHUNK_ID_LENGTH),), MAX_CHUNKS)]

    @property
    def room(self) -> int:
        return self.limit


def _check_chunks(
    chunks: tuple[tuple[bytes, int, int, int], ...], payload: tuple[Buffer, ...]
) -> None:
    if len(chunks) != len(payload):
        raise BadMessage(f"{len(chunks)} chunks in {len(payload)} frames")
    for (_, _, _, raw_length), frame in zip(chunks, payload, strict=True):
        if memoryview(frame).nbytes > raw_length:
            raise BadMessage("a chunk is stored in more bytes than it has")
