"""Rates of work, and how long the rest takes at that rate."""

from transport.measured import MARKS, Measured, time_left


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_nobody_has_seen_any_of_has_no_rate() -> None:
    clock = Clock()
    work = Measured(clock)
    assert (work.left, work.rate(), work.left_s()) == (0, None, 0.0)
    work.found(1000)
    clock.now += 5
    assert (work.rate(), work.left_s()) == (None, None)


def test_time_left_follows_from_what_was_done_pauses_included() -> None:
    clock = Clock()
    work = Measured(clock)
    work.found(1000)
    clock.now += 5
    work.did(100)
    assert (work.rate(), work.left, work.left_s()) == (20.0, 900, 45.0)
    clock.now += 5  # nothing is done: it takes longer
    assert (work.rate(), work.left_s()) == (10.0, 90.0)


def test_work_that_has_ended_and_begins_again_is_measured_anew() -> None:
    clock = Clock()
    work = Measured(clock)
    work.found(100)
    clock.now += 1
    work.did(100)
    work.found(0)
    clock.now += 1000
    work.found(50)
    assert work.left_s() is None
    clock.now += 1
    work.did(25)
    assert work.left_s() == 1.0


def test_the_rate_is_of_the_latest_steps() -> None:
    clock = Clock()
    work = Measured(clock)
    work.found(10**9)
    for rate in (1, 10):
        for _ in range(2 * MARKS):
            clock.now += 1
            work.did(rate)
    assert work.rate() == 10.0


def test_nothing_takes_no_time_and_without_a_rate_it_is_not_known() -> None:
    assert time_left(0, None) == 0.0
    assert time_left(5, None) is None
    assert time_left(5, 0) is None
