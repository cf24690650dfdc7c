"""A takeover as it goes on: one try of one member to become the primary of a volume.

    look    how is the volume at all members? A primary that W can reach is left alone
    claim   transaction: epoch E -> a later one, primary = me, guarded by the row as it was read
    seal    SEAL to all: each promises, synced, to take nothing of an earlier epoch, and says what
            it has; from R-W+1 of these `takeover.choose` has the state of the volume
    mend    I undo and take what I lack, synced
    lead    a `Primary` of the new epoch brings the others to my state; W note, synced, that the
            epoch begins with it. Meanwhile: wait until no earlier primary can be answering reads
            (lease.py)
    serve   `Serve`: the first read may be answered now, not before; then `publish`, a transaction
            that says so to whoever looks

A plain state machine: outcomes and answers in, effects out, a clock passed in. Its owner carries
out each effect, in any order and at the same time, and answers each by exactly one input within
bounded time; effects for `me` are done by this node on itself, by the same rules. After `GaveUp`
nothing more comes, and the machine is dropped; it may be dropped at any time: a crash is nothing
else.

What a crash after a step leaves:

    claim   an epoch without a primary; the old one goes on until somebody has sealed its members
    seal    members that refuse the old primary; whoever tries next finds the same state, or more
    mend    the same, one more member has it
    lead    some members have it, some have noted it; nobody has seen what they had before

The MetaStore is asked twice, in `claim` and `publish`. Without it nothing begins; what is past
`claim` goes on, and a primary does not ask it.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from transport.group.acks import NodeId
from transport.group.chain import Chain
from transport.group.lease import RENEW_S, free_at
from transport.group.takeover import Choice, Task, choose, needed, task_of
from volume.metastore import Done, Lost, Outcome, Row, Stored, Transaction, Unavailable, Unknown
from volume.metastore_records import GroupState, VolumeGroup, decode

MAX_RECORD_EPOCH: Final = (1 << 32) - 1  # a journal record has 32 bits for it


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds, and counts."""

    look_s: float = 2.0
    """Members that do not say how the volume is in that time are done without."""
    gather_s: float = 0.3
    """Once enough members have answered, the others get so long: it may spare copying."""
    quiet_s: float = 2 * RENEW_S
    """A member that answered no primary for so long misses it: one renewal may be lost. What is
    left of the lease then is time to mend and to lead."""
    again_first_s: float = 0.2
    again_most_s: float = 2.0
    """What failed is asked again after the first, then twice as long, ...; a random half of it."""
    attempts: int = 6
    """So often is a member, or the MetaStore, asked for one thing at all."""
    publish_every_s: float = 5.0
    """After that many attempts `publish` is tried at this rate, for as long as it takes."""


class Why(enum.StrEnum):
    """Of a takeover that ended without a primary."""

    ALIVE = "alive"
    """The primary answers enough members; nothing was changed."""
    ALONE = "alone"
    """Too few members can be reached. Nothing was changed, or the volume has no primary."""
    OVERTAKEN = "overtaken"
    """Another node is further, or the volume's record has changed: look at it again."""
    METASTORE = "metastore"
    """It could not be asked, or did not say what happened."""
    FAILED = "failed"
    """This node cannot do what it has to."""


# -- effects


@dataclass(frozen=True, slots=True)
class Look:
    """LOOK to a member: `looked` or `failed`."""

    member: NodeId


@dataclass(frozen=True, slots=True)
class Commit:
    """Commit it, the very same one where that came before: `committed`."""

    transaction: Transaction


@dataclass(frozen=True, slots=True)
class Seal:
    """SEAL to a member: `promised`, `refused` or `failed`. A member that is the primary itself
    stops serving before it promises."""

    member: NodeId
    epoch: int


@dataclass(frozen=True, slots=True)
class Mend:
    """Do this node's own task, so that it ends with `chain`, synced: `mended`, `refused` or
    `failed`."""

    task: Task
    chain: Chain
    epoch: int

    @property
    def member(self) -> NodeId:
        return self.task.member


