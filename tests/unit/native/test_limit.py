"""Limit against its twin, with a clock of its own."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.api.limit_types import MAX_BURST_S, MAX_RATE
from native import (
    LIMIT_MAX_BURST_NS,
    LIMIT_MAX_RATE,
    OP_READ,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Limit,
    Reservation,
    reference_limit,
)

SECOND_NS = 10**9
START_NS = 10 * SECOND_NS

ops = st.integers(0, 6)
rate = st.one_of(st.just(0), st.integers(1, 10**6))
rates = st.tuples(rate, rate, rate, rate, rate, rate)
asked = st.tuples(ops, st.integers(0, 1 << 20), st.integers(0, SECOND_NS // 10))


def pass_at(limit: Limit, op: int, length: int, now_ns: int) -> int:
    """When a request that asks at `now_ns` goes on."""
    mine = Reservation(limit)
    while until_ns := mine.ask(op, length, now_ns):
        assert now_ns < until_ns <= now_ns + SECOND_NS // 10
        now_ns = until_ns
    return now_ns


@given(rates, st.integers(0, SECOND_NS), st.lists(asked, max_size=12))
def test_requests_go_on_when_the_twins_do(
    rates: tuple[int, int, int, int, int, int],
    burst_ns: int,
    requests: list[tuple[int, int, int]],
) -> None:
    """Each asks when the one before it went on, and a pause: as one client's do."""
    limit, twin = Limit(), reference_limit.Limit(rates, burst_ns)
    limit.set(rates, burst_ns, START_NS)
    # What does not take long enough to wait for it ten times a second is all that is compared.
    now_ns = START_NS
    for number, (op, length, pause_ns) in enumerate(requests):
        now_ns += pause_ns
        due = twin.due_ns(op, length, now_ns)
        if due - now_ns > 60 * SECOND_NS:
            return
        passed_ns = pass_at(limit, op, length, now_ns)
        # The kernel rounds the cost of each request up to a nanosecond.
        assert Fraction(-1) <= passed_ns - due <= number + 2
        now_ns = passed_ns


def test_reads_and_writes_are_limited_apart_and_together() -> None:
    limit = Limit()
    limit.set((0, 10, 100, 0, 0, 0), 0, START_NS)
    assert pass_at(limit, OP_READ, 512, START_NS) == START_NS
    assert pass_at(limit, OP_READ, 512, START_NS) == START_NS + SECOND_NS // 10
    assert pass_at(limit, OP_WRITE, 512, START_NS) == START_NS
    assert pass_at(limit, OP_WRITE_ZEROES, 1 << 30, START_NS) == START_NS + SECOND_NS // 100
    limit.set((10, 0, 0, 0, 0, 0), 0, START_NS)
    passed = [pass_at(limit, op, 512, START_NS) for op in (OP_READ, OP_WRITE, OP_READ)]
    assert passed == [START_NS + number * SECOND_NS // 10 for number in range(3)]


def test_a_fixed_count_of_requests_takes_what_the_rate_says() -> None:
    limit, count, now_ns = Limit(), 4000, START_NS
    limit.set((400, 0, 0, 0, 0, 0), SECOND_NS // 10, START_NS)
    for _ in range(count):
        now_ns = pass_at(limit, OP_READ, 4096, now_ns)
    in_burst = 400 // 10
    assert now_ns - START_NS == (count - in_burst - 1) * SECOND_NS // 400


def test_what_is_too_much_is_refused() -> None:
    limit = Limit()
    with pytest.raises(ValueError, match="beyond LIMIT_MAX"):
        limit.set((LIMIT_MAX_RATE + 1, 0, 0, 0, 0, 0), 0, 0)
    with pytest.raises(ValueError, match="beyond LIMIT_MAX"):
        limit.set((1, 0, 0, 0, 0, 0), LIMIT_MAX_BURST_NS + 1, 0)
    with pytest.raises(TypeError):
        Reservation(None)  # type: ignore[arg-type]
    assert not limit.is_set


def test_a_place_that_nobody_holds_is_given_up() -> None:
    limit = Limit()
    limit.set((10, 0, 0, 0, 0, 0), 0, START_NS)
    assert pass_at(limit, OP_READ, 512, START_NS) == START_NS
    gone = Reservation(limit)
    assert gone.ask(OP_READ, 512, START_NS)
    assert limit.held() == (1, 0, 0)
    del gone
    assert pass_at(limit, OP_READ, 512, START_NS) == START_NS + SECOND_NS // 10
    assert limit.held() == (0, 1, SECOND_NS // 10)


def test_a_reservation_keeps_its_limit_alive() -> None:
    limit = Limit()
    limit.set((1, 0, 0, 0, 0, 0), 0, START_NS)
    mine = Reservation(limit)
    assert mine.ask(OP_READ, 1, START_NS) == 0
    del limit
    assert mine.ask(OP_READ, 1, START_NS) == START_NS + SECOND_NS // 10


def test_the_api_takes_what_the_kernel_takes() -> None:
    assert LIMIT_MAX_RATE == MAX_RATE
    assert MAX_BURST_S * SECOND_NS == LIMIT_MAX_BURST_NS
