"""What a primary may acknowledge: counts of what its members have.

A write is acknowledged when W members, the primary among them, have its record in their journals
(`mirror`; `local` is that with a single member) or synced (`strict`); a flush when W have synced
what is before it.

What was acknowledged stays so. What members have may become less (one lost power, or is replaced):
that is the volume's redundancy, `copies`, and never hidden.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NewType

from volume.metastore_records import MAX_MEMBERS, Mode

NodeId = NewType("NodeId", str)


@dataclass(frozen=True, slots=True)
class Held:
    """Seq of the newest record that a member has in its journal, and of the newest synced one."""

    received: int = 0
    durable: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.durable <= self.received:
            raise ValueError(f"{self.durable} records synced of {self.received}")


class Acks:
    """Of one volume, in one epoch. The primary is a member like the others."""

    def __init__(self, members: Collection[NodeId], wanted: int, mode: Mode, start: int) -> None:
        """`wanted`: W. `start`: what was acknowledged and durable when the epoch began."""
        if not 1 <= wanted <= len(members) <= MAX_MEMBERS:
            raise ValueError(f"{wanted} of {len(members)} members ({MAX_MEMBERS} at most)")
        self._held: dict[NodeId, Held] = dict.fromkeys(members, Held())
        self._wanted = wanted
        self._mode = mode
        self._acked = start
        self._durable = start

    @property
    def acked(self) -> int:
        """Writes up to this seq may be acknowledged."""
        return self._acked

    @property
    def durable(self) -> int:
        """Flushes of writes up to this seq may be acknowledged."""
        return self._durable

    def heard(self, member: NodeId, held: Held) -> bool:
        """A member says what it has. Whether more may be acknowledged now. KeyError: it is none."""
        if member not in self._held:
            raise KeyError(member)
        self._held[member] = held
        durable = self._least_of_most(held.durable for held in self._held.values())
        received = self._least_of_most(held.received for held in self._held.values())
        before = (self._acked, self._durable)
        self._durable = max(self._durable, durable)
        self._acked = max(
            self._acked, durable if self._mode is Mode.STRICT else received, self._durable
        )
        return (self._acked, self._durable) != before

    def copies(self, seq: int) -> int:
        """How many members have every record up to `seq` in their journals."""
        return sum(held.received >= seq for held in self._held.values())

    def _least_of_most(self, seqs: Iterable[int]) -> int:
        """What at least `wanted` of them have reached."""
        return sorted(seqs, reverse=True)[self._wanted - 1]