@dataclass(frozen=True, slots=True)
class Lead:
    """Make a primary of this epoch, which brings the others to `chain`, but let it serve nobody
    yet: `led` when W members have noted, synced, that the epoch begins with it, `fenced` when one
    refuses, `unable` when this node cannot."""

    group: VolumeGroup
    chain: Chain


@dataclass(frozen=True, slots=True)
class Serve:
    """What was made by `Lead` is the primary now: open the volume to clients."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Overtaken:
    """After `Serve`: the MetaStore has a later epoch. Stop serving."""

    epoch: int


@dataclass(frozen=True, slots=True)
class GaveUp:
    why: Why
    text: str
    floor: int
    """The next try has to be of an epoch above this one."""


Effect = Look | Commit | Seal | Mend | Lead | Serve | Overtaken | GaveUp
Asking = Look | Seal | Mend


class _Phase(enum.StrEnum):
    NEW = "new"
    LOOK = "look"
    CLAIM = "claim"
    SEAL = "seal"
    MEND = "mend"
    LEAD = "lead"
    PUBLISH = "publish"
    ENDED = "ended"


_ASKING: Final = (_Phase.LOOK, _Phase.SEAL, _Phase.MEND)


@dataclass(frozen=True, slots=True)
class _Promise:
    came: float
    quiet_s: float
    chain: Chain


@dataclass(slots=True)
class _Member:
    asked: Asking | None = None
    again_at: float = -inf
    failures: int = 0
    last: str = "no answer"
    quiet_s: float | None = None  # as it looked
    promise: _Promise | None = None


@dataclass(slots=True)
class _Tries:
    """At a transaction."""

    transaction: Transaction
    waits: bool = True  # for its outcome
    count: int = 1
    again_at: float = inf


class Takeover:
    """By `me`, one of the members of `found`, which is the volume's row as it was read.

    `agreed`: its primary wants it, so nobody has to miss it; nor where that is this node, or
    nobody. `floor`: an epoch that was seen anywhere. `change` makes the transaction of a change
    (`ClusterRecords`); `random` gives one of [0, 1)."""

    def __init__(
        self,
        me: NodeId,
        found: Stored[VolumeGroup],
        change: Callable[[Stored[VolumeGroup], VolumeGroup], Transaction],
        random: Callable[[], float],
        *,
        agreed: bool = False,
        floor: int = 0,
        pace: Pace | None = None,
    ) -> None:
        old = found.record
        assert me in old.members
        assert old.state is not GroupState.DELETED
        self.me = me
        self._old = old
        self._row = found
        self._change = change
        self._random = random
        mine = old.state is GroupState.OPEN and old.primary == me
        self._agreed = agreed or mine or old.state is GroupState.CLOSED
        self._floor = max(floor, old.epoch)
        self._pace = pace or Pace()
        self._members = {NodeId(node): _Member() for node in old.members}
        self._needed = needed(len(self._members), old.write_quorum)
        self._enough = max(self._needed, old.write_quorum)
        self._phase = _Phase.NEW
        self._until = inf  # of looking or gathering
        self._choice: Choice | None = None
        self._led = False
        self._tries: _Tries | None = None

    # -- what the owner sees

    @property
    def epoch(self) -> int:
        """That is tried for; the old one before `claim`."""
        return self._row.record.epoch

    @property
    def phase(self) -> str:
        """For people: what it is at."""
        return "wait" if self._led and self._phase is _Phase.LEAD else self._phase.value

    @property
    def promised_by(self) -> frozenset[NodeId]:
        """Members that have promised so far."""
        return frozenset(node for node, one in self._members.items() if one.promise is not None)

    @property
    def choice(self) -> Choice | None:
        """The state of the volume, once it is known."""
        return self._choice

    @property
    def ended(self) -> bool:
        """Gave up, or is open and published."""
        return self._phase is _Phase.ENDED

    @property
    def deadline(self) -> float:
        """When `poll` has to be called at the latest; inf: an answer has to come."""
        if self._phase is _Phase.ENDED:
            return inf
        times = [self._until]
        if self._phase in _ASKING:
            times += [one.again_at for one in self._members.values() if self._again(one)]
        if self._tries is not None and not self._tries.waits:
            times.append(self._tries.again_at)
        if self._phase is _Phase.LEAD and self._led:
            times.append(self.free_at)
        return min(times)

    @property
    def free_at(self) -> float:
        """When no earlier primary can be answering reads any more; inf: too few have promised."""
        promises = {
            node: one.promise for node, one in self._members.items() if one.promise is not None
        }
        # OPEN is written by a primary that serves, so there is no other one with a lease, and it
        # stopped before it promised. In SEALING one before it may have one.
        old = self._old
        if old.state is GroupState.CLOSED:
            return -inf
        if old.state is GroupState.OPEN and old.primary in promises:
            return -inf
        return free_at(((each.came, each.quiet_s) for each in promises.values()), self._needed)

    # -- inputs

    def start(self, now: float) -> list[Effect]:
        assert self._phase is _Phase.NEW
        self._phase = _Phase.LOOK
        self._until = now + self._pace.look_s
        return self._go_on(now)

    def poll(self, now: float) -> list[Effect]:
        """`deadline` has come."""
        return self._go_on(now)

    def looked(self, member: NodeId, promise: int, quiet_s: float, now: float) -> list[Effect]:
        """How the volume is at a member, as LOOKED says."""
        one = self._members[member]
        if isinstance(one.asked, Look):
            one.asked = None
            one.failures = 0
            one.quiet_s = quiet_s
            self._floor = max(self._floor, promise)
        return self._go_on(now)

    def committed(self, outcome: Outcome, now: float) -> list[Effect]:
        tries = self._tries
        if tries is None or not tries.waits:
            return []
        tries.waits = False
        if self._phase is _Phase.CLAIM:
            return self._claimed(outcome, tries, now)
        if self._phase is _Phase.PUBLISH:
            return self._published(outcome, tries, now)
        return []

    def promised(
        self, member: NodeId, epoch: int, chain: Chain, quiet_s: float, now: float
    ) -> list[Effect]:
        """A member keeps a promise for `epoch`, and has `chain`, synced."""
        one = self._members[member]
        if self._phase is _Phase.ENDED or not isinstance(one.asked, Seal):
            return []
        if epoch != self.epoch:
            return self.refused(one.asked, epoch, now)
        one.asked = None
        one.failures = 0
        one.promise = _Promise(now, quiet_s, chain)
        return self._go_on(now)

    def mended(self, now: float) -> list[Effect]:
        """This node has the state that was chosen, synced."""
        mine = self._members[self.me]
        if self._phase is _Phase.MEND and isinstance(mine.asked, Mend):
            mine.asked = None
            return self._lead()
        return []

    def led(self, now: float) -> list[Effect]:
        """W members, this one among them, have noted that the epoch is open."""
        if self._phase is _Phase.LEAD:
            self._led = True
        return self._go_on(now)

    def refused(self, effect: Asking, epoch: int, now: float) -> list[Effect]:
        """A member has promised `epoch`, a later one, and does nothing of ours any more."""
        if epoch <= self.epoch:
            return self.failed(effect, f"refuses epoch {self.epoch} for {epoch}", now)
        if self._phase not in _ASKING:
            return []
        return self._overtaken(epoch, f"node {effect.member} has promised it")

    def fenced(self, epoch: int, now: float) -> list[Effect]:
        """What was made by `Lead` was refused for a later epoch, and will not serve."""
        if self._phase is not _Phase.LEAD:
            return []
        return self._overtaken(epoch, "a member has promised it")

    def unable(self, text: str, now: float) -> list[Effect]:
        """This node cannot do what `Lead` asks for."""
        if self._phase is not _Phase.LEAD:
            return []
        return [self._give_up(Why.FAILED, text)]

    def failed(self, effect: Asking, text: str, now: float) -> list[Effect]:
        """A member did not answer, or could not do it: it is asked again, a few times."""
        one = self._members[effect.member]
        if one.asked != effect:
            return []
        one.asked = None
        one.failures += 1
        one.last = text
        one.again_at = now + self._pause(one.failures)
        return self._go_on(now)

    # -- what follows

    def _go_on(self, now: float) -> list[Effect]:
        """Take every step that can be taken."""
        effects: list[Effect] = []
        if self._phase is _Phase.LOOK:
            effects += self._judge_looks(now)
        if self._phase is _Phase.SEAL:
            effects += self._choose(now)
        if self._phase is _Phase.LEAD and self._led and now >= self.free_at:
            self._phase = _Phase.PUBLISH
            effects += [Serve(self.epoch), *self._publish()]
        if self._phase in _ASKING:
            effects += self._ask(now)
        elif self._tries is not None and not self._tries.waits and now >= self._tries.again_at:
            effects += self._commit_again(self._tries)
        return effects

    def _ask(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for node, one in self._members.items():
            if one.failures >= self._pace.attempts or now < one.again_at:
                continue
            wanted = self._wanted_of(node, one)
            if wanted is not None and one.asked is None:
                one.asked = wanted
                effects.append(wanted)
        if self._members[self.me].failures >= self._pace.attempts:
            return [self._give_up(Why.FAILED, f"{self._phase.value}: {self._failures()}")]
        lost = sum(one.failures >= self._pace.attempts for one in self._members.values())
        if self._choice is None and len(self._members) - lost < self._enough:
            return [self._give_up(Why.ALONE, f"{self._phase.value}: {self._failures()}")]
        return effects

    def _wanted_of(self, node: NodeId, one: _Member) -> Asking | None:
        """What a member has to do next; None: nothing, or nothing yet."""
        if self._phase is _Phase.LOOK:
            return Look(node) if one.quiet_s is None else None
        if one.promise is None:
            return Seal(node, self.epoch)
        if self._phase is _Phase.MEND and node == self.me:
            assert self._choice is not None
            task = task_of(node, one.promise.chain, self._choice.chain, self._choice.source)
            return Mend(task, self._choice.chain, self.epoch)
        return None

    def _again(self, one: _Member) -> bool:
        """Whether it failed and is to be asked again at some time."""
        return one.asked is None and 0 < one.failures < self._pace.attempts

    # -- look

    def _judge_looks(self, now: float) -> list[Effect]:
        seen = {node: one.quiet_s for node, one in self._members.items() if one.quiet_s is not None}
        enough = len(seen) >= self._enough and self.me in seen
        if len(seen) < len(self._members):
            if enough:
                self._until = min(self._until, now + self._pace.gather_s)
            if now < self._until:
                return []
        if not enough:
            text = f"{len(seen)} of {self._enough} members can be reached: {self._failures()}"
            return [self._give_up(Why.ALONE, text)]
        missing = sum(quiet >= self._pace.quiet_s for quiet in seen.values())
        if not self._agreed and missing < self._needed:
            # With that many it would not have W any more, and serve nobody.
            text = (
                f"node {self._old.primary} is left alone: {missing} of {len(seen)} members that "
                f"answered heard nothing from it for {self._pace.quiet_s:g} s, a takeover needs "
                f"{self._needed}"
            )
            return [self._give_up(Why.ALIVE, text)]
        return self._claim()

    # -- claim

    def _claim(self) -> list[Effect]:
        epoch = self._floor + 1
        if epoch > MAX_RECORD_EPOCH:
            return [self._give_up(Why.FAILED, f"epoch {epoch} does not fit into a record")]
        self._phase = _Phase.CLAIM
        self._until = inf
        for one in self._members.values():
            one.asked = None
            one.failures = 0
            one.again_at = -inf
        claimed = replace(self._old, epoch=epoch, primary=self.me, state=GroupState.SEALING)
        self._tries = _Tries(self._change(self._row, claimed))
        return [Commit(self._tries.transaction)]

    def _claimed(self, outcome: Outcome, tries: _Tries, now: float) -> list[Effect]:
        match outcome:
            case Done((row,)):
                self._row = _stored(row)
                self._tries = None
                self._phase = _Phase.SEAL
                return self._go_on(now)
            case Lost():
                text = "the volume's record has changed meanwhile"
                return [self._give_up(Why.OVERTAKEN, text)]
            case Unknown() if tries.count < self._pace.attempts:
                # It may still happen: only the same transaction can tell.
                tries.again_at = now + self._pause(tries.count)
                return []
            case Unknown(reason) | Unavailable(reason):
                return [self._give_up(Why.METASTORE, reason)]
        raise AssertionError(outcome)

    def _commit_again(self, tries: _Tries) -> list[Effect]:
        tries.waits = True
        tries.count += 1
        tries.again_at = inf
        return [Commit(tries.transaction)]

    # -- seal, mend, lead

    def _choose(self, now: float) -> list[Effect]:
        promises = {
            node: one.promise.chain
            for node, one in self._members.items()
            if one.promise is not None
        }
        if len(promises) < self._enough or self.me not in promises:
            return []
        if len(promises) < len(self._members):
            self._until = min(self._until, now + self._pace.gather_s)
            if now < self._until:
                return []
        self._until = inf
        self._choice = choose(promises, len(self._members), self._old.write_quorum)
        assert self._choice is not None
        if promises[self.me].end == self._choice.chain.end:
            return self._lead()
        self._phase = _Phase.MEND
        return []

    def _lead(self) -> list[Effect]:
        assert self._choice is not None
        self._phase = _Phase.LEAD
        return [Lead(self._row.record, self._choice.chain)]

    # -- publish

    def _publish(self) -> list[Effect]:
        opened = replace(self._row.record, state=GroupState.OPEN)
        self._tries = _Tries(self._change(self._row, opened))
        return [Commit(self._tries.transaction)]

    def _published(self, outcome: Outcome, tries: _Tries, now: float) -> list[Effect]:
        match outcome:
            case Done():
                self._phase = _Phase.ENDED
                return []
            case Lost((None,)):  # deleted
                self._phase = _Phase.ENDED
                return [Overtaken(self.epoch + 1)]
            case Lost((row,)):
                epoch = self.epoch
                self._row = _stored(row)
                if self.epoch == epoch:  # renamed
                    return self._publish()
                self._phase = _Phase.ENDED
                return [Overtaken(self.epoch)]
        if tries.count < self._pace.attempts:
            tries.again_at = now + self._pause(tries.count)
        else:
            tries.again_at = now + self._pace.publish_every_s
        return []

    # -- the end

    def _overtaken(self, epoch: int, how: str) -> list[Effect]:
        self._floor = max(self._floor, epoch)
        return [self._give_up(Why.OVERTAKEN, f"epoch {epoch} is above {self.epoch}: {how}")]

    def _give_up(self, why: Why, text: str) -> GaveUp:
        self._phase = _Phase.ENDED
        return GaveUp(why, text, max(self._floor, self.epoch))

    def _failures(self) -> str:
        failed = (f"node {node}: {one.last}" for node, one in self._members.items() if one.failures)
        return "; ".join(failed) or "no answer"

    def _pause(self, failures: int) -> float:
        pace = self._pace
        longest = min(pace.again_first_s * 2.0 ** min(failures - 1, 16), pace.again_most_s)
        return longest * (1 + self._random()) / 2


def _stored(row: Row | None) -> Stored[VolumeGroup]:
    assert row is not None
    return Stored(decode(VolumeGroup, row.key, row.value), row)
