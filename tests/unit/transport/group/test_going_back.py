"""Volumes of several nodes that go back to a version: over real journals, with a wire that loses,
members that die or were away, and takeovers in the middle."""

import random

import pytest

from tests.group_rig import Group, Node
from tests.unit.transport.group.test_group import (
    SHORT_LOG,
    check_all,
    count_answers,
    group,
    heal,
    named,
    play,
)
from transport.peer.messages import Request
from transport.peer.wire import Message
from volume.notes import Kind, Note
from volume.volume import Volume


def written(made: Group, count: int = 6) -> int:
    """Seq of the newest record, which all have."""
    made.settle(1.0)
    for _ in range(count):
        assert made.write()
    made.settle(1.0)
    return made.seq


def test_all_members_go_back_and_go_on() -> None:
    made = group()
    to = written(made) - 2
    assert made.restore(to, "before")
    for _ in range(5):
        assert made.write()
    made.settle(5.0)
    assert made.acked == made.seq
    check_all(made)
    wanted = named(made.node)
    for node in made.others:
        assert named(node) == wanted
        node.kill()
        assert made.content(node) == made.expected(node.chain())


def test_a_member_that_was_away_goes_back_when_it_comes() -> None:
    made = group()
    to = written(made) - 2
    away = made.others[0]
    away.up = False
    assert made.restore(to)
    assert made.write()
    made.settle(5.0)
    assert made.acked == made.seq  # the two others are enough
    away.up = True
    told = count_answers(away)
    made.settle(30.0)
    check_all(made)
    assert told["Adopt"] == 0  # the log leads it there


def test_a_member_that_has_not_the_state_any_more_gets_it_by_copy() -> None:
    made = group()
    to = written(made) - 2
    lacking = made.others[0]
    find = lacking.rig.store._notes.state_of
    lacking.rig.store._notes.state_of = lambda *_: None  # type: ignore[method-assign]
    told = count_answers(lacking)
    assert made.restore(to, "before")
    assert made.write()
    made.settle(60.0)
    assert made.acked == made.seq
    check_all(made)
    assert told["Adopt"] == 1
    assert named(lacking) == named(made.node)
    lacking.rig.store._notes.state_of = find  # type: ignore[method-assign]
    assert made.restore(to)
    made.settle(30.0)
    check_all(made)


def test_a_member_beyond_the_log_gets_what_the_volume_went_back_to() -> None:
    made = Group(3, 2, random.Random(0), options=SHORT_LOG)
    to = written(made, 4)
    made.node.rig.store._notes.snapshot(
        "old", [made.node.replica.volume], pinned=True, scheduled=False
    )
    made.writes[1, to + 1] = (0, b"")
    made._add(made.primary.appended(to + 1, made.now))
    made.settle(1.0)
    away = made.others[0]
    away.up = False
    for at in range(60):
        if at == 30:
            assert made.restore(to + 1, "before")
        made.write()
        while made.step():
            pass
        made.pass_time(0.1)
    made.node.rig.settle()
    made.settle(5.0)
    away.up = True
    made.settle(60.0)
    check_all(made)
    assert named(away) == named(made.node)


def test_a_restore_that_nobody_else_has_is_undone_by_a_takeover() -> None:
    made = group()
    to = written(made) - 2
    old = made.node
    made.cut_off = {node.id for node in made.others}
    assert made.restore(to, "before")
    while made.step():
        pass
    new, other = made.others
    assert made.take_over(new.id, [new.id, other.id])
    made.cut_off.clear()
    made.settle(30.0)
    check_all(made)
    assert named(old) == {}


def test_a_restore_that_w_nodes_have_survives_the_primary() -> None:
    made = group()
    to = written(made) - 2
    old, away, has = made.node, *made.others
    made.cut_off = {away.id}
    assert made.restore(to, "before")
    made.settle(5.0)
    assert made.acked == made.seq
    old.up = False
    made.cut_off.clear()
    assert made.take_over(away.id, [away.id, has.id])  # from the log of the one that has it
    made.settle(10.0)
    assert made.content(away) == made.content(has) == made.expected(has.chain())
    assert named(away) == named(has)
    old.up = True
    made.settle(30.0)
    check_all(made)


class Dies(BaseException):
    """At one step of a restore."""


@pytest.mark.parametrize("power", [False, True])
@pytest.mark.parametrize("step", ["restore.synced", "restore.replaced"])
@pytest.mark.parametrize("who", ["primary", "member"])
def test_a_crash_at_any_step_loses_nothing(
    who: str, step: str, power: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = group()
    to = written(made) - 2
    made.flush()
    made.settle(1.0)
    dying: Node = made.node if who == "primary" else made.others[0]
    apply, answer = dying.rig.store._notes._apply, dying.answer
    applying: list[Kind] = []
    deaths = 0

    def noted(volume: Volume, note: Note, seq: int, lsn: int) -> None:
        applying.append(note.kind)
        try:
            apply(volume, note, seq, lsn)
        finally:
            applying.pop()

    def die(name: str) -> None:
        if name == step and applying == [Kind.RESTORE]:
            raise Dies

    def back() -> None:
        nonlocal deaths
        deaths += 1
        made.cut(dying) if power else dying.kill()

    def answered(message: Request, now: float) -> Message:
        """Asked again, where it has died of it."""
        try:
            return answer(message, now)
        except Dies:
            back()
            return answer(message, now)

    dying.rig.store._notes._apply = noted  # type: ignore[method-assign]
    dying.answer = answered  # type: ignore[method-assign]
    monkeypatch.setattr("volume.noted.fail_point", die)
    monkeypatch.setattr("volume.heads.fail_point", die)
    before = made.seq
    try:
        made.restore(to, "before")
    except Dies:  # nobody else has it; it is in this node's journal, synced
        back()
        made.writes[1, before + 1] = made.writes[1, before + 2] = (0, b"")
        made.restores[1, before + 2] = to
        assert made.take_over(dying.id, list(made.nodes)[:2])
    made.settle(30.0)
    assert deaths == 1
    assert made.seq == before + 2
    check_all(made)
    assert all(named(node) == named(made.node) for node in made.others)


@pytest.mark.parametrize("seed", range(4))
def test_lives_with_restores(seed: int) -> None:
    made = group(3, 2, seed)
    made.settle(1.0)
    made.faults = 0.12
    kinds = ("write",) * 6 + ("work",) * 6 + ("flush", "time", "kill", "cut", "upkeep")
    done = 0
    for at in range(220):
        if made.opened and made.rng.random() < 0.08:
            to = made.rng.randint(max(0, made.seq - 12), made.seq)
            done += made.restore(to, f"before-{at}" if at % 2 else None)
        play(made, made.rng.choice((*kinds, "off", "on", "late", "takeover")))
    heal(made)
    assert done > 2
