"""Messages of a session itself, and about nodes: how one is, which there are, joining."""

import enum
from dataclasses import dataclass
from typing import Annotated, Final

from transport.errors import BadMessage
from transport.peer.fields import Int, Many, Raw, Text
from transport.peer.requests import U8, U16, U32, U64, Bool, Request, Uuid
from transport.peer.wire import Message
from volume.metastore_records import MAX_VALUE_BYTES

MIN_ROOM_BYTES: Final = 16 << 20  # the longest message fits
MAX_NODES: Final = 64  # records in one NODE_LIST


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
    ANEW = 13
    """It goes on only with all of the volume, and nothing of what it has counts: every state that
    has a name has to come as well."""


class Feature(enum.IntFlag):
    """What a node can do beyond version 1. A bit that is required and not known refuses."""

    NONE = 0
    REFERENCES = 1
    """It takes APPEND_BRIEF."""
    REMAKE = 2
    """It answers GET_AT."""


FEATURES: Final = Feature.REFERENCES | Feature.REMAKE
"""Of this program."""


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
