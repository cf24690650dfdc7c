"""Requests of one connection that wait for their volumes' limits before a device gets them.

For what the engines serve; the request loop holds its clients by itself (native/src/limit.h). What
waits counts as in flight, so an engine's own bounds are the bounds of what can be here, and the
connection reads no more than these let in. The order of a volume's requests stays: a flush waits
for what came before it on its connection, and for nobody else's.

    submit   straight to the device while nothing limits it and nothing of it waits here; else at
             the end of its volume's queue, with its own copy of what it writes
    timer    when the oldest one's time comes, and ten times a second, as limits may have changed
    paid     what the loop had let go on, and leaves to the engine, does not wait again
    adopt    what waited in the loop keeps its place
    recall   what is aborted comes back at once with ECANCELED
    open     the server stops: everything goes on at once, from now on
    drop     the client is gone: everything comes back with ESHUTDOWN, and is never done. None of it
             was acknowledged
"""

import asyncio
import errno
from collections import deque
from collections.abc import Callable
from typing import Final

from blockd.device import BlockDevice, Done
from native import OP_READ, OP_UNMAP, OP_WRITE, OP_WRITE_ZEROES, Limit, Request, Reservation

SECOND_NS: Final = 10**9
SLOW_NS: Final = SECOND_NS // 100
"""Between two requests: a full command window of 128 takes more than a second then."""

LEAST_NS: Final = SECOND_NS // 1000
"""What uvloop counts in: less than half of it would be no wait, again and again. What goes on
later for that is made good by the burst (`blockd.api.limit_types.MIN_BURST_S`)."""

LimitOf = Callable[[BlockDevice], Limit]
Waiting = tuple[Request, Done]


