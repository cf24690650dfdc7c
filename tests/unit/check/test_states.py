"""I2, I3, I5: states of a whole volume after crashes and of snapshots."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.check.events import BadHistory
from tests.check.stamps import Run
from tests.sim.history import STAMP, History
from tests.unit.check.histories import SECTORS, Script


def two_flushed() -> tuple[Script, int, int]:
    """Sectors 0-3 are of the first write, flushed, 2-5 of the second, acked only."""
    script = Script()
    first = script.write(0, 4)
    script.flush()
    second = script.write(2, 4)
    return script, first, second


def test_a_power_cut_may_take_what_was_not_flushed() -> None:
    for kept in (True, False):
        script, first, second = two_flushed()
        script.crash("power")
        runs: list[Run] = [[2, first], [4, second]] if kept else [[4, first]]
        script.state(*runs)
        assert script.found() == []


def test_a_kill_may_take_nothing_that_was_acked() -> None:
    script, first, _ = two_flushed()
    script.crash("kill")
    script.state([4, first])
    assert script.found() == [("I2", 2, 4)]


def test_a_lost_flushed_write_is_caught() -> None:
    script, first, _ = two_flushed()
    script.flush()
    script.crash("power")
    script.state([4, first])
    assert script.found() == [("I2", 2, 4)]


def test_zeros_where_flushed_data_was_are_caught() -> None:
    script, first, _ = two_flushed()
    script.crash("power")
    script.state([3, first])
    assert script.found() == [("I2", 3, 1)]


def test_a_flush_covers_only_what_was_acked_before_it_began() -> None:
    script = Script()
    write = script.begin("write")
    flush = script.begin("flush")
    script.end(write)
    script.end(flush)
    script.crash("power")
    script.state()
    assert script.found() == []


def test_an_acked_fua_write_survives() -> None:
    script = Script()
    script.write(0, 1, "fua")
    script.crash("power")
    script.state()
    assert script.found() == [("I2", 0, 1)]


def test_a_later_write_without_an_earlier_one_is_caught() -> None:
    script = Script()
    script.write(0)
    script.write(1)
    third = script.write(2)
    script.crash("power")
    script.state([1, 0], [1, 0], [1, third])
    assert [one[0] for one in script.found()] == ["I3"]


def test_a_write_that_shows_in_part_is_caught() -> None:
    script = Script()
    write = script.begin("write", 0, 4)
    script.crash("kill")
    script.state([2, write])
    assert script.found() == [("I3", 2, 2)]


def test_a_write_in_flight_shows_or_does_not_after_a_crash() -> None:
    for kind in ("kill", "power"):
        for shows in (True, False):
            script = Script()
            old = script.write(0, 4)
            script.flush()
            new = script.begin("write", 0, 4)
            script.crash(kind)
            script.state([4, new if shows else old])
            assert script.found() == []


def test_writes_in_flight_together_are_not_ordered() -> None:
    script = Script()
    script.begin("write", 0, 2)
    second = script.begin("write", 2, 2)
    script.crash("power")
    script.state([2, 0], [2, second])
    assert script.found() == []


def test_what_a_power_cut_undid_does_not_come_back() -> None:
    script, first, second = two_flushed()
    script.crash("power")
    script.state([4, first])
    script.read(0, [4, first])
    script.read(2, [4, second])
    assert script.found() == [("I1", 2, 2), ("I1", 4, 2)]


def test_what_a_power_cut_left_is_durable() -> None:
    script, first, second = two_flushed()
    script.crash("power")
    script.state([2, first], [4, second])
    script.crash("power")
    script.state([4, first])
    assert script.found() == [("I2", 2, 4)]


def test_torn_and_foreign_sectors_and_torn_blocks_are_caught() -> None:
    script = Script()
    old = script.write(0, 16)
    new = script.begin("write", 8, 8)
    script.crash()
    script.state([6, old], [1, "torn"], [1, "foreign"], [4, new], [4, old])
    assert script.found() == [("I5", 6, 1), ("I8", 7, 1), ("I3", 12, 4), ("I5", 8, 8)]


def test_a_snapshot_is_a_state_of_while_it_was_named() -> None:
    for shows in (True, False):
        script = Script()
        old = script.write(0, 2)
        new = script.begin("write", 0, 2)
        script.name("snap")
        script.end(new)
        script.write(0, 2)
        script.state([2, new if shows else old], of="snap")
        assert script.found() == []


def test_a_snapshot_with_a_later_or_without_an_earlier_write_is_caught() -> None:
    script = Script()
    old = script.write(0)
    new = script.write(0)
    script.name("snap")
    later = script.write(1)
    script.state([1, new], [1, later], of="snap")
    script.state([1, old], of="snap")
    script.state([1, new], of="snap")
    assert script.found() == [("I8", 1, 1), ("I2", 0, 1)]


def test_zeros_are_of_any_trim_or_of_before_the_first_write() -> None:
    script = Script()
    script.write(0, 4)
    script.write(0, 2, "trim")
    script.write(1, 1, "zero")
    script.state([2, 0], [2, 1])
    script.state([2, 0], [2, 1])
    assert script.found() == []


def test_a_history_that_cannot_be_is_refused() -> None:
    impossible: tuple[list[list[Any]], ...] = (
        [["b", 1, 1, "write", SECTORS, 1]],
        [["b", 1, 1, "dance", 0, 1]],
        [["b", 2, 1, "flush", 0, 0], ["b", 1, 1, "flush", 0, 0]],
        [["e", 1, 0]],
        [["b", 1, 1, "read", 0, 2], ["e", 1, 0, [[1, 0]]]],
        [["b", 1, 1, "write", 0, 1], ["state", None, [[SECTORS, 0]]]],
        [["crash", "power"], ["b", 1, 1, "flush", 0, 0]],
        [["state", "nobody", [[SECTORS, 0]]]],
        [["state", None, [[1, 0]]]],
        [["what"]],
        [[]],
    )
    for lines in impossible:
        script = Script()
        script.lines = lines
        with pytest.raises(BadHistory):
            script.report()


@given(st.integers(0, 2**32), st.integers(1, 12), st.booleans())
def test_changes_one_after_the_other_are_judged_as_in_simulations(
    seed: int, count: int, damaged: bool
) -> None:
    """The checker of `tests.sim`, where nothing overlaps, and this one say the same of a state."""
    rng = random.Random(seed)
    script, history = Script(), History(SECTORS * 512)
    flushed = 0
    for _ in range(count):
        first = rng.randrange(8)
        length = rng.randint(1, 8 - first)
        if rng.random() < 0.3:
            history.zero(first * 512, length * 512)
            script.write(first, length, "trim")
        else:
            history.write(first * 512, length * 512)
            script.write(first, length)
        if rng.random() < 0.2:
            script.flush()
            flushed = history.position
    operations = [line[1] for line in script.lines if line[0] == "b" and line[3] != "flush"]
    states = [history.content_at(position) for position in range(count + 1)]
    one = rng.choice(states)
    chosen = [rng.choice(states[-3:]) if damaged else one for _ in range(8)]
    image = b"".join(state[at * 512 :][:512] for at, state in enumerate(chosen))
    image += bytes((SECTORS - 8) * 512)
    runs: list[Run] = []
    for sector in range(8):
        position, _ = STAMP.unpack_from(image, sector * 512)
        runs.append([1, operations[position - 1] if position else 0])
    script.crash("power")
    script.state(*runs)
    expected = history.check(image, at_least=flushed)
    assert (script.found() == []) == expected.ok, (script.lines, str(expected))


def test_the_cut_is_one_at_which_no_trim_shows_in_part() -> None:
    """Before the trim that the newest cut could be in the middle of, all is well."""
    script = Script()
    first = script.write(6, 2)
    script.write(2, 2)
    script.write(1, 6, "trim")
    script.crash("power")
    script.state([6, 0], [2, first])
    assert script.found() == []


def test_a_trim_that_shows_in_part_is_caught() -> None:
    script = Script()
    write = script.write(0, 4)
    script.write(0, 4, "trim")
    script.crash("power")
    script.state([2, 0], [2, write])
    assert [one[0] for one in script.found()] == ["I3"]
