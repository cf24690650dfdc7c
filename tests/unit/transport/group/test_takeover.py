"""Takeovers in a model of a volume's life: members, primaries that die or only seem to, clients.

A member here is a log of records and what it has promised; messages are calls that may not happen.
The model is merciless about order, not about bytes: nothing is lost of what a member has synced.
"""

import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from transport.group import takeover
from transport.group.acks import Acks, Held, NodeId
from transport.group.chain import BadChain, Chain
from transport.group.takeover import Choice, choose, needed
from volume.metastore_records import Mode

Record = tuple[int, int]  # its epoch, and a number of its own


# Rules that a test breaks.


def extended_by_opening(chain: Chain, epoch: int, seq: int) -> Chain:
    return chain.extended(epoch, seq)


def wanted_acks(wanted: int) -> int:
    return wanted


def refuses(epoch: int, promise: int) -> bool:
    return epoch < promise


@dataclass
class Member:
    promise: int = 0
    serving: int = 0  # the epoch that was opened with it
    log: list[Record] = field(default_factory=list)
    chain: Chain = field(default_factory=Chain)

    def append(self, epoch: int, first: int, records: list[Record]) -> bool:
        """Records `first`... of a primary; whether it has them."""
        if refuses(epoch, self.promise) or epoch != self.serving or first > len(self.log) + 1:
            return False
        self.log += records[len(self.log) + 1 - first :]
        self.chain = self.chain.extended(epoch, len(self.log))
        return True


@dataclass
class Primary:
    """Alive until its members refuse it; may be a ghost that does not know yet."""

    node: NodeId
    epoch: int
    acks: Acks


class Life:
    """A volume with R members, W of which a write needs."""

    def __init__(self, rng: random.Random, members: int, wanted: int) -> None:
        self.rng = rng
        self.wanted = wanted
        self.members = {NodeId(f"n{n}"): Member() for n in range(members)}
        self.primaries: list[Primary] = []
        self.epoch = 0  # what the MetaStore has
        self.acked: list[Record] = []  # by anybody to clients, who may read it again
        self.opened = (0, 0)  # the newest epoch that was, and with how many records
        self.refusals = 0
        self._number = 0

    def some(self, least: int) -> list[NodeId]:
        """Members that can be reached just now."""
        return self.rng.sample(list(self.members), self.rng.randint(least, len(self.members)))

    def take_over(self) -> None:
        """By any node; it may fail or die after each step."""
        self.epoch += 1
        epoch = self.epoch
        sealed = self.some(0)
        promises = {}
        for node in sealed:
            member = self.members[node]
            if epoch > member.promise:
                member.promise = epoch
                promises[node] = member.chain
        self._meanwhile()
        choice = choose(promises, len(self.members), self.wanted)
        if choice is None:
            assert len(promises) < needed(len(self.members), self.wanted)
            return
        self._check(choice)
        opened = []
        for node in self.rng.sample(list(promises), len(promises)):
            member = self.members[node]
            if member.promise != epoch:
                continue  # somebody else's by now
            self._meanwhile()
            if node != choice.source and not self._do_task(choice, node):
                return
            opened.append(node)
        for done, node in enumerate(opened):
            if self.rng.random() < 0.1:
                return
            member = self.members[node]
            member.serving = epoch
            member.chain = extended_by_opening(member.chain, epoch, len(member.log))
            if done + 1 == self.wanted:
                self._open(opened[: done + 1], epoch)

    def _meanwhile(self) -> None:
        """Primaries of epochs before go on writing: they do not know yet."""
        if self.primaries and self.rng.random() < 0.3:
            self.write(self.rng.choice(self.primaries))

    def _do_task(self, choice: Choice, node: NodeId) -> bool:
        """False: whoever took over died in the middle of it."""
        member, source = self.members[node], self.members[choice.source]
        task = next((task for task in choice.tasks if task.member == node), None)
        if task is None:
            assert (member.log, member.chain) == (source.log, source.chain)
            return True
        assert task.keep is not None
        keep = task.keep[1]
        assert member.log[:keep] == source.log[:keep]
        assert task.undo == (len(member.log) > keep)
        if task.undo:
            del member.log[keep:]
            member.chain = member.chain.cut(*task.keep) if keep else Chain()
        if self.rng.random() < 0.1:
            until = self.rng.randint(keep, len(source.log))
            if until > keep:
                member.log = source.log[:until]
                member.chain = source.chain.cut(source.log[until - 1][0], until)
            return False
        member.log, member.chain = source.log.copy(), source.chain
        return True

    def _open(self, nodes: list[NodeId], epoch: int) -> None:
        node = self.rng.choice(nodes)
        log = self.members[node].log
        acks = Acks(list(self.members), wanted_acks(self.wanted), Mode.MIRROR, len(log))
        self.primaries.append(Primary(node, epoch, acks))
        self._shown(log)  # from here on it can be read
        self.opened = max(self.opened, (epoch, len(log)))

    def write(self, primary: Primary) -> None:
        own = self.members[primary.node]
        first = len(own.log) + 1
        records = []
        for _ in range(self.rng.randint(1, 3)):
            self._number += 1
            records.append((primary.epoch, self._number))
        if not own.append(primary.epoch, first, records):
            self._refused(primary)
            return
        self._heard(primary, primary.node)
        for node in self.some(0):
            if node != primary.node:
                self._send(primary, node)

    def _send(self, primary: Primary, node: NodeId) -> None:
        """What the member lacks, or a part of it; the answer may be lost."""
        own, member = self.members[primary.node], self.members[node]
        if own.promise > primary.epoch:
            self._refused(primary)
            return
        have = len(member.log)
        until = self.rng.randint(have, max(have, len(own.log)))
        if not member.append(primary.epoch, have + 1, own.log[have:until]):
            if member.promise > primary.epoch:
                self._refused(primary)
            return
        if self.rng.random() < 0.8:
            self._heard(primary, node)

    def _heard(self, primary: Primary, node: NodeId) -> None:
        primary.acks.heard(node, Held(len(self.members[node].log), 0))
        self._shown(self.members[primary.node].log[: primary.acks.acked])

    def _shown(self, log: list[Record]) -> None:
        """Acknowledged, or opened: nobody may see it otherwise again."""
        shared = min(len(log), len(self.acked))
        assert log[:shared] == self.acked[:shared]
        self.acked = max(self.acked, log, key=len).copy()

    def _refused(self, primary: Primary) -> None:
        self.refusals += 1
        if primary in self.primaries:
            self.primaries.remove(primary)

    def _check(self, choice: Choice) -> None:
        log = self.members[choice.source].log
        assert log[: len(self.acked)] == self.acked, "an acknowledged record is gone"
        epoch, length = self.opened
        late = [record for record in log[length:] if record[0] < epoch]
        assert not late, "records of an old epoch appear that readers have not seen"


