"""I1: the checker accepts every read that concurrency allows, and catches those it does not."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.check.histories import Script


def test_the_last_acked_write_is_read() -> None:
    script = Script()
    script.read(0, [2, 0])
    old = script.write(0, 2)
    new = script.write(1)
    script.read(0, [1, old], [1, new], [1, 0])
    assert script.found() == []


def test_a_stale_read_is_caught() -> None:
    script = Script()
    old = script.write(4, 2)
    new = script.write(4, 2)
    script.read(3, [1, 0], [1, new], [1, old])
    assert script.found() == [("I1", 5, 1)]
    assert "shows operation 1; stale: operation 2 was acked in line 5" in str(
        script.report().findings[0]
    )


def test_zeros_where_data_was_acked_are_caught() -> None:
    script = Script()
    script.write(4, 2)
    script.read(4, [2, 0])
    assert script.found() == [("I1", 4, 2)]


def test_data_that_was_trimmed_is_caught() -> None:
    script = Script()
    old = script.write(4, 2)
    script.write(4, 2, "trim")
    script.read(4, [2, 0])
    script.read(4, [2, old])
    assert script.found() == [("I1", 4, 2)]


def test_a_write_in_flight_may_be_seen_or_not() -> None:
    for seen in (0, 1):
        script = Script()
        old = script.write()
        new = script.begin("write")
        script.read(0, [1, (old, new)[seen]])
        script.end(new)
        script.read(0, [1, new])
        assert script.found() == []


def test_a_read_that_goes_back_is_caught() -> None:
    script = Script()
    old = script.write()
    new = script.begin("write")
    script.read(0, [1, new])
    script.read(0, [1, old])
    script.end(new)
    assert script.found() == [("I1", 0, 1)]
    assert "went back: operation 2 had been seen" in str(script.report().findings[0])


def test_reads_in_flight_together_may_differ() -> None:
    script = Script()
    old = script.write()
    new = script.begin("write")
    reads = [script.begin("read") for _ in range(3)]
    script.saw(reads[0], [1, new])
    script.saw(reads[1], [1, old])
    script.end(new)
    script.saw(reads[2], [1, old])
    assert script.found() == []


def test_writes_in_flight_together_may_end_either_way() -> None:
    for last in (0, 1):
        script = Script()
        both = [script.begin("write"), script.begin("write")]
        script.end(both[0])
        script.end(both[1])
        script.read(0, [1, both[last]])
        script.read(0, [1, both[last]])
        assert script.found() == []


def test_writes_in_flight_together_end_one_way_only() -> None:
    script = Script()
    both = [script.begin("write"), script.begin("write")]
    script.end(both[0])
    script.end(both[1])
    script.read(0, [1, both[1]])
    script.read(0, [1, both[0]])
    assert script.found() == [("I1", 0, 1)]


def test_bytes_of_a_write_that_had_not_begun_or_of_another_place_are_caught() -> None:
    script = Script()
    one = script.write(0)
    script.read(0, [1, 7])
    script.read(8, [1, one])
    script.read(16, [1, "foreign"], [1, "torn"])
    assert script.found() == [("I8", 0, 1), ("I8", 8, 1), ("I8", 16, 1), ("I5", 17, 1)]


def test_a_failed_write_may_have_happened() -> None:
    for seen in (0, 1):
        script = Script()
        old = script.write()
        new = script.begin("write")
        script.end(new, 5)
        script.read(0, [1, (old, new)[seen]])
        assert script.found() == []


def test_a_write_cut_off_by_a_kill_shows_from_then_on_or_never() -> None:
    def killed() -> tuple[Script, int, int]:
        script = Script()
        old = script.write()
        new = script.begin("write")
        script.crash()
        return script, old, new

    script, old, new = killed()
    script.read(0, [1, new])
    script.read(0, [1, new])
    assert script.found() == []
    script, old, new = killed()
    script.read(0, [1, old])
    script.read(0, [1, new])
    assert script.found() == [("I1", 0, 1)]
    script, old, new = killed()
    newest = script.write()
    script.read(0, [1, newest])
    script.read(0, [1, new])
    assert script.found() == [("I1", 0, 1)]


def test_a_kill_loses_no_acked_write_and_nothing_that_was_read() -> None:
    script = Script()
    old = script.write()
    new = script.begin("write")
    script.read(0, [1, new])
    script.crash()
    script.read(0, [1, old])
    assert script.found() == [("I1", 0, 1)]


@pytest.mark.parametrize("part", [1, 7])
def test_a_block_with_a_part_of_a_write_is_torn(part: int) -> None:
    script = Script()
    old = script.write(8, 8)
    new = script.begin("write", 8, 8)
    script.read(8, [part, new], [8 - part, old])
    assert ("I5", 8, 8) in script.found()


def test_parts_of_writes_across_blocks_are_not_torn() -> None:
    script = Script()
    old = script.write(0, 16)
    new = script.begin("write", 0, 16)
    script.read(0, [8, new], [8, old])
    assert script.found() == []


def test_a_small_write_in_a_block_is_not_torn() -> None:
    script = Script()
    old = script.write(8, 8)
    new = script.begin("write", 10, 2)
    script.read(8, [2, old], [1, new], [5, old])
    script.end(new)
    trimmed = script.begin("trim", 12, 2)
    script.read(8, [2, old], [2, new], [1, 0], [3, old])
    script.end(trimmed)
    assert script.found() == []


# --- one register beside all its orders


def orders(operations: list[tuple[int, int, int | None, int]]) -> bool:
    """Whether some order of (begin, end, value read, value written) is legal: tries them all."""
    for order in itertools.permutations(operations):
        value = 0
        for at, (begin, _end, read, written) in enumerate(order):
            if any(later[1] < begin for later in order[at + 1 :]):
                break
            if read is not None and read != value:
                break
            value = written if read is None else value
        else:
            return True
    return False


@given(st.integers(0, 2**32), st.integers(2, 6))
def test_one_sector_agrees_with_trying_all_orders(seed: int, count: int) -> None:
    rng = random.Random(seed)
    script = Script()
    operations: dict[int, list[int | None]] = {}
    waiting: list[int] = []
    left = count
    while left or waiting:
        if left and (not waiting or rng.random() < 0.5):
            kind = rng.choice(("write", "read", "read"))
            operation = script.begin(kind)
            begin = len(script.lines)
            operations[operation] = [begin, None, None, operation if kind == "write" else None]
            waiting.append(operation)
            left -= 1
            continue
        operation = waiting.pop(rng.randrange(len(waiting)))
        entry = operations[operation]
        if entry[3] is None:
            begun = [0, *(number for number, other in operations.items() if other[3])]
            entry[2] = saw = rng.choice(begun)
            script.saw(operation, [1, saw])
        else:
            script.end(operation)
        entry[1] = len(script.lines)
    legal = orders([tuple(entry) for entry in operations.values()])  # type: ignore[misc]
    assert (script.found() == []) == legal, script.lines
