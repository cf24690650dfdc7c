"""What a round of `transport.striping` has seen: what is on each device, and what is to move."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from transport.devicemap import DeviceMap
from transport.moves import Move, Placed, placed_on
from transport.packrow import PackRow


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
        devices=uses,
    )
