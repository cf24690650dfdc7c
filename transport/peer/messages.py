"""The messages between nodes. docs/peer-protocol.md shows the same tables for people.

Requests name their answer (`ANSWER`), and how many bytes of payload that may have (`room`); ERROR
may come instead. Every request may be repeated: asked twice, it does and answers the same.
"""

import enum
import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from typing_extensions import Buffer

from transport.errors import BadMessage
from transport.group.chain import MAX_EPOCHS, BadChain, Chain
from transport.peer.fields import MAX_SEQ, Int, Many, Raw, Text
from transport.peer.wire import MAX_FRAME_BYTES, MAX_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, Message
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT, KIND_NAMES
from volume.metastore_records import MAX_VALUE_BYTES
from volume.model import MAX_CHUNK_SIZE, MAX_VOLUME_SIZE, MIN_CHUNK_SIZE

MAX_IDS: Final = 4096  # chunk ids in one HAVE or WANT: 64 bytes of reply for 256 MiB of volume
MAX_CHUNKS: Final = 256  # in one message; each is a frame
MAX_REFERENCES: Final = 1024  # chunks in one APPEND_BRIEF; each takes at least MIN_CHUNK_SIZE
MAX_NODES_COMPARED: Final = FAN_OUT  # in one COMPARE: all that are under another one
MAX_RECORDS_BYTES: Final = MAX_FRAME_BYTES
MAX_APPEND_FRAMES: Final = 64  # each is what a tap gave at once
MIN_ROOM_BYTES: Final = 16 << 20  # the longest message fits
MAX_NODES: Final = 64  # records in one NODE_LIST

U8 = Annotated[int, Int(1)]
U16 = Annotated[int, Int(2)]
U32 = Annotated[int, Int(4)]
U64 = Annotated[int, Int(8)]
Bool = Annotated[int, Int(1, 0, 1)]
Uuid = Annotated[bytes, Raw(16)]
Epoch = Annotated[int, Int(8, 1, MAX_SEQ)]
Seq = Annotated[int, Int(8, 0, MAX_SEQ)]
ChunkIds = Annotated[tuple[bytes, ...], Many((Raw(CHUNK_ID_LENGTH),), MAX_IDS)]
Room = Annotated[int, Int(4, 1, MAX_PAYLOAD_BYTES)]


class Code(enum.IntEnum):
    """Of an ERROR. Unknown ones are taken as FAILED."""

    FAILED = 1
    """It did not work here; the text says why."""
    VERSION = 2
    """No version of the protocol, or a feature that is required, in common."""
    CLUSTER = 3
    """Of another cluster."""
    NODE = 4
    """Not the node that its key belongs to, or not the one that is meant."""
    BUSY = 5
    """More at once than was agreed: come again later."""
    CANCELLED = 6
    """As was asked for."""
    UNKNOWN = 7
    """This node does not do that, or has no such volume."""
    STALE = 8
    """An epoch below the one that was promised, or is open: `detail` is that epoch."""
    GAP = 9
    """Records are missing before these: `detail` is the seq that it has."""
    SEALED = 10
    """Its data directory takes no writes any more."""
    REFUSED = 11
    """It may not be asked that."""
    LACKS = 12
    """Chunks that were referred to cannot be read here: `detail` of them. Send them."""


class Feature(enum.IntFlag):
    """What a node can do beyond version 1. A bit that is required and not known refuses."""

    NONE = 0
    REFERENCES = 1
    """It takes APPEND_BRIEF."""


FEATURES: Final = Feature.REFERENCES
"""Of this program."""


class Request(Message):
    """A message that is answered."""

    __slots__ = ()

    ANSWER: ClassVar[type[Message]]

    @property
    def room(self) -> int:
        """Bytes of payload that its answer may have."""
        return 0


# -- a session


@dataclass(frozen=True, slots=True)
class Hello(Message):
    """The first message of who connects; answered by WELCOME or ERROR."""

    TYPE = 1
    node: Uuid
    cluster: Uuid
    oldest: U8
    """Versions of the protocol that it speaks, from..."""
    newest: U8
    offers: U64
    """Features that it knows..."""
    requires: U64
    """...and those without which it does not go on."""
    program: Annotated[str, Text(64)]

    def check(self) -> None:
        if not 1 <= self.oldest <= self.newest or self.requires & ~self.offers:
            raise BadMessage("Hello: versions or features contradict each other")


