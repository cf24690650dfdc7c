"""Values that the control API answers with, beside those of `volume.model`, and an error.

Plain dataclasses, so that the CLI can read them without loading the server. A field may be added
within /v1, none is renamed or removed.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from blockd.access.rules import Rule
from volume.model import StoreStatus

T = TypeVar("T")
Decode = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One daemon. Addresses are HOST:PORT, or the path of a unix socket."""

    version: str
    pid: int
    uptime_s: float
    nbd: tuple[str, ...]
    control: str
    tls: str
    """"off", "allow" or "require"."""
    connection_count: int
    """NBD's."""
    store: StoreStatus
    iscsi: tuple[str, ...] = ()
    """Portals, HOST:PORT."""
    session_count: int = 0
    """iSCSI's."""
    auto_targets: bool = False
    """Whether every volume has an iSCSI target by itself."""
    metrics: tuple[str, ...] = ()
    """Where a server of its own has /metrics, HOST:PORT."""


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """One NBD connection; counts and bytes are since it was opened."""

    peer: str
    export: str | None
    """None while it negotiates."""
    tls: bool
    names: tuple[str, ...]
    """Who the client is, as proved by its certificate or pre-shared key."""
    age_s: float
    in_flight: int
    read_count: int
    read_bytes: int
    write_count: int
    write_bytes: int
    error_count: int
    id: str = ""
    """What `blockd client disconnect` takes; no other connection has it, until a restart."""
    request_count: int = 0
    """Of every kind."""


@dataclass(frozen=True, slots=True)
class AccessInfo:
    """Who may attach a volume, over both protocols."""

    volume: str
    rules: tuple[Rule, ...] | None
    """None: the volume has no list, and is as open as its listeners; (): nobody is let in."""
    damaged: bool
    """The list cannot be read: nobody is let in."""
    revision: str
    """Equal lists have the same."""
    cut: tuple[str, ...] = ()
    """Ids of clients that this change has cut."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """Clients that have been disconnected."""

    ids: tuple[str, ...]
    cut: tuple[str, ...]
    """Those of them that did not finish what was in flight in time."""


@dataclass(frozen=True, slots=True)
class VersionDiff:
    """Where two versions differ, in whole chunks of the volume. Sizes are bytes."""

    old: str
    new: str
    old_size: int
    new_size: int
    changed_bytes: int
    extent_count: int
    """Of all extents, however many were asked for."""
    extents: tuple[tuple[int, int], ...]
    """(offset, length), ascending; the first so many of them."""


@dataclass(frozen=True, slots=True)
class DamageInfo:
    """Something that is stored and is not what it should be."""

    pack: int
    offset: int
    """Of the entry in the pack, bytes; 0 when the pack as a whole is meant."""
    chunk: str | None
    """Its id (hex); None: the pack as a whole."""
    what: str


@dataclass(frozen=True, slots=True)
class ScrubInfo:
    """How far scrub is. Times are nanoseconds since 1970."""

    running: bool
    requested: bool
    """Somebody asked for this pass; otherwise it takes its time."""
    progress: float
    """Of the pass, 0.0 to 1.0."""
    scanned_bytes: int
    total_bytes: int
    started_ns: int | None
    finished_ns: int | None
    """When the last pass came to its end."""
    next_ns: int | None
    """When the next pass begins; None while one goes on."""
    damage_count: int
    damages: tuple[DamageInfo, ...]
    """The first of them."""


@dataclass(frozen=True, slots=True)
class DamageLocation:
    """Where damage shows."""

    name: str
    """A volume, or volume@version."""
    offset: int | None
    """Bytes in the volume; None: only the version's commit is hit, its data is not."""
    length: int
    chunk: str
    """Id (hex)."""
    what: str


@dataclass(frozen=True, slots=True)
class DamageLocations:
    locations: tuple[DamageLocation, ...]
    more: bool
    """There are others, which were left out because of the limit."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A node of the cluster, and how the node that is asked stands with it."""

    node: str
    """Its id, 32 hex digits."""
    name: str
    addresses: tuple[str, ...]
    """Where its peers reach it, HOST:PORT, best first."""
    me: bool
    """Whether it is the one that was asked."""
    connected: bool
    """Whether it can be asked things."""
    since_s: float
    """For how long that has been so."""
    reason: str
    """Why it is not connected; empty when it is, or nothing is known yet."""
    slow: bool
    """Whether a request to it has been unanswered for too long."""
    asks_us: bool
    """Whether it has a session with this node, in which it can ask things."""
    unanswered: int
    """Requests to it that have not ended."""


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """A cluster as one of its nodes sees it."""

    cluster: str
    """Its id, 32 hex digits."""
    node: str
    """Id of the node that was asked."""
    name: str
    """Of that node."""
    listen: tuple[str, ...]
    """Where it takes connections of other nodes, HOST:PORT."""
    problem: str
    """Why what is shown may be old, or this node is not in the cluster; empty when all is well."""
    refused: int
    """Connections that were not let in, since the start."""
    nodes: tuple[PeerInfo, ...]
    """By name."""
    sent: tuple[tuple[str, int], ...] = ()
    """Bytes of messages to other nodes since the start, by what they are (docs/peer-protocol.md);
    before encryption."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What one node needs to join: as secret as a password until it is used."""

    token: str
    expires_ns: int


class NoCluster(Exception):
    """The daemon is a node by itself."""

    code = "no_cluster"

    def __init__(self) -> None:
        super().__init__(
            "this daemon is in no cluster: its configuration has no [cluster] (docs/cluster.md)"
        )


class NoSuchClient(Exception):
    """No connection or session that is open has that id."""

    code = "no_such_client"

    def __init__(self, client_id: str) -> None:
        super().__init__(
            f"client {client_id}: there is none (any more); `blockd client list` shows who is there"
        )


def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
    """`data` as dataclass `cls`. Unknown fields (of a newer daemon) are ignored.

    Raises ValueError when a field is missing: the daemon is older than this program.
    """
    decode = _decoder(cast(Any, cls))
    assert decode is not None, cls
    return cast(T, decode(data))


@functools.cache
def _decoder(hint: Any) -> Decode | None:
    """What makes a value of type `hint` of parsed JSON; None when it is one already."""
    if dataclasses.is_dataclass(hint):
        return _object_decoder(hint)
    arguments = get_args(hint)
    if get_origin(hint) is tuple:
        item = _decoder(arguments[0]) if arguments[-1] is Ellipsis else None
        return tuple if item is None else lambda values: tuple(map(item, values))
    inner = [_decoder(each) for each in arguments if each is not type(None)]
    if get_origin(hint) in (Union, UnionType) and len(inner) == 1 and inner[0] is not None:
        decode = inner[0]
        return lambda value: None if value is None else decode(value)
    return None


def _object_decoder(cls: Any) -> Decode:
    hints = get_type_hints(cls)
    fields = [(field.name, _decoder(hints[field.name])) for field in dataclasses.fields(cls)]

    def decode(data: Mapping[str, Any]) -> Any:
        try:
            return cls(*[data[name] if of is None else of(data[name]) for name, of in fields])
        except KeyError as error:
            missing = error.args[0]
            raise ValueError(
                f"the daemon's answer lacks {missing!r}; is it an older version?"
            ) from None

    return decode
