"""Messages about chunks by their ids: which are there, and their bytes."""

from dataclasses import dataclass
from typing import Annotated, Final

from typing_extensions import Buffer

from transport.errors import BadMessage
from transport.peer.fields import MAX_SEQ, Int, Many, Raw
from transport.peer.requests import U32, Epoch, Request, Uuid
from transport.peer.wire import MAX_PAYLOAD_BYTES, Message
from volume.layout import CHUNK_ID_LENGTH, KIND_NAMES
from volume.model import MAX_CHUNK_SIZE, MAX_VOLUME_SIZE
from volume.remake import MAX_STATES

MAX_IDS: Final = 4096  # chunk ids in one HAVE or WANT: 64 bytes of reply for 256 MiB of volume
MAX_CHUNKS: Final = 256  # in one message; each is a frame
MAX_SPOTS: Final = 256  # in one GET_AT
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


SPOT = (
    *(Raw(16), Int(8, 0, MAX_SEQ), Int(8, 0, MAX_VOLUME_SIZE)),
    *(Int(1, 0, 1), Raw(CHUNK_ID_LENGTH)),
)


@dataclass(frozen=True, slots=True)
class GetAt(Request):
    """Chunks that no node has by their ids, of what volumes are in some state at their places."""

    TYPE = 42
    ANSWER = ChunkList
    limit: Room
    spots: Annotated[tuple[tuple[bytes, int, int, int, bytes], ...], Many(SPOT, MAX_SPOTS)]
    """Volume, seq of the state, offset in bytes, whether it is a node of the tree, and id of
    each."""

    @property
    def room(self) -> int:
        return self.limit

    def check(self) -> None:
        states = {(volume, seq) for volume, seq, *_ in self.spots}
        if len(states) > MAX_STATES:
            raise BadMessage(f"GetAt: of {len(states)} states, where {MAX_STATES} may be asked of")


def _check_chunks(
    chunks: tuple[tuple[bytes, int, int, int], ...], payload: tuple[Buffer, ...]
) -> None:
    if len(chunks) != len(payload):
        raise BadMessage(f"{len(chunks)} chunks in {len(payload)} frames")
    for (_, _, _, raw_length), frame in zip(chunks, payload, strict=True):
        if memoryview(frame).nbytes > raw_length:
            raise BadMessage("a chunk is stored in more bytes than it has")