@dataclass(frozen=True, slots=True)
class Welcome(Message):
    """The session is open; here is what it may cost."""

    TYPE = 2
    node: Uuid
    cluster: Uuid
    version: U8
    features: U64
    """That both know: only these are used."""
    requests: Annotated[int, Int(4, 1, 65536)]
    """How many requests may be unanswered at once..."""
    request_bytes: Annotated[int, Int(8, MIN_ROOM_BYTES, 1 << 40)]
    """...and how many bytes of them and their answers' payload."""
    program: Annotated[str, Text(64)]


@dataclass(frozen=True, slots=True)
class Ping(Message):
    """Are you there?"""

    TYPE = 3
    token: U64


@dataclass(frozen=True, slots=True)
class Pong(Message):
    """Yes."""

    TYPE = 4
    token: U64
    """Of the PING."""


@dataclass(frozen=True, slots=True)
class Error(Message):
    """Instead of an answer; with request 0 it ends the session."""

    TYPE = 5
    code: U16
    detail: U64
    text: Annotated[str, Text(1024)]


@dataclass(frozen=True, slots=True)
class Cancel(Message):
    """Nobody waits for the answer of this request any more. Answered by ERROR CANCELLED under the
    same number, also where there is no such request."""

    TYPE = 6


@dataclass(frozen=True, slots=True)
class Bye(Message):
    """The sender ends the session: it is going down."""

    TYPE = 7


# -- nodes


@dataclass(frozen=True, slots=True)
class NodeStatus(Message):
    """How a node is."""

    TYPE = 9
    state: Annotated[str, Text(64)]
    """"serving", "sealed", ..."""
    program: Annotated[str, Text(64)]
    uptime_s: U64
    volumes: U32
    journal_bytes: U64
    free_bytes: U64
    nodes: U64
    """Digest of the nodes that it knows: another one than ours is a reason to ask for them."""


@dataclass(frozen=True, slots=True)
class Status(Request):
    """How are you?"""

    TYPE = 8
    ANSWER = NodeStatus


@dataclass(frozen=True, slots=True)
class NodeList(Message):
    """Nodes of the cluster."""

    TYPE = 11
    records: Annotated[tuple[str, ...], Many((Text(MAX_VALUE_BYTES),), MAX_NODES)]
    """NodeRecords in their canonical form, by id."""
    more: Bool
    """Whether there are others behind the last."""


@dataclass(frozen=True, slots=True)
class Nodes(Request):
    """Which nodes do you know, behind this id?"""

    TYPE = 10
    ANSWER = NodeList
    after: Uuid


@dataclass(frozen=True, slots=True)
class Joined(Message):
    """The token is used up, and the node is of the cluster: both durable."""

    TYPE = 13
    cluster: Uuid
    record: Annotated[str, Text(MAX_VALUE_BYTES)]
    """Its own NodeRecord, as the cluster has it; the others it asks for by NODES."""


@dataclass(frozen=True, slots=True)
class Join(Request):
    """All that may be asked by who connects with a token's key."""

    TYPE = 12
    ANSWER = Joined
    node: Uuid
    name: Annotated[str, Text(64)]
    public_key: Annotated[bytes, Raw(32)]
    addresses: Annotated[tuple[str, ...], Many((Text(128),), 8)]


# -- journal groups


@dataclass(frozen=True, slots=True)
class Ack(Message):
    """What the member has of the volume, after what was asked."""

    TYPE = 17
    epoch: Epoch
    received: Seq
    """Newest record in its journal file: kill -9 does not lose it."""
    durable: Seq
    """Newest record that a power cut does not lose."""

    def check(self) -> None:
        if self.durable > self.received:
            raise BadMessage(f"Ack: {self.durable} records synced of {self.received}")


