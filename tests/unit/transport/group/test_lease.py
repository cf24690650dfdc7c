"""Leases: what renews one, and that clocks, pauses and lost answers never give two readers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Any

import pytest

from transport.group import lease
from transport.group.acks import NodeId
from transport.group.lease import LEASE_S, MAX_DRIFT, READS_S, RENEW_S, Lease, Quiet, free_at

A, B, C, D, E = (NodeId(name) for name in "abcde")


def test_a_renewal_counts_from_when_it_was_asked_for() -> None:
    mine = Lease(A, [A, B, C], 2)
    assert not mine.may_read(0.0)
    mine.asked(B, 100.0)
    assert mine.answered(B, 100.0)
    assert mine.reads_until == 100.0 + READS_S
    assert mine.may_read(100.0 + READS_S - 0.001)
    assert not mine.may_read(100.0 + READS_S)
    assert mine.answered(C, 101.0)
    assert not mine.answered(B, 99.0)  # an answer that was under way for long
    assert mine.renewed_at == 101.0


def test_w_members_renew_it_and_the_primary_is_one_of_them() -> None:
    mine = Lease(A, [A, B, C, D, E], 3)
    assert not mine.answered(B, 50.0)
    assert mine.answered(C, 40.0)
    assert mine.renewed_at == 40.0
    assert mine.answered(D, 45.0)
    assert mine.renewed_at == 45.0
    with pytest.raises(KeyError):
        mine.answered(NodeId("x"), 60.0)


def test_a_primary_that_needs_nobody_reads_for_ever() -> None:
    assert Lease(A, [A], 1).reads_until == inf
    assert Lease(A, [A], 1).ask_at == inf
    assert Lease(A, [A, B], 1).may_read(1e12)


def test_who_was_asked_nothing_is_asked() -> None:
    mine = Lease(A, [A, B, C], 2)
    assert mine.to_ask(0.0) == [B, C]
    mine.asked(B, 10.0)
    mine.asked(C, 11.0)
    assert mine.to_ask(12.9) == []
    assert mine.ask_at == 10.0 + RENEW_S
    assert mine.to_ask(10.0 + RENEW_S) == [B]


def test_a_member_is_quiet_since_it_answered_or_was_started() -> None:
    quiet = Quiet(100.0)
    assert quiet.seconds(103.0) == 3.0
    quiet.answered(105.0)
    quiet.answered(104.0)
    assert quiet.seconds(105.5) == 0.5
    assert quiet.seconds(104.0) == 0.0


def test_a_successor_waits_for_what_is_left_of_the_lease() -> None:
    assert free_at([(100.0, 4.0)], 2) == inf
    assert free_at([(100.0, 4.0), (101.0, 0.0)], 2) == 101.0 + LEASE_S
    # Another promise can only help: any two will do.
    assert free_at([(100.0, 4.0), (101.0, 0.0), (102.0, 9.0)], 2) == 106.0
    assert free_at([(100.0, 1e9), (101.0, 1e9)], 2) == 101.0


@dataclass(frozen=True)
class Clock:
    """A node's, which is wrong by `drift` about each length of time."""

    offset: float
    drift: float

    def at(self, real: float) -> float:
        return self.offset + real * (1 + self.drift)

    def when(self, shown: float) -> float:
        return (shown - self.offset) / (1 + self.drift)


def last_read(drift: float) -> tuple[float, float]:
    """When the last read may be answered after a renewal at 0, and when somebody else opens, at
    the worst for clocks wrong by at most `drift`."""
    slow, fast = Clock(7.0, -drift), Clock(-3.0, drift)
    return slow.when(slow.at(0.0) + READS_S), fast.when(fast.at(0.0) + LEASE_S)


def test_the_bound_for_drift_holds_and_is_not_much_too_low() -> None:
    until, opened = last_read(MAX_DRIFT)
    assert until < opened
    until, opened = last_read(3 / 17 + 0.001)
    assert until > opened


def clock_of(rng: random.Random) -> Clock:
    drift = rng.choice((-MAX_DRIFT, MAX_DRIFT, 0.0, rng.uniform(-MAX_DRIFT, MAX_DRIFT)))
    return Clock(rng.uniform(-1000.0, 1000.0), drift)


def moment(rng: random.Random) -> float:
    return rng.uniform(0.0, 30.0)


def delay(rng: random.Random) -> float:
    """On the way, or by a pause of either side at any point."""
    return rng.choice((0.0, rng.uniform(0.0, 0.3), rng.uniform(0.0, 15.0)))


def live(rng: random.Random) -> tuple[list[float], float]:
    """One old primary and one successor: when reads passed the look at the lease, and when the
    volume was opened again."""
    count = rng.choice((3, 5))
    wanted = count // 2 + 1
    members = [NodeId(str(number)) for number in range(count)]
    primary, others = members[0], members[1:]
    clocks = {node: clock_of(rng) for node in members}
    start = {node: rng.choice((0.0, moment(rng))) for node in others}
    sealed = {node: moment(rng) for node in others if rng.random() < 0.9}
    quiets = {node: Quiet(clocks[node].at(start[node])) for node in others}
    sends = [(moment(rng), node) for node in others for _ in range(rng.randint(1, 8))]
    asked = sorted((sent + delay(rng), node, sent) for sent, node in sends)
    events: list[tuple[float, NodeId | None, float]] = []
    for came, node, sent in asked:
        if came >= sealed.get(node, inf):
            continue  # it refuses
        # Who was not started yet answered as the process before that, which forgot it.
        if came >= start[node]:
            quiets[node].answered(clocks[node].at(came))
        events.append((came + delay(rng), node, sent))
    events += [(moment(rng) + delay(rng), None, 0.0) for _ in range(30)]
    mine = Lease(primary, members, wanted)
    passed = []
    for now, who, sent in sorted(events, key=lambda each: each[0]):
        if who is not None:
            mine.answered(who, clocks[primary].at(sent))
        elif mine.may_read(clocks[primary].at(now)):
            passed.append(now)
    successor = clocks[others[0]]
    promises = []
    for node, when in sealed.items():
        at = max(when, start[node])  # it cannot promise before it is there
        quiet = quiets[node].seconds(clocks[node].at(at))
        promises.append((successor.at(at + delay(rng)), quiet))
    opened = free_at(promises, count - wanted + 1)
    return passed, inf if opened == inf else successor.when(opened)


def lives() -> Iterator[tuple[list[float], float]]:
    for seed in range(5000):
        yield live(random.Random(seed))


def test_no_read_of_an_old_primary_passes_after_the_new_one_has_opened() -> None:
    reads = takeovers = 0
    for passed, opened in lives():
        assert all(now < opened for now in passed)
        reads += len(passed)
        takeovers += opened < inf
    assert reads > 5000
    assert takeovers > 4000


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "a lease that is too long": (lease, "READS_S", LEASE_S + 0.5),
    "a successor that waits too short": (lease, "LEASE_S", READS_S - 0.5),
    "quiet that is too much": (Quiet, "seconds", lambda self, now: now - self._last + 4.0),
    "a renewal that counts from its answer": (
        *(Lease, "answered"),
        lambda self, member, sent_at: self._answered.update({member: sent_at + 2.0}),
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, instead = BROKEN[rule]
    monkeypatch.setattr(owner, name, instead)
    assert any(now >= opened for passed, opened in lives() for now in passed)
