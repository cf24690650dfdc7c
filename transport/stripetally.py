"""How the stripes of a cluster are: rows, and where their shards can be had, counted together.

    whole        all shards are there
    degraded     it can be read, and some of its shards cannot
    unreadable   it cannot be read now: too many of its shards are on nodes that are away
    lost         fewer shards are left anywhere than it takes

A shard is *gone* when its row has no device for it, when the device has failed, and when the node
that serves it says that it is damaged or not there; *away* when that node cannot be asked or does
not know it, or the map does not know the device (etcd has gone back, perhaps): then nobody can tell
how it is.

What a node lacks counts only where it knows all of it (`told_by`): not before it has looked at its
device since its start, not when it cannot list it, and not when it lacks more than it can name.
Whoever asks nodes how their shards are, for status, for trust or to give one up, asks so.
"""

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from transport.devicemap import Device, DeviceMap
from transport.packrow import PackRow
from transport.peer import messages as m
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

Told = Mapping[str, Collection[ShardName]]
"""By id of each node that knows it: shards that are damaged or not there on its device."""


def told_by(answers: Mapping[str, m.StripeStatus | str]) -> dict[str, frozenset[ShardName]]:
    """What nodes have said, of those that know it."""
    return {
        node: frozenset(ShardName(*each) for each in told.lacking)
        for node, told in answers.items()
        if not isinstance(told, str) and not told.more and told.listed_ms != m.NEVER_MS
    }


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
    """`told` by nodes: who has not is away, and so is a device that is not `reachable`. A node that
    a shard has moved away from may still say that it lacks it: that is nothing of where it is
    now."""

    def __init__(
        self,
        devices: DeviceMap,
        told: Told,
        reachable: Callable[[Device], bool] = lambda device: True,
    ) -> None:
        self._lacking = {(node, name) for node, names in told.items() for name in names}
        self._lacked = {name.pack_id for _, name in self._lacking}
        self._known = known = devices.devices
        self._failed = {id_ for id_, each in known.items() if not each.readable}
        self._good = {
            id_
            for id_, each in known.items()
            if each.readable and each.node_id in told and reachable(each)
        }

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