@dataclass(frozen=True, slots=True)
class Open(Request):
    """The volume is open in this epoch, from `seq` on; noted, synced, before the answer."""

    TYPE = 16
    ANSWER = Ack
    volume: Uuid
    epoch: Epoch
    seq: Seq


@dataclass(frozen=True, slots=True)
class Append(Request):
    """Records as a tap gives them (native/src/tap.h), all of epoch `written`, without a gap; whole
    ones in each frame. Asked in the name of `epoch`, which the member has promised."""

    TYPE = 18
    ANSWER = Ack
    FRAMES = (1, MAX_APPEND_FRAMES)
    volume: Uuid
    epoch: Epoch
    written: Epoch
    """In which the records were written: `epoch`, or an earlier one, where a member catches up."""
    first_seq: Annotated[int, Int(8, 1, MAX_SEQ)]
    last_seq: Annotated[int, Int(8, 1, MAX_SEQ)]
    sync: Bool
    """Whether they are to be durable before the answer."""
    payload: tuple[Buffer, ...]

    def check(self) -> None:
        _check_records(self)


@dataclass(frozen=True, slots=True)
class AppendBrief(Request):
    """An APPEND without some chunks of its payload, which the member puts in from its own store:
    references, in order, say which belong where. Only with REFERENCES."""

    TYPE = 41
    ANSWER = Ack
    FRAMES = (1, MAX_APPEND_FRAMES)
    volume: Uuid
    epoch: Epoch
    written: Epoch
    first_seq: Annotated[int, Int(8, 1, MAX_SEQ)]
    last_seq: Annotated[int, Int(8, 1, MAX_SEQ)]
    sync: Bool
    chunk_size: Annotated[int, Int(4, MIN_CHUNK_SIZE, MAX_CHUNK_SIZE)]
    """Of the volume; so long is what is left out each time."""
    references: Annotated[
        tuple[tuple[int, int, bytes], ...],
        Many((Int(1), Int(4), Raw(CHUNK_ID_LENGTH)), MAX_REFERENCES),
    ]
    """Frame, offset in it as it is with what was left out, and id of the chunk; zeros: it is of
    zeros."""
    payload: tuple[Buffer, ...]

    @property
    def room(self) -> int:
        """What is put in takes memory there as well."""
        return len(self.references) * self.chunk_size

    def check(self) -> None:
        _check_records(self)
        if self.room > MAX_PAYLOAD_BYTES:
            raise BadMessage(f"AppendBrief: refers to {self.room} bytes")
        places = [row[:2] for row in self.references]
        if places != sorted(set(places)) or (places and places[-1][0] >= len(self.payload)):
            raise BadMessage("AppendBrief: its references are not in order")


@dataclass(frozen=True, slots=True)
class Sync(Request):
    """Answered when records up to `seq` are durable."""

    TYPE = 19
    ANSWER = Ack
    volume: Uuid
    epoch: Epoch
    seq: Seq


@dataclass(frozen=True, slots=True)
class Sealed(Message):
    """The promise is durable, and so is all of the chain."""

    TYPE = 21
    epoch: Epoch
    """Below which it takes no record."""
    quiet_ms: U32
    """So long ago it last answered a primary of the volume (transport/group/lease.py), at most."""
    start: Seq
    ends: Annotated[tuple[tuple[int, int], ...], Many((Int(8), Int(8)), MAX_EPOCHS)]
    """(epoch, seq of its last record), see transport/group/chain.py."""

    def check(self) -> None:
        try:
            _ = self.chain
        except BadChain as error:
            raise BadMessage(f"Sealed: {error}") from None

    @property
    def chain(self) -> Chain:
        return Chain(self.ends, self.start)


@dataclass(frozen=True, slots=True)
class Seal(Request):
    """Take no record of an epoch below this one, and say what there is."""

    TYPE = 20
    ANSWER = Sealed
    volume: Uuid
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Log(Message):
    """Records behind the one that was asked for; none when there are none, or, with `more`, when
    the log does not reach back to it."""

    TYPE = 23
    FRAMES = (0, 1)
    epoch: Epoch
    first_seq: Seq
    last_seq: Seq
    more: Bool
    payload: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadLog(Request):
    """Records behind `after`, all of one epoch, in at most `limit` bytes."""

    TYPE = 22
    ANSWER = Log
    volume: Uuid
    epoch: Epoch
    """Of record `after`, as the asker knows it: one that has another such record refuses."""
    after: Seq
    limit: Annotated[int, Int(4, 1, MAX_RECORDS_BYTES)]

    @property
    def room(self) -> int:
        return self.limit


