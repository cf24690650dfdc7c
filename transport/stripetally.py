"""How the stripes of a cluster are: rows, and where their shards can be had, counted together.

    whole        all shards are there
    degraded     it can be read, and some of its shards cannot
    unreadable   it cannot be read now: too many of its shards are on nodes that are away
    lost         fewer shards are left anywhere than it takes

A shard is *gone* when its row has no device for it, when the device has failed, and when the node
that serves it says that it is damaged or not there; *away* when that node cannot be asked, or the
map does not know the device (etcd has gone back, perhaps): then nobody can tell how it is.
"""

import enum
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from transport.devicemap import Device, DeviceMap
from transport.packrow import PackRow
from transport.shardfile import ShardName

MAX_LOST: Final = 64
"""Packs that are named."""


class State(enum.StrEnum):
    """Of one stripe."""

    WHOLE = "whole"
    DEGRADED = "degraded"
    UNREADABLE = "unreadable"
    LOST = "lost"


READABLE: Final = (State.WHOLE, State.DEGRADED)


@dataclass(slots=True)
class Count:
    stripes: int = 0
    bytes: int = 0
    """Of the packs."""

    def add(self, row: PackRow) -> None:
        self.stripes += 1
        self.bytes += row.size


@dataclass(slots=True)
class Tally:
    states: dict[State, Count] = field(default_factory=lambda: {each: Count() for each in State})
    making: Count = field(default_factory=Count)
    """Packs whose shards are being written."""
    removing: Count = field(default_factory=Count)
    given_up: Count = field(default_factory=Count)
    """Of those that cannot be read, the ones that somebody has given up."""
    shard_bytes: int = 0
    """What rows say is stored of all shards."""
    lost: list[bytes] = field(default_factory=list)
    """Ids of packs that are lost, the first of them."""

    @property
    def stripes(self) -> int:
        return sum(each.stripes for each in self.states.values())

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.states.values())


class Judge:
    """`away`: whether a device cannot be asked, nor its node; `lacking`: shards that nodes, by id,
    say are damaged or not there on their devices. A node that a shard has moved away from may still
    say so of what it had: that is nothing of where it is now."""

    def __init__(
        self,
        devices: DeviceMap,
        away: Callable[[Device], bool],
        lacking: Collection[tuple[str, ShardName]] = (),
    ) -> None:
        self._lacking = lacking
        self._lacked = {name.pack_id for _, name in lacking}
        self._known = known = devices.devices
        self._failed = {id_ for id_, each in known.items() if not each.readable}
        self._good = {id_ for id_, each in known.items() if each.readable and not away(each)}

    def state(self, row: PackRow) -> State:
        if row.pack_id not in self._lacked and self._good.issuperset(row.shards):
            return State.WHOLE
        gone = away = 0
        for number, device in enumerate(row.shards):
            if device is None or device in self._failed:
                gone += 1
            elif device not in self._good:
                away += 1
            elif (self._known[device].node_id, row.name(number)) in self._lacking:
                gone += 1
        spare = len(row.shards) - row.data
        if gone > spare:
            return State.LOST
        if gone + away > spare:
            return State.UNREADABLE
        return State.DEGRADED if gone or away else State.WHOLE


def tally(rows: Iterable[PackRow], judge: Judge) -> Tally:
    found = Tally()
    for row in rows:
        if not row.shards:
            found.making.add(row)
            continue
        if row.removing:
            found.removing.add(row)
            continue
        state = judge.state(row)
        found.states[state].add(row)
        found.shard_bytes += row.shard_bytes * (len(row.shards) - row.shards.count(None))
        if state is State.LOST and len(found.lost) < MAX_LOST:
            found.lost.append(row.pack_id)
        if row.given_up and state in (State.LOST, State.UNREADABLE):
            found.given_up.add(row)
    return found
