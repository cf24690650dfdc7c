"""The lease of a primary: until when it may answer reads.

Writes need no time: a primary that was followed by another one gets no more acknowledgements, since
W members, and those that promised a later epoch (R-W+1), have one in common. Reads are answered by
the primary alone, so time has to tell it that it is alone.

    primary    a renewal counts from when the *request* was sent whose answer W members gave (itself
               is one of them): APPEND, SYNC or OPEN of its epoch. A read is answered only up to
               READS_S after the newest renewal, looked at when its data is ready.
    member     remembers when it last answered such a request, and says in its promise how long
               ago that was; after a start it counts from then. A primary stops before it promises.
    successor  opens when LEASE_S have gone since R-W+1 members that promised answered last. Each
               renewal has one of them among its W, so none is newer; each was asked before it
               was answered.

Only lengths of time are compared, each by one node's own clock: CLOCK_BOOTTIME, which goes on while
a machine sleeps. That is safe as long as

    READS_S / (1 - MAX_DRIFT) <= LEASE_S / (1 + MAX_DRIFT)

no clock is wrong by more than MAX_DRIFT of what it measures, 150,000 parts in a million; those of
machines are within 500. A virtual machine whose clock stands still while it is paused breaks
that, if it is paused for longer than LEASE_S - READS_S without noticing: let its clock be set on.

A pause of a process at any point does no harm. Before the clock is looked at: the read is not
answered. After that: its data was ready while nobody else had opened the volume, and it was asked
for before; that its answer comes late is what may happen to any answer.
"""

import threading
from collections.abc import Collection, Iterable
from math import inf
from typing import Final

from transport.group.acks import NodeId, Quorum

LEASE_S: Final = 10.0
"""So long after its last renewal a primary may be answering reads, for all that others know."""
READS_S: Final = 7.0
"""So long it does."""
RENEW_S: Final = 3.0
"""A member that was not asked anything for so long is asked for a renewal: two may be missed."""
MAX_DRIFT: Final = 0.15
"""By how much of it any node's clock may be wrong about a length of time."""

assert READS_S * (1 + MAX_DRIFT) <= LEASE_S * (1 - MAX_DRIFT)
assert 2 * RENEW_S < READS_S


class Lease:
    """Of the primary of one volume in one epoch. Times are seconds of its CLOCK_BOOTTIME."""

    def __init__(self, me: NodeId, members: Collection[NodeId], wanted: int) -> None:
        """`wanted`: W, of `members`, of which `me` is one."""
        assert me in members
        self._me = me
        self._quorums: tuple[Quorum, ...] = (Quorum(frozenset(members), wanted),)
        self._answered = dict.fromkeys((node for node in members if node != me), -inf)
        self._asked = dict(self._answered)

    def need(self, *quorums: Quorum) -> None:
        """From now on a renewal has all of these: two while the members change."""
        self._quorums = quorums
        for quorum in quorums:
            for member in quorum.members - {self._me}:
                self.learner(member)

    def learner(self, node: NodeId) -> None:
        """One that is no member is asked as well, and counts for nothing."""
        self._answered.setdefault(node, -inf)
        self._asked.setdefault(node, -inf)

    def forget(self, node: NodeId) -> None:
        """One that is no member is not asked any more."""
        assert all(node not in quorum.members for quorum in self._quorums)
        self._answered.pop(node, None)
        self._asked.pop(node, None)

    def asked(self, member: NodeId, now: float) -> None:
        """A request of this epoch goes to a member. KeyError: it is none, or the primary."""
        self._asked[member] = max(self._asked[member], now)

    def answered(self, member: NodeId, sent_at: float) -> bool:
        """A member did what was asked of it in this epoch; `sent_at`: when that was sent *first*.
        Whether reads may be answered for longer now. KeyError: it is none, or the primary."""
        if sent_at <= self._answered[member]:
            return False
        before = self.renewed_at
        self._answered[member] = sent_at
        return self.renewed_at > before

    @property
    def renewed_at(self) -> float:
        """The newest renewal: -inf before the first, inf where the primary needs nobody else."""
        return min(map(self.renewed_by, self._quorums))

    def renewed_by(self, quorum: Quorum) -> float:
        """The newest renewal that these have given."""
        if quorum.wanted == 1:
            return inf
        others = quorum.members - {self._me}
        answered = sorted((self._answered.get(each, -inf) for each in others), reverse=True)
        return answered[quorum.wanted - 2]

    @property
    def reads_until(self) -> float:
        """A read whose data is ready by then may be answered."""
        return self.renewed_at + READS_S

    def may_read(self, now: float) -> bool:
        """`now`: of after the data was ready."""
        return now < self.reads_until

    def to_ask(self, now: float) -> list[NodeId]:
        """Members that have to be asked for a renewal: none was asked of them for RENEW_S."""
        return [member for member, asked in self._asked.items() if now >= asked + RENEW_S]

    @property
    def ask_at(self) -> float:
        """When `to_ask` has one at the latest; inf where the primary is the only member."""
        return min(self._asked.values()) + RENEW_S if self._asked else inf


class Quiet:
    """At a member: for how long no primary of a volume was answered by it. Any thread."""

    def __init__(self, now: float) -> None:
        """`now`: when the node started; it may have answered somebody just before."""
        self._last = now
        self._lock = threading.Lock()  # or the earlier of two answers could be the one that stays

    def answered(self, now: float) -> None:
        """A request of a primary is being answered, other than by a refusal."""
        with self._lock:
            self._last = max(self._last, now)

    def seconds(self, now: float) -> float:
        return max(0.0, now - self._last)


def free_at(promises: Iterable[tuple[float, float]], needed: int) -> float:
    """When whoever has these promises may open the volume, by its own clock: no earlier primary
    answers reads any more. `promises`: when each came, and for how long its member had been quiet.
    inf: they are fewer than `needed`, R-W+1."""
    assert needed > 0
    times = sorted(came + LEASE_S - min(quiet, LEASE_S) for came, quiet in promises)
    return times[needed - 1] if len(times) >= needed else inf