@dataclass(frozen=True, slots=True)
class Close(Request):
    """The primary goes: nothing more comes in this epoch."""

    TYPE = 24
    ANSWER = Ack
    volume: Uuid
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Looked(Message):
    """How the volume is there, at this moment: decides nothing."""

    TYPE = 26
    epoch: Seq
    """Open there; 0 before the first."""
    promise: Seq
    """Below which it takes no record."""
    received: Seq
    durable: Seq
    quiet_ms: U32
    """As in SEALED."""
    serving: Bool
    """It is the primary, with a lease."""

    def check(self) -> None:
        if self.durable > self.received:
            raise BadMessage(f"Looked: {self.durable} records synced of {self.received}")


@dataclass(frozen=True, slots=True)
class Look(Request):
    """How is the volume? Changes nothing."""

    TYPE = 25
    ANSWER = Looked
    volume: Uuid


@dataclass(frozen=True, slots=True)
class Take(Request):
    """Become the volume's primary: I, who am it in this epoch, agree. Answered when it is open."""

    TYPE = 27
    ANSWER = Ack
    volume: Uuid
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Undo(Request):
    """Go back to record `keep_seq`, of epoch `keep_epoch`: what is behind it nobody acknowledged.
    In the name of `epoch`, which the member has promised; durable before the answer."""

    TYPE = 28
    ANSWER = Ack
    volume: Uuid
    epoch: Epoch
    keep_epoch: Epoch
    keep_seq: Seq


@dataclass(frozen=True, slots=True)
class Compared(Message):
    """What the stream may be a difference to, and where that differs."""

    TYPE = 40
    base: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]
    """Id of its commit; zeros: there is none, and all nodes differ."""
    unlike: Annotated[tuple[int, ...], Many((Int(2),), MAX_NODES_COMPARED)]
    """Indexes of the nodes that it does not have at their places."""


@dataclass(frozen=True, slots=True)
class Compare(Request):
    """All of the volume is to come as a stream: which of these nodes of its tree are others there?
    Without any it begins: the member picks what the stream may be a difference to, and keeps it."""

    TYPE = 39
    ANSWER = Compared
    volume: Uuid
    epoch: Epoch
    nodes: Annotated[
        tuple[tuple[int, int, bytes], ...],
        Many((Int(8), Int(1), Raw(CHUNK_ID_LENGTH)), MAX_NODES_COMPARED),
    ]
    """Place (end, rank) and id of each."""


@dataclass(frozen=True, slots=True)
class Streamed(Message):
    """How much of a stream has come; nothing of it is durable before it has landed."""

    TYPE = 31
    at: U64


@dataclass(frozen=True, slots=True)
class Stream(Request):
    """A piece of a stream (docs/stream-format.md) of all of the volume, without what the member
    has, for one that the log does not lead to; `at` 0 begins it. With `last` it is stored, durably,
    before the answer."""

    TYPE = 30
    ANSWER = Streamed
    FRAMES = (1, 1)
    volume: Uuid
    epoch: Epoch
    at: U64
    last: Bool
    payload: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class Adopt(Request):
    """Make what came as a stream the volume, at the end of this chain; of what was there versions
    up to seq `keep` stay. Its snapshots are those of the payload (volume/namedstates.py), whose
    states came as streams before. Durable before the answer."""

    TYPE = 38
    ANSWER = Ack
    FRAMES = (0, 1)
    volume: Uuid
    epoch: Epoch
    keep: Seq
    start: Seq
    ends: Annotated[tuple[tuple[int, int], ...], Many((Int(8), Int(8)), MAX_EPOCHS)]
    payload: tuple[Buffer, ...] = ()

    def check(self) -> None:
        try:
            end = Chain(self.ends, self.start).end
        except BadChain as error:
            raise BadMessage(f"Adopt: {error}") from None
        if end[0] != self.epoch or self.keep > end[1]:
            raise BadMessage(f"Adopt: {end} in epoch {self.epoch}, keeping {self.keep}")


