import pytest

from volume.errors import CorruptData
from volume.index import Slot
from volume.marks import MAX_ORDINAL, Condemned, Marks

PERIOD_S = 100.0


def test_marks_count_each_entry_once() -> None:
    marks = Marks()
    slots = [Slot(3, 1, ordinal) for ordinal in (0, 7, 8, 70_000)]
    assert [marks.mark(slot) for slot in slots] == [True] * 4
    assert not marks.mark(slots[2])
    assert marks.count(3) == 4
    assert marks.bits(3) == 1 << 0 | 1 << 7 | 1 << 8 | 1 << 70_000
    assert marks.marked(slots[3])
    assert not marks.marked(Slot(3, 1, 70_001))
    assert not marks.marked(Slot(4, 1, 0))
    assert marks.count(4) == 0


def test_marks_take_in_those_of_another() -> None:
    marks, other = Marks(), Marks()
    marks.mark(Slot(1, 1, 3))
    for slot in (Slot(1, 1, 9), Slot(2, 1, 0)):
        other.mark(slot)
    marks.merge(other)
    assert (marks.bits(1), marks.bits(2)) == (1 << 3 | 1 << 9, 1)
    assert not marks.mark(Slot(2, 1, 0))
    assert marks.mark(Slot(1, 1, 10))


def test_an_ordinal_that_no_pack_can_have_is_damage_and_takes_no_memory() -> None:
    with pytest.raises(CorruptData, match="repair-index"):
        Marks().mark(Slot(1, 1, MAX_ORDINAL + 1))


def test_the_dead_are_due_after_the_period() -> None:
    condemned = Condemned(PERIOD_S)
    condemned.found(1, 0b0111, 0.0)
    assert condemned.due(1, 99.0) == 0
    assert condemned.due(1, 100.0) == 0b0111
    assert condemned.due(2, 100.0) == 0


def test_who_came_back_to_life_dies_anew() -> None:
    condemned = Condemned(PERIOD_S)
    condemned.found(1, 0b11, 0.0)
    condemned.found(1, 0b10, 50.0)
    condemned.found(1, 0b11, 90.0)
    assert condemned.due(1, 110.0) == 0b10
    assert condemned.due(1, 190.0) == 0b11


def test_many_runs_in_a_period_are_remembered_by_a_few_bitmaps() -> None:
    """A death that falls between two of them counts from the next."""
    condemned = Condemned(PERIOD_S)
    for second in range(101):
        condemned.found(1, (1 << second + 1) - 1, float(second))
    due = condemned.due(1, 100.0)
    assert due == 1
    assert len(condemned._packs[1]) <= 6
    assert condemned.due(1, 125.0) == (1 << 26) - 1
    assert condemned.due(1, 126.0) == (1 << 26) - 1


def test_a_pack_that_is_gone_or_all_alive_leaves_nothing() -> None:
    condemned = Condemned(PERIOD_S)
    for number in (1, 2):
        condemned.found(number, 0b1, 0.0)
    condemned.forget(1)
    condemned.found(2, 0, 1.0)
    assert condemned._packs == {}


def test_a_copy_has_been_dead_for_as_long() -> None:
    condemned = Condemned(PERIOD_S)
    condemned.found(1, 0b0001, 0.0)
    condemned.found(1, 0b1001, 50.0)
    condemned.carry(Slot(1, 1, 3), Slot(2, 1, 5))
    condemned.carry(Slot(1, 1, 0), Slot(2, 1, 6))
    condemned.carry(Slot(1, 1, 1), Slot(2, 1, 7))
    condemned.found(2, 0b1110_0000, 60.0)
    assert condemned.due(2, 100.0) == 1 << 6
    assert condemned.due(2, 150.0) == 1 << 6 | 1 << 5
    assert condemned.due(2, 160.0) == 0b0110_0000
