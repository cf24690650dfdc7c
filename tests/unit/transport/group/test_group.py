"""A Primary and its Members over real journals, with a wire that loses and members that die."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.group_rig import OPTIONS, VOLUME, Group, Node, epochs
from transport.group.link import State
from transport.group.takeover import needed
from transport.peer import messages as m
from transport.peer.messages import Request
from transport.peer.wire import Message
from volume.metastore_records import Mode


def group(count: int = 3, wanted: int = 2, seed: int = 0, mode: Mode = Mode.MIRROR) -> Group:
    return Group(count, wanted, random.Random(seed), mode)


def count_answers(node: Node) -> Counter[str]:
    """How often each kind of request is answered by a node from now on."""
    told: Counter[str] = Counter()
    answer = node.answer

    def count(message: Request, now: float) -> Message:
        told[type(message).__name__] += 1
        return answer(message, now)

    node.answer = count  # type: ignore[method-assign]
    return told


def check_all(made: Group) -> None:
    """Every member has all that was written, and reads so."""
    for node in made.nodes.values():
        assert node.chain().end == made.node.chain().end, node.id
        assert epochs(node.chain()) == epochs(made.node.chain()), node.id
        assert made.content(node) == made.expected(node.chain()), node.id


def test_members_are_brought_into_step_and_get_what_is_written() -> None:
    made = group()
    made.settle(1.0)
    assert made.opened
    assert {each.state for each in made.primary.status(made.now)} == {"primary", State.STEP.value}
    for _ in range(20):
        assert made.write()
    made.settle(1.0)
    assert made.acked == 20
    check_all(made)


def test_many_writes_are_few_messages() -> None:
    made = group()
    made.settle(1.0)
    told = [count_answers(node) for node in made.others]
    for _ in range(20):
        assert made.write()
    while made.step():
        pass
    assert made.acked == 20
    assert [each["Append"] <= 2 for each in told] == [True, True]


def test_a_flush_is_done_when_w_have_synced() -> None:
    made = group()
    made.settle(1.0)
    for _ in range(5):
        made.write()
    made.settle(1.0)
    assert made.acked == 5
    assert made.durable < 5
    made.flush()
    made.settle(1.0)
    assert made.durable == 5
    for node in made.nodes.values():
        node.cut(made.rng)
        assert node.replica.held[0] >= 5


def test_in_strict_a_write_is_durable_on_w() -> None:
    made = group(mode=Mode.STRICT)
    made.settle(1.0)
    for _ in range(5):
        made.write()
    made.settle(1.0)
    assert made.acked == made.durable == 5


def test_with_fewer_than_w_nothing_is_acknowledged() -> None:
    made = group()
    made.settle(1.0)
    for node in made.others:
        node.up = False
    made.write()
    made.settle(5.0)
    assert made.acked == 0
    made.others[0].up = True
    made.settle(20.0)
    assert made.acked == 1


def test_a_member_that_is_away_holds_nobody_up_and_catches_up_from_the_log() -> None:
    made = group()
    made.settle(1.0)
    away = made.others[0]
    away.up = False
    for _ in range(60):
        made.write()
        while made.step():
            pass
        made.pass_time(0.1)
    made.settle(1.0)
    assert made.acked == made.seq > 50
    assert away.replica.held[0] == 0
    away.up = True
    made.settle(30.0)
    check_all(made)
    assert {each.why for each in made.primary.status(made.now)} == {""}


SHORT_LOG = replace(OPTIONS, window_bytes=0, window_s=0)


def long_away(made: Group) -> Node:
    """A member that has missed more than the log of the others has."""
    made.settle(1.0)
    away = made.others[0]
    for _ in range(5):
        made.write()
    made.settle(1.0)
    away.up = False
    for _ in range(40):
        made.write()
        while made.step():
            pass
        made.pass_time(0.1)
    made.node.rig.settle()
    made.settle(5.0)
    assert made.acked == made.seq > 30
    away.up = True
    return away


def test_a_member_that_the_log_does_not_lead_to_gets_all_of_the_volume() -> None:
    made = Group(3, 2, random.Random(0), options=SHORT_LOG)
    away = long_away(made)
    told = count_answers(away)
    made.settle(60.0)
    check_all(made)
    assert told["Stream"] > 2
    assert told["Adopt"] == 1
    assert away.rig.store.names() == ["vm1"]
    for _ in range(5):
        made.write()
    made.settle(5.0)
    check_all(made)
    away.kill()
    assert made.content(away) == made.expected(away.chain())


def note_added(made: Group) -> None:
    """A record that is no write."""
    seq = made.node.replica.held[0]
    made.writes[made.primary.epoch, seq] = (0, b"")
    made._add(made.primary.appended(seq, made.now))
    made.settle(1.0)


def snapshot(made: Group, name: str) -> None:
    notes, volume = made.node.rig.store._notes, made.node.replica.volume
    notes.snapshot(name, [volume], pinned=name == "pinned", scheduled=False)
    note_added(made)


def named(node: Node) -> dict[str, tuple[int, bool, bytes]]:
    """Snapshots of a node: seq, whether pinned, and what their trees are."""
    found = {}
    for each in node.rig.store.snapshots.all("vm1"):
        with node.rig.store.versions.settled(f"vm1@{each.name}") as (_, row):
            found[each.name] = (each.seq, each.pinned, row.root)
    return found


def test_a_member_that_is_copied_to_gets_the_names_and_what_they_name() -> None:
    made = Group(3, 2, random.Random(0), options=SHORT_LOG)
    made.settle(1.0)
    away = made.others[0]
    made.write()
    snapshot(made, "old")
    snapshot(made, "dropped")
    away.up = False
    for name in ("first", "pinned", "last"):
        for _ in range(14):
            made.write()
            while made.step():
                pass
            made.pass_time(0.1)
        snapshot(made, name)
    made.node.rig.store._notes.drop(made.node.replica.volume, "dropped")
    note_added(made)
    made.node.rig.settle()
    made.settle(5.0)
    away.up = True
    told = count_answers(away)
    made.settle(60.0)
    assert told["Adopt"] == 1
    wanted = named(made.node)
    assert sorted(wanted) == ["first", "last", "old", "pinned"]
    assert named(away) == wanted
    away.kill()
    assert named(away) == wanted
    assert away.rig.store.info("vm1").snapshot_count == 4


def test_a_member_that_cannot_go_back_gets_all_of_the_volume() -> None:
    made = Group(3, 2, random.Random(0), options=SHORT_LOG)
    made.settle(1.0)
    for _ in range(10):
        made.write()
    made.settle(1.0)
    old = made.node
    made.cut_off = {node.id for node in made.others}
    for _ in range(30):
        made.write()
        while made.step():
            pass
    old.replica.untap()
    old.rig.settle()  # what it has is in chunks, and the log of it is gone
    new, other = made.others
    assert made.take_over(new.id, [new.id, other.id])
    made.cut_off.clear()
    told = count_answers(old)
    made.settle(30.0)
    check_all(made)
    assert told["Undo"] == told["Adopt"] == 1


def test_a_member_that_has_undone_what_counts_after_all_gets_all_of_the_volume() -> None:
    """By the word of one that took over and was not heard of again."""
    made = group()
    made.settle(1.0)
    for _ in range(10):
        made.write()
    made.settle(1.0)
    new, other = made.others
    seq = made.seq
    assert isinstance(other.answer(m.Seal(VOLUME, 2), made.now), m.Sealed)
    assert isinstance(other.answer(m.Undo(VOLUME, 2, 1, seq - 4), made.now), m.Ack)
    told = count_answers(other)
    assert made.take_over(new.id, [node.id for node in made.nodes.values()], epoch=3)
    made.settle(2.0)
    for _ in range(3):
        made.write()
    made.settle(30.0)
    check_all(made)
    assert made.acked == made.seq == seq + 3
    assert told["Adopt"] == 1
    other.kill()
    assert made.content(other) == made.expected(other.chain())


@pytest.mark.parametrize("seed", range(3))
def test_a_copy_that_is_disturbed_begins_anew(seed: int) -> None:
    made = Group(3, 2, random.Random(seed), options=SHORT_LOG)
    away = long_away(made)
    made.faults = 0.2
    for _ in range(150):
        made.step()
        if made.rng.random() < 0.1:
            made.pass_time(1.0)
        if made.rng.random() < 0.04:
            away.kill()
    made.faults = 0.0
    made.settle(120.0)
    check_all(made)
    assert away.rig.store.names() == ["vm1"]


def test_what_nobody_else_has_is_undone_when_the_old_primary_comes_back() -> None:
    made = group()
    made.settle(1.0)
    for _ in range(10):
        made.write()
    made.settle(1.0)
    old = made.node
    made.cut_off = {node.id for node in made.others}
    for _ in range(7):
        made.write()
        while made.step():
            pass
    assert old.replica.held[0] == 17
    assert made.acked == 10
    new, other = made.others
    assert made.take_over(new.id, [new.id, other.id])
    assert made.seq == 10
    made.cut_off.clear()
    old.kill()
    made.settle(1.0)
    for _ in range(3):
        made.write()
    made.settle(60.0)
    assert made.acked == 13
    check_all(made)
    for node in made.nodes.values():
        node.kill()
        assert made.content(node) == made.expected(made.node.chain())
        node.cut(made.rng)


def test_an_old_primary_is_fenced_by_the_first_answer() -> None:
    made = group()
    made.settle(1.0)
    old = made.primary
    made.write()
    made.settle(1.0)
    told = made.node
    new, other = made.others
    assert made.take_over(new.id, [new.id, other.id])
    assert told.replica.serving == 1
    made.settle(5.0)  # the new one seals it
    assert told.replica.serving is None
    assert told.rig.write("vm1", 0, bytes(512)) != 0
    assert old.poll(made.now + 60) is not None


STEPS = st.lists(
    st.sampled_from(
        (
            *("write", "write", "write", "work", "work", "work", "flush", "time", "kill", "cut"),
            *("upkeep", "off", "on", "late", "takeover"),
        )
    ),
    max_size=60,
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(((2, 1), (2, 2), (3, 2), (3, 3), (4, 2), (4, 3))),
    st.integers(0, 1 << 32),
    st.sampled_from((0.0, 0.1, 0.4)),
    STEPS,
)
def test_what_was_acknowledged_is_in_w_journals_whatever_happens(
    shape: tuple[int, int], seed: int, faults: float, steps: list[str]
) -> None:
    count, wanted = shape
    made = group(count, wanted, seed)
    made.settle(1.0)
    made.faults = faults
    for step in steps:
        play(made, step)
    heal(made)


def heal(made: Group) -> None:
    """Without faults all members come to have all, and it is acknowledged."""
    made.faults = 0.0
    made.cut_off.clear()
    made.settle()
    assert made.primary.acked == made.seq
    check_all(made)


def play(made: Group, step: str) -> None:
    rng = made.rng
    node = rng.choice(made.others)
    match step:
        case "write":
            made.write()
        case "work":
            for _ in range(rng.randint(1, 8)):
                made.step()
        case "flush":
            made.flush()
        case "time":
            made.pass_time(rng.choice((0.01, 0.5, 4.0)))
        case "kill":
            node.kill()
        case "cut":
            made.cut(node)
        case "upkeep":
            rng.choice(list(made.nodes.values())).rig.settle()
        case "off":
            made.cut_off.add(node.id)
        case "on":
            made.cut_off.clear()
        case "late":
            made.carry_out_late()
        case "takeover":
            count = needed(len(made.nodes), made.wanted)
            asked = rng.sample(list(made.nodes), max(count, 1))
            made.take_over(rng.choice(asked), asked)


@pytest.mark.parametrize("seed", range(3))
def test_long_lives_over_a_short_log(seed: int) -> None:
    made = Group(3, 2, random.Random(seed), options=SHORT_LOG)
    made.settle(1.0)
    made.faults = 0.1
    kinds = ("write",) * 6 + ("work",) * 6 + ("flush", "time", "kill", "cut", "upkeep", "upkeep")
    for _ in range(300):
        play(made, made.rng.choice((*kinds, "off", "on", "late")))
    heal(made)


@pytest.mark.parametrize("seed", range(4))
def test_long_lives(seed: int) -> None:
    made = group(3, 2, seed)
    made.settle(1.0)
    made.faults = 0.15
    kinds = ("write",) * 6 + ("work",) * 6 + ("flush", "time", "kill", "cut", "upkeep")
    for _ in range(300):
        play(made, made.rng.choice((*kinds, "off", "on", "late", "takeover")))
    heal(made)