@dataclass(frozen=True, slots=True)
class Create(Request):
    """Make your part of a new volume, empty, and promise `epoch`; durable before the answer."""

    TYPE = 29
    ANSWER = Ack
    volume: Uuid
    epoch: Epoch
    name: Annotated[str, Text(128)]
    size: Annotated[int, Int(8, 1, MAX_VOLUME_SIZE)]
    block_size: U32
    chunk_size: U32


# -- chunks


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


def _check_records(message: Append | AppendBrief) -> None:
    if message.last_seq < message.first_seq or message.written > message.epoch:
        records = f"records {message.first_seq} to {message.last_seq} of epoch {message.written}"
        raise BadMessage(f"{type(message).__name__}: {records} in epoch {message.epoch}")


def _check_chunks(
    chunks: tuple[tuple[bytes, int, int, int], ...], payload: tuple[Buffer, ...]
) -> None:
    if len(chunks) != len(payload):
        raise BadMessage(f"{len(chunks)} chunks in {len(payload)} frames")
    for (_, _, _, raw_length), frame in zip(chunks, payload, strict=True):
        if memoryview(frame).nbytes > raw_length:
            raise BadMessage("a chunk is stored in more bytes than it has")


# -- shards

MAX_PART_BYTES: Final = MAX_FRAME_BYTES  # of a shard, in one message
Count = Annotated[int, Int(1, 1, 20)]
ShardNumber = Annotated[int, Int(1, 0, 19)]
ShardAt = Annotated[int, Int(8, 0, 1 << 32)]
LACKING: Final = (Raw(CHUNK_ID_LENGTH), Int(1, 1, 20), Int(1, 1, 20), Int(1, 0, 19))
LAG: Final = (Raw(16), Int(8), Int(8), Int(8))


@dataclass(frozen=True, slots=True)
class ShardAck(Message):
    """Done."""

    TYPE = 49
    size: U64
    """Of the file, as far as it is written."""


@dataclass(frozen=True, slots=True)
class PutShard(Request):
    """Write this part of a shard file that is not finished, beginning it if need be. Nothing of it
    is durable before it is finished."""

    TYPE = 48
    ANSWER = ShardAck
    FRAMES = (1, 1)
    device: Uuid
    pack: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]
    data: Count
    parity: Count
    number: ShardNumber
    at: ShardAt
    payload: tuple[Buffer, ...]


@dataclass(frozen=True, slots=True)
class FinishShard(Request):
    """All of it is written: verify it, make it durable, give it its name."""

    TYPE = 50
    ANSWER = ShardAck
    device: Uuid
    pack: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]
    data: Count
    parity: Count
    number: ShardNumber


@dataclass(frozen=True, slots=True)
class DropShard(Request):
    """Forget what was written of a shard that is not finished. A finished one stays: a node removes
    by itself what no row of the MetaStore names."""

    TYPE = 51
    ANSWER = ShardAck
    device: Uuid
    pack: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]
    data: Count
    parity: Count
    number: ShardNumber


@dataclass(frozen=True, slots=True)
class ShardPart(Message):
    """What the file has there; nothing behind its end."""

    TYPE = 53
    FRAMES = (0, 1)
    size: U64
    """Of the file."""
    payload: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class GetShard(Request):
    """A part of a finished shard's file; with `uncached` as the disk has it, past the page cache.
    UNKNOWN: there is no such shard."""

    TYPE = 52
    ANSWER = ShardPart
    device: Uuid
    pack: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]
    data: Count
    parity: Count
    number: ShardNumber
    at: ShardAt
    length: Annotated[int, Int(4, 1, MAX_PART_BYTES)]
    uncached: Bool

    @property
    def room(self) -> int:
        return self.length


@dataclass(frozen=True, slots=True)
class NewStripe(Request):
    """This pack is a stripe now, says its row: see whether you have the same chunks. The answer's
    size is 0 when the node has no stub of it, and another number when it has, or may have."""

    TYPE = 54
    ANSWER = ShardAck
    pack: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]


