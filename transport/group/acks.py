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


@dataclass(frozen=True, slots=True)
class Quorum:
    """W of these members."""

    members: frozenset[NodeId]
    wanted: int

    def __post_init__(self) -> None:
        if not 1 <= self.wanted <= len(self.members) <= MAX_MEMBERS:
            raise ValueError(
                f"{self.wanted} of {len(self.members)} members ({MAX_MEMBERS} at most)"
            )


class Acks:
    """Of one volume, in one epoch. The primary is a member like the others.

    While the members change there are two quorums, and what is acknowledged has both."""

    def __init__(self, members: Collection[NodeId], wanted: int, mode: Mode, start: int) -> None:
        """`wanted`: W. `start`: what was acknowledged and durable when the epoch began."""
        self._quorums: tuple[Quorum, ...] = (Quorum(frozenset(members), wanted),)
        self._held: dict[NodeId, Held] = dict.fromkeys(members, Held())
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

    @property
    def quorums(self) -> tuple[Quorum, ...]:
        return self._quorums

    def need(self, *quorums: Quorum) -> None:
        """From now on what is acknowledged has all of these. Who is in none of them, and was heard
        of before, counts for nothing."""
        self._quorums = quorums
        for quorum in quorums:
            for member in quorum.members:
                self._held.setdefault(member, Held())

    def learner(self, node: NodeId) -> None:
        """One that is no member may be heard of, and counts for nothing."""
        self._held.setdefault(node, Held())

    def forget(self, node: NodeId) -> None:
        """One that is no member."""
        assert all(node not in quorum.members for quorum in self._quorums)
        self._held.pop(node, None)

    def has_all(self, quorum: Quorum) -> bool:
        """Whether so many of these have whatever was acknowledged, as it was acknowledged."""
        return (
            self._received(quorum) >= self._acked
            and self._synced(quorum) >= self._durable
            and (self._mode is not Mode.STRICT or self._synced(quorum) >= self._acked)
        )

    def heard(self, member: NodeId, held: Held) -> bool:
        """A member says what it has. Whether more may be acknowledged now. KeyError: it is none."""
        if member not in self._held:
            raise KeyError(member)
        self._held[member] = held
        durable = min(map(self._synced, self._quorums))
        received = min(map(self._received, self._quorums))
        before = (self._acked, self._durable)
        self._durable = max(self._durable, durable)
        self._acked = max(
            self._acked, durable if self._mode is Mode.STRICT else received, self._durable
        )
        return (self._acked, self._durable) != before

    def held(self, node: NodeId) -> Held:
        """What a node counts with, member or not. KeyError: nobody knows it."""
        return self._held[node]

    def copies(self, seq: int) -> int:
        """How many members have every record up to `seq` in their journals."""
        members = frozenset().union(*(quorum.members for quorum in self._quorums))
        return sum(self._held[member].received >= seq for member in members)

    def _received(self, quorum: Quorum) -> int:
        """What at least W of them have in their journals."""
        return self._least_of_most(quorum, (self._held[each].received for each in quorum.members))

    def _synced(self, quorum: Quorum) -> int:
        """The same of their disks."""
        return self._least_of_most(quorum, (self._held[each].durable for each in quorum.members))

    @staticmethod
    def _least_of_most(quorum: Quorum, seqs: Iterable[int]) -> int:
        return sorted(seqs, reverse=True)[quorum.wanted - 1]
