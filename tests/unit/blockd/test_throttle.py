"""Requests that wait for limits, with a clock and timers of the test's own."""

import asyncio
import errno
from collections.abc import Callable
from typing import Any

import pytest

from blockd.device import BlockDevice
from blockd.throttle import Throttle
from native import OP_FLUSH, OP_READ, OP_WRITE, Limit, Request, Reservation
from tests.fakes import MemoryDevice

SECOND_NS = 10**9
BLOCK = 4096


class Timer:
    def __init__(self, due_ns: int, call: Callable[[], None]) -> None:
        self.due_ns = due_ns
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """As much of an event loop as a throttle uses. Time passes in `advance` only."""

    def __init__(self) -> None:
        self.now_ns = 10 * SECOND_NS
        self.timers: list[Timer] = []
        self.soon: list[Callable[[], None]] = []

    def clock(self) -> int:
        return self.now_ns

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now_ns + round(delay_s * SECOND_NS), call))
        return self.timers[-1]

    def call_soon(self, call: Callable[..., None], *args: Any) -> None:
        self.soon.append(lambda: call(*args))

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for call in soon:
            call()

    def advance(self, seconds: float) -> None:
        """Timers end when their time comes, in order."""
        until_ns = self.now_ns + round(seconds * SECOND_NS)
        while due := [each for each in self.waiting if each.due_ns <= until_ns]:
            first = min(due, key=lambda each: each.due_ns)
            first.cancelled = True
            self.now_ns = max(self.now_ns, first.due_ns)
            first.call()
        self.now_ns = until_ns

    @property
    def waiting(self) -> list[Timer]:
        return [each for each in self.timers if not each.cancelled]


