"""Messages about stripes: shards on the devices of other nodes, and how stripes are."""

from dataclasses import dataclass
from typing import Annotated, Final

from typing_extensions import Buffer

from transport.peer.fields import Int, Many, Raw, Text
from transport.peer.requests import U32, U64, Bool, Request, Uuid
from transport.peer.wire import MAX_FRAME_BYTES, Message
from volume.layout import CHUNK_ID_LENGTH

MAX_PART_BYTES: Final = MAX_FRAME_BYTES  # of a shard, in one message
Count = Annotated[int, Int(1, 1, 20)]  # of shards of a stripe; k + m is 20 at most
ShardNumber = Annotated[int, Int(1, 0, 19)]
ShardAt = Annotated[int, Int(8, 0, 1 << 32)]  # offset in its file
LACKING: Final = (Raw(CHUNK_ID_LENGTH), Int(1, 1, 20), Int(1, 1, 20), Int(1, 0, 19))
"""Pack, k, m, number."""


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


MAX_LACKING: Final = 4096  # shards in one STRIPE_STATUS
NEVER_MS: Final = (1 << 32) - 1  # for `listed_ms`


@dataclass(frozen=True, slots=True)
class StripeStatus(Message):
    """What a node has to do for stripes, and what is wrong with the shards on its device."""

    TYPE = 56
    listed_ms: U32
    """So long ago it read all rows, and looked which of its shards are there; 2^32 - 1: it has not,
    since its start, or cannot: then nobody knows what it lacks."""
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