class _Paid:
    """Requests of one direction that go on without asking, and their bytes."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0

    def covers(self, request: Request) -> bool:
        """Whether `request` is one of them; it has been counted then."""
        length = request.length if request.op in (OP_READ, OP_WRITE) else 0
        if not self.count or self.bytes < length:
            return False
        self.count -= 1
        self.bytes -= length
        return True


class _Queue:
    """Requests to one device."""

    def __init__(self, device: BlockDevice, limit: Limit) -> None:
        self.device = device
        self.limit = limit
        self.reservation = Reservation(limit)  # of the first one
        self.waiting: deque[Waiting] = deque()
        self.until_ns = 0  # when the first one is to ask again
        self.going = False  # some are being submitted, and may lead to others
        self.paid_reads = _Paid()
        self.paid_writes = _Paid()

    def paid(self, op: int) -> _Paid | None:
        if op == OP_READ:
            return self.paid_reads
        return self.paid_writes if op in (OP_WRITE, OP_UNMAP, OP_WRITE_ZEROES) else None

    def ready(self, now_ns: int, *, all_of_them: bool) -> list[Waiting]:
        """Take out those that may go on."""
        ready: list[Waiting] = []
        while self.waiting and (all_of_them or self._may_go(self.waiting[0][0], now_ns)):
            ready.append(self.waiting.popleft())
        return ready

    def _may_go(self, request: Request, now_ns: int) -> bool:
        paid = self.paid(request.op)
        if paid is not None and paid.count and paid.covers(request):
            return True
        self.until_ns = self.reservation.ask(request.op, request.length, now_ns)
        return not self.until_ns

    def take(self, concerns: Callable[[Request], bool]) -> list[Waiting]:
        """Take out those that `concerns` is true of."""
        found: list[Waiting] = []
        left: deque[Waiting] = deque()
        for each in self.waiting:
            (found if concerns(each[0]) else left).append(each)
        if found and found[0] is self.waiting[0]:
            self.reservation = Reservation(self.limit)  # that of another request is given up
        self.waiting = left
        return found


class Throttle:
    """See the module's text. On the event loop's thread."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], int], limit_of: LimitOf
    ) -> None:
        """`clock`: nanoseconds, as `Limit` counts them. `limit_of` a device: always the same."""
        self._loop = loop
        self._clock = clock
        self._limit_of = limit_of
        self._queues: dict[BlockDevice, _Queue] = {}
        self._open = False
        self._timer: asyncio.TimerHandle | None = None
        self._due_ns = 0  # of the timer
        self._slow = False

    @property
    def is_slow(self) -> bool:
        """Something waits, and what is behind it may do so for seconds."""
        return self._timer is not None and self._slow

    def submit(self, device: BlockDevice, batch: list[Request], done: Done) -> None:
        """As `device.submit`, when the time comes."""
        queue = self._queues.get(device) or self._enter(device)
        if not queue.waiting and not queue.going and (self._open or not queue.limit.is_set):
            device.submit(batch, done)
            return
        queue.waiting.extend((request, done) for request in batch)
        if len(queue.waiting) == len(batch):
            self._go_on(queue)
        still = min(len(queue.waiting), len(batch))  # the last ones of them
        for request in batch[len(batch) - still :]:
            if isinstance(request.data, memoryview):  # the receive buffer's
                request.data = bytes(request.data)

    def paid(self, device: BlockDevice, counts: tuple[int, int, int, int]) -> None:
        """Reads, their bytes, writes, their bytes: as many requests that come now, or soon, have
        been let go on before (`native.LoopClient.take_paid`)."""
        queue = self._queues.get(device) or self._enter(device)
        if not queue.limit.is_set:
            return
        reads, read_bytes, writes, written_bytes = counts
        queue.paid_reads.count += reads
        queue.paid_reads.bytes += read_bytes
        queue.paid_writes.count += writes
        queue.paid_writes.bytes += written_bytes

    def adopt(self, device: BlockDevice, reservation: Reservation) -> None:
        """The next request to `device` that has to ask has that place already."""
        queue = self._queues.get(device) or self._enter(device)
        if not queue.waiting:
            queue.reservation = reservation

    def recall(self, concerns: Callable[[Request], bool]) -> None:
        """Give back what waits and is aborted, in a turn of the loop of its own."""
        for queue in self._queues.values():
            if not queue.waiting:  # what would have had the place that was adopted may be aborted
                queue.reservation = Reservation(queue.limit)
            elif found := queue.take(concerns):
                self._loop.call_soon(_give_back, found, errno.ECANCELED)

    def open(self) -> None:
        """See the module's text."""
        self._open = True
        for queue in list(self._queues.values()):
            self._go_on(queue)

    def drop(self) -> None:
        """Give everything back, in a turn of the loop of its own."""
        self._open = True
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            if found := queue.take(lambda _: True):
                self._loop.call_soon(_give_back, found, errno.ESHUTDOWN)
        self._set_timer()

    def _enter(self, device: BlockDevice) -> _Queue:
        queue = self._queues[device] = _Queue(device, self._limit_of(device))
        return queue

    def _go_on(self, queue: _Queue) -> None:
        """Submit what may go on; see to the rest being looked at again."""
        if queue.going:
            return
        queue.going = True
        while ready := queue.ready(self._clock(), all_of_them=self._open):
            _submit(queue.device, ready)
        queue.going = False
        self._set_timer()

    def _set_timer(self) -> None:
        due = [queue.until_ns for queue in self._queues.values() if queue.waiting]
        if self._timer is not None:
            if due and self._due_ns == min(due):
                return
            self._timer.cancel()
            self._timer = None
        if due:
            self._due_ns = min(due)
            left_ns = max(self._due_ns - self._clock(), LEAST_NS)
            self._slow = left_ns >= SLOW_NS
            self._timer = self._loop.call_later(left_ns / SECOND_NS, self._woken)

    def _woken(self) -> None:
        self._timer = None
        now_ns = self._clock()
        for queue in list(self._queues.values()):
            if queue.waiting and queue.until_ns <= now_ns:
                self._go_on(queue)
        self._set_timer()


def _submit(device: BlockDevice, ready: list[Waiting]) -> None:
    """Runs of requests that come back in the same way are batches."""
    while ready:
        done = ready[0][1]
        count = next((at for at, each in enumerate(ready) if each[1] is not done), len(ready))
        device.submit([request for request, _ in ready[:count]], done)
        ready = ready[count:]


def _give_back(requests: list[Waiting], error: int) -> None:
    for request, done in requests:
        request.error = error
        done([request])