class Rig:
    """One connection, with devices of one limited volume each."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.limits: dict[str, Limit] = {}
        self.done: list[Request] = []
        self.device = MemoryDevice("disk")
        self.throttle = self.connection()

    def connection(self) -> Throttle:
        loop: asyncio.AbstractEventLoop = self.loop  # type: ignore[assignment] # as much as it uses
        return Throttle(loop, self.loop.clock, self.limit)

    def limit(self, device: BlockDevice) -> Limit:
        return self.limits.setdefault(device.name, Limit())

    def set(self, iops: int = 0, bandwidth: int = 0, device: str = "disk") -> None:
        limit = self.limits.setdefault(device, Limit())
        limit.set((iops, 0, 0, bandwidth, 0, 0), 0, self.loop.now_ns)

    def submit(self, *requests: Request, device: MemoryDevice | None = None) -> None:
        self.throttle.submit(device or self.device, list(requests), self.done.extend)

    def cookies(self) -> list[int]:
        return [each.cookie for each in self.done]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def read(cookie: int, length: int = BLOCK) -> Request:
    return Request(OP_READ, 0, length, cookie=cookie)


def write(cookie: int, byte: int = 7) -> Request:
    return Request(OP_WRITE, 0, BLOCK, memoryview(bytearray([byte]) * BLOCK), cookie=cookie)


def flush(cookie: int) -> Request:
    return Request(OP_FLUSH, cookie=cookie)


def test_a_batch_goes_as_it_is_while_nothing_is_limited(rig: Rig) -> None:
    rig.submit(read(1), write(2), flush(3))
    assert rig.cookies() == [1, 2, 3]
    assert rig.device.batch_sizes == [3]
    assert not rig.loop.timers


def test_requests_go_on_at_the_rate(rig: Rig) -> None:
    rig.set(iops=10)
    rig.submit(*(read(cookie) for cookie in range(5)))
    assert rig.cookies() == [0]
    for turn in range(1, 5):
        rig.loop.advance(0.0999)
        assert len(rig.done) == turn
        rig.loop.advance(0.0001)
        assert rig.cookies() == list(range(turn + 1))
    assert not rig.loop.waiting
    assert rig.limit(rig.device).held() == (0, 4, SECOND_NS * 4 // 10)


def test_a_flush_waits_for_what_came_before_it(rig: Rig) -> None:
    rig.set(iops=10)
    rig.submit(write(1), write(2))
    rig.submit(flush(3))
    rig.submit(read(4))
    assert rig.cookies() == [1]
    rig.loop.advance(0.1)
    assert rig.cookies() == [1, 2, 3]
    rig.loop.advance(0.1)
    assert rig.cookies() == [1, 2, 3, 4]


def test_a_flush_alone_waits_for_nothing(rig: Rig) -> None:
    rig.set(bandwidth=1)
    rig.submit(write(1), flush(2), flush(3))
    assert rig.cookies() == [1, 2, 3]
    other = rig.connection()
    rig.submit(write(4))
    other.submit(rig.device, [flush(5)], rig.done.extend)
    assert rig.cookies() == [1, 2, 3, 5]


def test_what_waits_to_be_written_is_its_own_copy(rig: Rig) -> None:
    rig.set(iops=10)
    late = bytearray(b"\7" * BLOCK)
    at_once = write(1, 6)
    given = at_once.data
    rig.submit(at_once, Request(OP_WRITE, 0, BLOCK, memoryview(late), cookie=2))
    assert at_once.data is given  # nobody pays for a copy that is not needed
    late[:] = bytes(BLOCK)  # the receive buffer is used for other things
    rig.loop.advance(1)
    check = read(3)
    rig.submit(check)
    assert check.data == b"\7" * BLOCK


def test_devices_do_not_wait_for_each_other(rig: Rig) -> None:
    rig.set(iops=1)
    other = MemoryDevice("other")
    rig.submit(read(1), read(2))
    rig.submit(read(3), read(4), device=other)
    assert rig.cookies() == [1, 3, 4]


def test_a_change_takes_effect_within_a_tenth_of_a_second(rig: Rig) -> None:
    rig.set(bandwidth=1)
    rig.submit(*(read(cookie) for cookie in range(4)))
    rig.loop.advance(60)
    assert rig.cookies() == [0]
    rig.set(bandwidth=1000 * BLOCK)
    rig.loop.advance(0.11)
    assert rig.cookies() == [0, 1, 2, 3]
    rig.set(bandwidth=1)
    rig.submit(*(read(cookie) for cookie in range(4, 8)))
    rig.loop.advance(0.2)
    assert len(rig.done) == 5
    rig.set()
    rig.loop.advance(0.1)
    assert rig.cookies() == list(range(8))


def test_connections_of_a_volume_share_its_rate(rig: Rig) -> None:
    rig.set(iops=10)
    other = rig.connection()
    theirs: list[Request] = []
    rig.submit(*(read(cookie) for cookie in range(50)))
    other.submit(rig.device, [read(cookie) for cookie in range(50)], theirs.extend)
    rig.loop.advance(2)
    assert len(rig.done) + len(theirs) == 21
    assert abs(len(rig.done) - len(theirs)) <= 1


def test_what_is_aborted_comes_back_and_the_rest_stays(rig: Rig) -> None:
    rig.set(iops=10)
    rig.submit(*(write(cookie) for cookie in range(1, 5)))
    rig.throttle.recall(lambda request: request.cookie in (2, 4))
    assert rig.cookies() == [1]  # not within the call
    rig.loop.turn()
    assert [(each.cookie, each.error) for each in rig.done[1:]] == [
        (2, errno.ECANCELED),
        (4, errno.ECANCELED),
    ]
    rig.loop.advance(0.11)  # the place of the first one was given up, not added to
    assert rig.cookies() == [1, 2, 4, 3]
    assert len(rig.device.seen) == 2


def test_a_client_that_is_gone_leaves_nothing(rig: Rig) -> None:
    rig.set(iops=10)
    rig.submit(*(write(cookie) for cookie in range(4)))
    rig.throttle.drop()
    rig.loop.turn()
    assert [each.error for each in rig.done] == [0, *[errno.ESHUTDOWN] * 3]
    assert not rig.loop.waiting
    assert len(rig.device.seen) == 1
    other = rig.connection()
    other.submit(rig.device, [read(9), read(10)], rig.done.extend)
    rig.loop.advance(0.2)
    assert rig.cookies()[-2:] == [9, 10]  # the place that was kept is there for them


def test_a_server_that_stops_lets_everything_go(rig: Rig) -> None:
    rig.set(bandwidth=1)
    rig.submit(*(write(cookie) for cookie in range(4)))
    rig.throttle.open()
    assert rig.cookies() == [0, 1, 2, 3]
    rig.submit(write(4))
    assert rig.cookies() == [0, 1, 2, 3, 4]
    assert not rig.loop.waiting


def test_what_the_loop_let_go_on_does_not_wait_again(rig: Rig) -> None:
    rig.set(bandwidth=1)
    rig.submit(read(1), read(2))
    rig.throttle.recall(lambda request: request.cookie == 2)
    rig.loop.turn()
    rig.throttle.paid(rig.device, (1, BLOCK, 2, BLOCK))
    rig.submit(read(3), write(4), read(5))
    assert rig.cookies() == [1, 2, 3, 4]
    rig.throttle.recall(lambda request: True)
    rig.submit(write(6))  # one more write, but no more bytes of it
    rig.loop.advance(10)
    assert rig.cookies()[:4] == [1, 2, 3, 4]
    assert 6 not in rig.cookies()


def test_nothing_is_paid_for_where_nothing_is_limited(rig: Rig) -> None:
    rig.throttle.paid(rig.device, (100, 100 * BLOCK, 0, 0))
    rig.set(iops=1)
    rig.submit(read(1), read(2))
    assert rig.cookies() == [1]


def test_a_place_in_line_is_taken_over(rig: Rig) -> None:
    rig.set(iops=10)
    before = Reservation(rig.limit(rig.device))
    assert before.ask(OP_READ, BLOCK, rig.loop.now_ns) == 0
    assert before.ask(OP_READ, BLOCK, rig.loop.now_ns) == rig.loop.now_ns + SECOND_NS // 10
    other = rig.connection()
    other.submit(rig.device, [read(9)], rig.done.extend)  # comes later
    rig.throttle.adopt(rig.device, before)
    del before
    rig.submit(read(1))
    rig.loop.advance(0.1)
    assert rig.cookies() == [1]
    rig.loop.advance(0.1)
    assert rig.cookies() == [1, 9]


def test_a_place_is_given_up_when_its_request_was_aborted_before_it_came(rig: Rig) -> None:
    rig.set(iops=10)
    before = Reservation(rig.limit(rig.device))
    for _ in range(2):
        before.ask(OP_READ, BLOCK, rig.loop.now_ns)
    rig.throttle.adopt(rig.device, before)
    del before
    rig.throttle.recall(lambda request: True)
    assert rig.limit(rig.device).held()[0] == 0
    rig.submit(read(1))
    rig.loop.advance(0.1)
    assert rig.cookies() == [1]


def test_an_answer_that_leads_to_a_request_keeps_the_order(rig: Rig) -> None:
    """A device may finish during submit, and its connection go on with what has come since."""
    rig.set(iops=10)

    def again(requests: list[Request]) -> None:
        rig.done += requests
        if requests[0].cookie < 3:
            rig.throttle.submit(rig.device, [read(requests[0].cookie + 10)], again)

    for cookie in (1, 2, 3):
        rig.throttle.submit(rig.device, [read(cookie)], again)
    rig.loop.advance(1)
    assert rig.cookies() == [1, 11, 2, 3, 12]


def test_a_line_that_moves_slowly_is_told(rig: Rig) -> None:
    rig.set(iops=1000)
    rig.submit(*(read(cookie) for cookie in range(3)))
    assert not rig.throttle.is_slow
    rig.loop.advance(1)
    rig.set(iops=10)
    rig.submit(*(read(cookie) for cookie in range(3)))
    assert rig.throttle.is_slow
    rig.loop.advance(1)
    assert not rig.throttle.is_slow