def lives(members: int, seeds: int) -> Iterator[Life]:
    for seed in range(seeds):
        restless = seed % 3 == 0
        rng = random.Random(f"{members}/{seed}")
        life = Life(rng, members, members // 2 + 1)
        for _ in range(150):
            if not life.primaries or rng.random() < (0.3 if restless else 0.06):
                life.take_over()
            else:
                life.write(rng.choice(life.primaries))
        yield life


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_nothing_that_was_acknowledged_or_opened_is_lost(members: int) -> None:
    takeovers = refusals = acked = 0
    for life in lives(members, 60):
        takeovers += life.epoch
        refusals += life.refusals
        acked += len(life.acked)
    assert takeovers > 300
    assert acked > 1000
    assert members == 1 or refusals > 50  # ghosts were there


def _longest(promises: Mapping[NodeId, Chain], members: int, wanted: int) -> Choice | None:
    if len(promises) < needed(members, wanted):
        return None
    source = max(promises, key=lambda node: (promises[node].seq, node))
    chain = promises[source]
    others = {node: own for node, own in promises.items() if own.end != chain.end}
    tasks = (takeover.task_of(node, own, chain, source) for node, own in others.items())
    return Choice(chain, source, tuple(tasks))


BROKEN: dict[str, tuple[str, Any]] = {
    "a promise too few": ("needed", lambda members, wanted: members - wanted),
    "the longest wins": ("choose", _longest),
    "no note that an epoch is open": ("extended_by_opening", lambda chain, epoch, seq: chain),
    "an acknowledgement too early": ("wanted_acks", lambda wanted: wanted - 1),
    "records of a sealed epoch are taken": ("refuses", lambda epoch, promise: False),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, instead = BROKEN[rule]
    monkeypatch.setattr(sys.modules[__name__], name, instead)
    if name == "needed":
        monkeypatch.setattr("transport.group.takeover.needed", instead)
    with pytest.raises((AssertionError, BadChain)):
        for _ in lives(3, 60):
            pass


def test_an_epoch_that_was_opened_and_wrote_nothing_is_newer_than_a_longer_one() -> None:
    a, b, c = (NodeId(name) for name in "abc")
    opened = Chain(((1, 100), (2, 100)))
    away = Chain(((1, 120),))
    choice = choose({b: opened, c: away}, 3, 2)
    assert choice is not None
    assert (choice.source, choice.chain) == (b, opened)
    (task,) = choice.tasks
    assert (task.member, task.keep, task.undo) == (c, (1, 100), True)
    assert choose({b: opened}, 3, 2) is None
    choice = choose({a: Chain(), b: opened, c: away}, 3, 2)
    assert choice is not None
    assert [task.member for task in choice.tasks] == [c, a]  # least to do first
