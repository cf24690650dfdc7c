"""Lending: what comes with every write is done natively (native/src/sender.h), as long as there is
nothing to be decided; and what came of it is taken back before anything is.

Lent is all of it or nothing: what the tap gives, which member has been sent what, what is counted.
So there is one order of the log whoever sends it: the native side begins behind the newest record
that was taken here, and here it goes on behind the newest one that was taken there. A request that
is under way when it is lent is answered here, and its member gets nothing natively meanwhile; one
that was sent natively and is not answered when it is taken back is one of ours from then on, under
the same tag.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from native import Sender
from transport.group.acks import Acks, Held, NodeId, Quorum
from transport.group.kept import Batch, Kept
from transport.group.link import Asked, Link, Renewed, State
from transport.group.trail import Trail
from transport.group.underway import UnderWay
from transport.peer import messages as m

NANOSECONDS: Final = 1_000_000_000


class Renewals(Protocol):
    """The lease, as far as the sender feeds it: `transport.group.lease.Lease`."""

    def asked(self, member: NodeId, now: float) -> None: ...
    def answered(self, member: NodeId, sent_at: float) -> bool: ...
    def to_ask(self, now: float) -> list[NodeId]: ...
    def need(self, *quorums: Quorum) -> None: ...
    def learner(self, node: NodeId) -> None: ...
    def forget(self, node: NodeId) -> None: ...
    def renewed_by(self, quorum: Quorum) -> float: ...
    @property
    def renewed_at(self) -> float: ...
    @property
    def ask_at(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Back:
    """What came of it, beside what is in links and counts again."""

    newest: int
    """Seq of the volume's newest record."""
    told: tuple[int, int]
    """What clients were told: acked, durable."""


class Lending:
    """Of one Primary, whose parts these are."""

    def __init__(
        self,
        volume: bytes,
        epoch: int,
        way: UnderWay,
        kept: Kept,
        trail: Trail,
        acks: Acks,
        lease: Renewals,
    ) -> None:
        self.sender: Sender | None = None
        """To which it is lent."""
        self.since = 0.0
        self._volume = volume
        self._epoch = epoch
        self._way = way
        self._kept = kept
        self._trail = trail
        self._acks = acks
        self._lease = lease
        self._links: list[Link] = []

    def lend(
        self,
        sender: Sender,
        links: Mapping[NodeId, Link],
        own: Held,
        flush: int,
        room: int,
        now: float,
    ) -> bool:
        """Whether it is lent now. Not where a member in step has not been sent all that was taken,
        has to be asked for a sync up to `flush`, or waits for something else, nor where records are
        kept for another one, or there is another rule than W of the members."""
        quorum, *more = self._acks.quorums
        if more or quorum.wanted < 2 or self._way.out or room <= 0:
            return False
        found = list(links.values())
        taken = self._kept.taken
        if self._trail.seq != taken or not all(_is_plain(each, taken, flush) for each in found):
            return False
        members = tuple(
            (
                each.node in quorum.members,
                each.state is State.STEP,
                each.tag != 0,
                each.sent,
                *self._held(each),
            )
            for each in found
        )
        acks = self._acks
        counts = own.durable, taken, acks.acked, acks.durable
        if not sender.begin(quorum.wanted, *counts, self._way.next_tag, room, members):
            return False
        self.sender, self.since, self._links = sender, now, found
        return True

    def take_back(self, now: float | None) -> Back | None:
        """None: it is not lent. Without `now` it counts as of when it was lent."""
        sender, self.sender = self.sender, None
        ended = None if sender is None else sender.end()
        if ended is None:
            return None
        taken, newest, acked, durable, self._way.next_tag, length, members, batches = ended
        for link, state in zip(self._links, members, strict=True):
            if link.state is State.STEP:
                self._back(link, *state)
        self._kept.resume(taken, [Batch(*each) for each in batches])
        if length:
            self._trail.add(taken, length, self.since if now is None else now)
        return Back(newest, (acked, durable))

    def node(self, index: int) -> NodeId:
        """A member, as it was numbered when it was lent last."""
        return self._links[index].node

    def _held(self, link: Link) -> tuple[int, int]:
        """What a member counts with."""
        held = self._acks.held(link.node)
        return held.received, held.durable

    def _back(
        self,
        link: Link,
        tag: int,
        sent: int,
        received: int,
        durable: int,
        sent_ns: int,
        answered_ns: int,
    ) -> None:
        if sent_ns:
            self._lease.asked(link.node, sent_ns / NANOSECONDS)
        if answered_ns:
            link.failures = 0
            link.received, link.durable = received, durable
            link.point = (self._epoch, received)
            self._acks.heard(link.node, Held(received, durable))
            if self._lease.answered(link.node, answered_ns / NANOSECONDS):
                self._way.out.append(Renewed())
        link.sent = sent
        if tag:
            append = m.Append(*(self._volume, self._epoch, self._epoch, received + 1, sent, 0, ()))
            link.tag, link.since = tag, sent_ns / NANOSECONDS
            self._way.asked[tag] = Asked(link, append, link.since)


def _is_plain(link: Link, taken: int, flush: int) -> bool:
    if link.state is not State.STEP:
        return link.hold is None
    if link.sent != taken or link.retry_at is not None or not link.joined:
        return False
    if link.tag == 0 and link.received != taken:
        return False
    return link.durable >= flush or (link.sync_tag != 0 and link.received >= flush)
