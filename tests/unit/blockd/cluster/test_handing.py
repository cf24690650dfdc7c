"""A node that goes down: which volumes it hands over, to whom, and how long that may take."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blockd.cluster.handing import AT_ONCE, HandOver
from transport.errors import TransportError
from transport.group.acks import NodeId
from transport.group.link import State
from transport.group.part import Part
from transport.sessions import Sessions

ME, A, B = NodeId("me"), NodeId("a"), NodeId("b")
LONG_S = 60.0


class OneThread:
    """Of the sessions: what is posted is done at once."""

    def result_of(self, call: Callable[[], Any]) -> Any:
        return call()

    def post(self, call: Callable[[], None]) -> None:
        call()


class Ended(OneThread):
    def result_of(self, call: Callable[[], Any]) -> Any:
        raise TransportError("the sessions have ended")


class FakePart:
    """`ends`: what a move ends with, at once; moves wait for `end` without it."""

    def __init__(
        self, in_step: Sequence[NodeId], ends: str | None = "wait", comes: NodeId | None = None
    ) -> None:
        self.serving = True
        self.moved_to: list[NodeId] = []
        self.replica = SimpleNamespace(name="v")
        self.end: Callable[[str | None], None] = lambda problem: None
        self._in_step = in_step
        self._comes = comes
        self._ends = ends

    def status(self) -> Any:
        states = {
            node: State.STEP if node in (*self._in_step, ME) else State.AWAY for node in (ME, A, B)
        }
        members = [
            SimpleNamespace(member=node, state=states[node].value, counts=node != self._comes)
            for node in states
        ]
        return SimpleNamespace(members=members)

    def move(self, node: NodeId, then: Callable[[str | None], None]) -> None:
        self.moved_to.append(node)
        if self._ends == "wait":
            self.end = then
        else:
            then(self._ends)


def hand_over(parts: Sequence[FakePart], sessions: OneThread | None = None) -> HandOver:
    one = cast(Sessions, sessions or OneThread())
    return HandOver(ME, one, lambda: cast(Sequence[Part], parts))


def test_volumes_are_spread_over_members_in_step() -> None:
    parts = [FakePart((A, B), None) for _ in range(10)]
    assert hand_over(parts).run(LONG_S) == 10
    to = [node for part in parts for node in part.moved_to]
    assert (to.count(A), to.count(B)) == (5, 5)


def test_who_is_not_in_step_gets_none() -> None:
    parts = [FakePart((B,), None) for _ in range(3)]
    assert hand_over(parts).run(LONG_S) == 3
    assert {node for part in parts for node in part.moved_to} == {B}


def test_who_is_only_to_come_gets_none() -> None:
    parts = [FakePart((A, B), None, comes=A) for _ in range(3)]
    assert hand_over(parts).run(LONG_S) == 3
    assert {node for part in parts for node in part.moved_to} == {B}


def test_what_nobody_can_take_is_left_to_the_stop() -> None:
    parts = [FakePart(()), FakePart((A,), None)]
    assert hand_over(parts).run(LONG_S) == 1
    assert parts[0].moved_to == []


def test_what_is_not_served_here_stays() -> None:
    part = FakePart((A,))
    part.serving = False
    assert hand_over([part]).run(LONG_S) == 0
    assert part.moved_to == []


def test_a_move_that_fails_is_told_and_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    parts = [FakePart((A,), "its disk is full"), FakePart((A,), None)]
    assert hand_over(parts).run(LONG_S) == 1
    assert parts[0].moved_to == [A]
    assert "its disk is full" in caplog.text


def test_few_are_moved_at_once_and_none_any_more_when_time_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parts = [FakePart((A,)) for _ in range(AT_ONCE + 2)]
    assert hand_over(parts).run(0.0) == 0
    assert "not all volumes are handed over" in caplog.text
    begun = [part for part in parts if part.moved_to]
    assert len(begun) == AT_ONCE
    for part in begun:
        part.end(None)
    assert [part for part in parts if part.moved_to] == begun


def test_a_node_whose_sessions_have_ended_hands_nothing_over() -> None:
    part = FakePart((A,))
    assert hand_over([part], Ended()).run(LONG_S) == 0
    assert part.moved_to == []
