"""Messages between the members of a volume: its records, its chain, its copies, who is behind."""

from dataclasses import dataclass
from typing import Annotated, Final

from typing_extensions import Buffer

from transport.errors import BadMessage
from transport.group.chain import MAX_EPOCHS, BadChain, Chain
from transport.peer.fields import MAX_SEQ, Int, Many, Raw, Text
from transport.peer.requests import U32, U64, Bool, Epoch, Request, Seq, Uuid
from transport.peer.wire import MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, Message
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT
from volume.model import MAX_CHUNK_SIZE, MAX_VOLUME_SIZE, MIN_CHUNK_SIZE

MAX_REFERENCES: Final = 1024  # chunks in one APPEND_BRIEF; each takes at least MIN_CHUNK_SIZE
MAX_NODES_COMPARED: Final = FAN_OUT  # in one COMPARE: all that are under another one
MAX_RECORDS_BYTES: Final = MAX_FRAME_BYTES
MAX_APPEND_FRAMES: Final = 64  # each is what a tap gave at once
MAX_BEHIND: Final = 64  # members in one LAGS
LAG: Final = (Raw(16), Int(8), Int(8), Int(8))
"""Node, bytes, ms, ms: as LAGS says."""


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


def _check_records(message: Append | AppendBrief) -> None:
    if message.last_seq < message.first_seq or message.written > message.epoch:
        records = f"records {message.first_seq} to {message.last_seq} of epoch {message.written}"
        raise BadMessage(f"{type(message).__name__}: {records} in epoch {message.epoch}")