MAX_LACKING: Final = 4096
NEVER_MS: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class StripeStatus(Message):
    """What a node has to do for stripes, and what is wrong with the shards on its device."""

    TYPE = 56
    listed_ms: U32
    """So long ago it read all rows; 2^32 - 1: never."""
    doing: Annotated[str, Text(64)]
    """What it is at, "" if nothing."""
    cold: U64
    """Bytes of its cold packs that are to become stripes..."""
    cold_rate: U64
    """...and how many of them a second do; 0 where that is not known, here and below."""
    coming: U64
    """Bytes of shards that are to come to its device."""
    coming_rate: U64
    broken: U64
    """Bytes of shards that are to be made again on it."""
    broken_rate: U64
    lacking: Annotated[tuple[tuple[bytes, int, int, int], ...], Many(LACKING, MAX_LACKING)]
    """Shards that rows have on its device, and that are damaged or not there."""
    more: Bool
    """Whether there are more of these."""


@dataclass(frozen=True, slots=True)
class Stripes(Request):
    """How are stripes, as far as that is yours to tell?"""

    TYPE = 55
    ANSWER = StripeStatus


MAX_LISTED: Final = 256  # packs
MAX_OF_PACK: Final = 20  # shards of one on one device


@dataclass(frozen=True, slots=True)
class ShardList(Message):
    """Shards of a device by what their headers say, and stripes that the node has stubs of, both of
    the same packs."""

    TYPE = 60
    device: Uuid
    shards: Annotated[
        tuple[tuple[bytes, int, int, int, int, int, bytes], ...],
        Many((*LACKING, Int(8), Int(8), Raw(16)), MAX_LISTED * MAX_OF_PACK),
    ]
    """Pack, k, m, number; bytes of the pack and of a shard's payload; digest of the stripe."""
    damaged: U32
    """Files of shards that cannot be used."""
    stubs: Annotated[tuple[bytes, ...], Many((Raw(CHUNK_ID_LENGTH),), MAX_LISTED)]
    next: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]
    """There are others behind this pack; zeros: there are none."""


@dataclass(frozen=True, slots=True)
class ListShards(Request):
    """Which shards and stubs do you have, behind this pack?"""

    TYPE = 59
    ANSWER = ShardList
    after: Annotated[bytes, Raw(CHUNK_ID_LENGTH)]


# -- members that are behind

MAX_BEHIND: Final = 64


@dataclass(frozen=True, slots=True)
class Lags(Message):
    """What members lack of a volume, says its primary."""

    TYPE = 58
    members: Annotated[tuple[tuple[bytes, int, int, int], ...], Many(LAG, MAX_BEHIND)]
    """Node; bytes that it lacks; how many ms ago the first record was written that it lacks; in how
    many ms it will have caught up. Each plus one, and 0 where nobody can tell."""


@dataclass(frozen=True, slots=True)
class Lag(Request):
    """Who is behind, and how far? Changes nothing."""

    TYPE = 57
    ANSWER = Lags
    volume: Uuid


ALL: Final[tuple[type[Message], ...]] = (
    *(Hello, Welcome, Ping, Pong, Error, Cancel, Bye),
    *(Status, NodeStatus, Nodes, NodeList, Join, Joined),
    *(Open, Ack, Append, AppendBrief, Sync, Seal, Sealed, ReadLog, Log, Close),
    *(Look, Looked, Take, Undo, Create, Compare, Compared, Stream, Streamed, Adopt),
    *(Have, Want, Chunks, Stored, Get, ChunkList),
    *(PutShard, ShardAck, FinishShard, DropShard, GetShard, ShardPart, NewStripe),
    *(Stripes, StripeStatus, Lag, Lags, ListShards, ShardList),
)
KINDS: Final = {kind.TYPE: kind for kind in ALL}


def name_of(kind: int) -> str:
    """Of a type, as the protocol's description has it, in lower case: "append_brief"."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", KINDS[kind].__name__).lower()


assert len(KINDS) == len(ALL)
assert MAX_MESSAGE_BYTES <= MIN_ROOM_BYTES
