"""When a member tries to become a volume's primary: it misses the one there is, or is asked to.

    resting ---due---> reading ---found---> trying ---gave up---> resting, for longer each time
       ^                  |                    |
       +---- heard -------+                    +---> serving, until it is `dropped`

Who misses it first is spread by rank and chance, so that members rarely try at once; when they do,
one wins the transaction, and the others give it time for a whole takeover. Nothing here decides who
is primary: a watch that errs costs a try, and `Takeover` begins by asking the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

from transport.group.acks import NodeId
from transport.group.lease import LEASE_S, RENEW_S
from transport.group.takeover_run import GaveUp, Why
from volume.metastore import Stored
from volume.metastore_records import MAX_MEMBERS, GroupState, VolumeGroup

FIRST_EPOCH: Final = 1
"""Of a volume that was made and never opened."""


@dataclass(frozen=True, slots=True)
class WatchPace:
    """Times in seconds."""

    notice_s: float = 2 * RENEW_S
    """A primary that asked nothing for so long is missed."""
    stagger_s: float = 0.5
    """Later for each member before this one, and a random part of it."""
    grace_s: float = LEASE_S + 5.0
    """For another one's takeover that was not seen before."""
    head_start_s: float = 3.0
    """For who has made a volume that was never open."""
    again_first_s: float = 1.0
    again_most_s: float = 30.0
    """From a try that failed to the next: the first, then twice as long, ...; a random half."""
    recheck_s: float = 30.0
    """From a look at a record by which there is nothing to do to the next."""


@dataclass(frozen=True, slots=True)
class Read:
    """Read the volume's row: `found` or `unread`."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin a takeover with these arguments of `Takeover`."""

    found: Stored[VolumeGroup]
    agreed: bool
    floor: int


class Watch:
    """Of one volume, at a member that is not its primary. Times are of any monotonic clock."""

    def __init__(
        self,
        me: NodeId,
        now: float,
        random: Callable[[], float],
        pace: WatchPace | None = None,
    ) -> None:
        """The volume is looked at soon: who was its primary may have to be it again."""
        self._me = me
        self._random = random
        self._pace = pace or WatchPace()
        self._rank = 0
        self._due = now + self._pace.stagger_s * random()
        self._resting = True
        self._agreed = False
        self._failures = 0
        self._floor = 0
        self._spared = 0  # an epoch whose owner was given time

    @property
    def deadline(self) -> float:
        """When `poll` has to be called at the latest; inf while it waits for an answer."""
        return self._due if self._resting else inf

    def heard(self, now: float) -> None:
        """A primary asked something that this member did: all is well."""
        self._failures = 0
        if self._resting and not self._agreed:
            self._due = now + self._notice()

    def promised(self, now: float) -> None:
        """Another member seals the volume: it gets time."""
        if self._resting:
            self._due = max(self._due, now + self._grace())

    def left(self, now: float) -> None:
        """The primary has said that it goes."""
        if self._resting:
            self._due = now + self._pace.stagger_s * (self._rank + self._random())

    def reachable(self, now: float) -> None:
        """Another member can be reached again: what failed without it may work now."""
        if self._resting and self._failures:
            self._failures = 0
            wait_s = self._pace.stagger_s * (self._rank + self._random())
            self._due = min(self._due, now + wait_s)

    def changed(self, now: float) -> None:
        """The volume's record is another one."""
        if self._resting:
            self._due = now

    def asked(self, now: float) -> None:
        """The primary wants this node to be it."""
        self._agreed = True
        if self._resting:
            self._due = now

    def poll(self, now: float) -> Read | None:
        if not self._resting or now < self._due:
            return None
        self._resting = False
        return Read()

    def found(self, stored: Stored[VolumeGroup] | None, now: float) -> Begin | None:
        """The row as it was read, perhaps an old one."""
        if stored is None or not self._concerned(stored.record):
            self._rest(now + self._pace.recheck_s)
            return None
        record = stored.record
        others = [node for node in record.members if node != record.primary]
        self._rank = others.index(self._me) if self._me in others else 0
        if record.primary not in (self._me, None) and record.epoch > self._spared:
            if record.state is GroupState.SEALING and not self._agreed:
                self._spared = record.epoch
                self._rest(now + self._grace())
                return None
            if record.state is GroupState.CLOSED and record.epoch == FIRST_EPOCH:
                self._spared = record.epoch
                self._rest(now + self._pace.head_start_s + self._pace.stagger_s * self._random())
                return None
        return Begin(stored, self._agreed, self._floor)

    def unread(self, now: float) -> None:
        """The row could not be read."""
        self._fail(now)

    def gave_up(self, end: GaveUp, now: float) -> None:
        """The takeover that was begun ended without a primary."""
        self._floor = max(self._floor, end.floor)
        self._fail(now)
        if end.why is Why.FAILED:
            # Another member may have what this one lacks. It gives time to each claim that it hears
            # of, and again to one that it reads of: its turn comes when this one claims no more.
            pace = self._pace
            longest = pace.grace_s + pace.stagger_s * (MAX_MEMBERS + 1)
            self._rest(max(self._due, now + 2 * longest))

    def dropped(self, now: float) -> None:
        """This node was the primary, and is it no more: somebody else is, or will be."""
        self._failures = 0
        self._agreed = False
        self._rest(now + self._notice())

    def _concerned(self, record: VolumeGroup) -> bool:
        return record.state is not GroupState.DELETED and self._me in record.members

    def _fail(self, now: float) -> None:
        pace = self._pace
        self._agreed = False  # who asked is told that it failed
        longest = min(pace.again_first_s * 2.0 ** min(self._failures, 16), pace.again_most_s)
        self._failures += 1
        self._rest(now + longest * (1 + self._random()) / 2)

    def _rest(self, due: float) -> None:
        self._resting = True
        self._due = due

    def _notice(self) -> float:
        pace = self._pace
        return pace.notice_s + pace.stagger_s * (self._rank + self._random())

    def _grace(self) -> float:
        return self._pace.grace_s + self._pace.stagger_s * (self._rank + self._random())
