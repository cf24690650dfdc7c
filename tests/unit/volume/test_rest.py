"""A destage round leaves busy clients as much time as it works itself, unless they wait for it."""

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig
from volume.background import Worker
from volume.upkeep import BUSY_S, MAX_REST_S, REST_FILL

PIECE_S = 0.005  # of a round


class Rests:
    """In the place of the event that ends them: how long each rest would have been."""

    def __init__(self) -> None:
        self.taken_s: list[float] = []

    def wait(self, timeout: float) -> bool:
        self.taken_s.append(timeout)
        return False

    def set(self) -> None:
        pass


class Round:
    """A store whose round is between two pieces, on the test's thread."""

    def __init__(self) -> None:
        self.rig = StoreRig()
        self.rig.store.create_volume("v", 1 << 20)
        self.rig.tend()
        self.upkeep = self.rig.store.upkeep
        self.rests = Rests()
        self.upkeep._no_rest = self.rests  # type: ignore[assignment]
        self.upkeep._workers = [Worker("never-started", 1.0, lambda: False, lambda _: None)]
        self.write()
        self.upkeep.rest()  # the round begins
        self.rests.taken_s.clear()

    def write(self, length: int = 512) -> None:
        assert self.rig.write("v", 0, bytes([1]) * length) == 0

    def piece(self, seconds: float = PIECE_S) -> list[float]:
        """One piece of so long, and the rest behind it, if there is one."""
        self.rests.taken_s.clear()
        self.rig.clock.advance(seconds)
        self.upkeep.rest()
        return self.rests.taken_s


@pytest.fixture
def round_() -> Iterator[Round]:
    made = Round()
    yield made
    made.upkeep._workers = []
    made.rig.store.close()


def test_a_round_rests_as_long_as_it_worked_while_clients_write(round_: Round) -> None:
    assert round_.piece() == pytest.approx([PIECE_S])
    round_.write()
    assert round_.piece(2 * PIECE_S) == pytest.approx([2 * PIECE_S])


def test_no_rest_is_long(round_: Round) -> None:
    assert round_.piece(10 * MAX_REST_S) == pytest.approx([MAX_REST_S])


def test_clients_that_read_are_busy_too(round_: Round) -> None:
    round_.rig.clock.advance(BUSY_S)
    assert round_.piece() == []
    round_.rig.store.destage()  # so that reads ask where chunks are
    round_.rig.read("v", 0, 512)
    assert round_.piece() == pytest.approx([PIECE_S])


def test_nothing_rests_when_clients_are_silent(round_: Round) -> None:
    round_.rig.clock.advance(BUSY_S)
    assert round_.piece() == []


def test_nothing_rests_when_the_journal_fills_up(round_: Round) -> None:
    limit = SMALL.journal_limit
    assert limit == 6 * SEGMENT_BYTES
    while round_.upkeep.journal_bytes() < REST_FILL * limit:
        assert round_.piece() == pytest.approx([PIECE_S])
        round_.rig.tend()
        round_.write(4 * KIB)
    assert round_.piece() == []


def test_nothing_rests_when_somebody_waits_for_the_thread(round_: Round) -> None:
    call: tuple[Future[Any], Any] = (Future(), lambda: None)
    round_.upkeep._calls.append(call)
    assert round_.piece() == []
    round_.upkeep._calls.clear()
    assert round_.piece() == pytest.approx([PIECE_S])


def test_rounds_that_are_called_by_hand_do_not_rest(round_: Round) -> None:
    round_.upkeep._workers = []
    assert round_.piece() == []


def test_closing_ends_a_rest(round_: Round) -> None:
    ended: list[bool] = []
    round_.rests.set = lambda: ended.append(True)  # type: ignore[method-assign]
    round_.upkeep.stop()
    assert ended == [True]
