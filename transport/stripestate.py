"""What a round of `transport.striping` works with and has seen: its pace, what it asks of the
daemon, what it counts, what is in the way; what is on each device, and what is to move."""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from transport.devicemap import DeviceMap, Level
from transport.errors import TransportError
from transport.moves import Move, Placed, placed_on
from transport.packrow import PackRow
from transport.stripetally import Told
from volume.disk import Disk
from volume.errors import VolumeError

ERRORS: Final = (VolumeError, TransportError, OSError)


@dataclass(frozen=True, slots=True)
class StripePace:
    """Seconds."""

    convert: bool = False
    """Whether cold packs of this node become stripes, and its copies go for those of others."""
    cold_s: float = 3600.0
    condemn_s: float = 3600.0
    """A stripe that nobody needs, and a file that no row names, stay for so long."""
    level: Level = Level.HOST
    unread_s: float = 0.0
    """A pack that clients have read within this time is not cold, and its chunks are not left to a
    stripe."""


@dataclass(slots=True)
class StripeCounters:
    converted: int = 0
    converted_bytes: int = 0
    joined: int = 0
    left: int = 0
    removed: int = 0
    moved: int = 0
    moved_bytes: int = 0
    repaired: int = 0
    repaired_bytes: int = 0
    tidied: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a striper asks of the daemon; any thread."""

    devices: Callable[[], DeviceMap]
    """The newest map. MetaStoreUnavailable."""
    nodes: Callable[[], Collection[str]]
    """Ids of all nodes of the cluster. MetaStoreUnavailable."""
    disk_of: Callable[[str, bool], Disk | None]
    """A device for reading, or (True) for writing too; None: it cannot be had now."""
    gone: Callable[[str], bool]
    """Whether a device is in the map as failed: nothing of it comes back."""
    used: Callable[[bytes], bool]
    """Whether another node may find chunks in that stripe: it says so, or cannot be asked."""
    rank: Callable[[], int]
    """How many of the nodes that are connected come before this one."""
    tell: Callable[[bytes], None]
    """Tell the other nodes of a new stripe."""
    emptied: Callable[[str], None]
    """Nothing is on a device any more that was to be drained. TransportError, VolumeError."""
    told: Callable[[], Told]
    """By other nodes, asked now."""


class RoundNotes:
    """What a round counts, and what was in its way."""

    def __init__(self, log: logging.Logger) -> None:
        self.counters = StripeCounters()
        self.problems: dict[str, str] = {}
        """By what they are about."""
        self._log = log

    @contextlib.contextmanager
    def counted(self, pack_id: bytes, what: str) -> Iterator[None]:
        """An error is of one stripe only."""
        try:
            yield
        except ERRORS as error:
            self.counters.failed += 1
            self.problems[pack_id.hex()] = f"{what}: {error}"
            self._log.warning("stripe: %s failed pack=%s error=%s", what, pack_id.hex(), error)


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """What rows say of one device."""

    shards: int
    shard_bytes: int
    leaving: int
    """Of them, those that belong elsewhere, or are lost with it."""
    leaving_bytes: int


@dataclass(slots=True)
class StripeState:
    """What the last whole round has seen."""

    rows: int = 0
    unreadable: int = 0
    """Stripes with fewer good shards than they need."""
    waiting: int = 0
    """Moves that are planned, of all devices."""
    waiting_bytes: int = 0
    rebuilding: int = 0
    """Of them, shards that are to be computed, since nobody has them."""
    rebuilding_bytes: int = 0
    devices: dict[str, DeviceUse] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    """What is in the way, by what it is about."""


def state_of(
    rows: Mapping[bytes, PackRow],
    placed: list[Placed],
    moves: list[Move],
    unreadable: int,
    devices: DeviceMap,
) -> StripeState:
    """`rows` by pack id; where their shards are (`placed`), and which are to move."""
    leaving: dict[str, list[int]] = {}
    for move in moves:
        held = rows[move.pack_id].shards[move.number]
        if held is not None:
            leaving.setdefault(held, []).append(move.length)
    uses = {}
    for device in devices.devices:
        going = leaving.get(device, [])
        uses[device] = DeviceUse(*placed_on(placed, device), len(going), sum(going))
    return StripeState(
        rows=len(rows),
        unreadable=unreadable,
        waiting=len(moves),
        waiting_bytes=sum(move.length for move in moves),
        rebuilding=sum(move.source is None for move in moves),
        rebuilding_bytes=sum(move.length for move in moves if move.source is None),
        devices=uses,
    )
