"""Gate: when clients of a volume that other nodes have as well are told that something is done.

What waits, and for what, is decided in one place (native/src/gate.h). Answers of the request loop
wait there; requests that came through Python wait here, for the same two numbers: how much W nodes
have in their journals, and how much on their disks. Whoever counts them calls `advance`.

A gate is shut until this node is the volume's primary and W nodes know it, and again as soon as it
is not: what is submitted then, and what waits, ends with ESHUTDOWN. What waits for longer than
`timeout_s` ends with EIO; its record is in a journal all the same, and may show later.

Any thread; `done` of a request is called through the scheduler, or before `pass_on` returns.
"""

import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from native import FLAG_FUA, OP_BLOCK_STATUS, OP_FLUSH, OP_READ, Request, VolumeCore
from volume.disk import Clock, SystemClock
from volume.scheduler import Scheduler

Done = Callable[[list[Request]], None]

_READS = frozenset((OP_READ, OP_BLOCK_STATUS))
_NS = 1_000_000_000
LAST_NS = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: Request
    seq: int
    durable: bool
    deadline_ns: int
    done: Done


class Gate:
    """Of one volume. See the module."""

    def __init__(self, core: VolumeCore, scheduler: Scheduler, clock: Clock) -> None:
        self.core = core
        self.descriptor = core.gate()
        """Readable when somebody begins to wait for a sync."""
        self._scheduler = scheduler
        self._clock = clock
        self._reads_until_ns = 0
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._shut = True
        self._strict = False
        self._timeout_ns = 0

    @property
    def shut(self) -> bool:
        return self._shut

    @property
    def leads(self) -> bool:
        """Nobody else can be serving the volume now: it is not shut, and its lease has not run out.
        Quick."""
        return not self._shut and self._clock.boottime_ns() < self._reads_until_ns

    @property
    def waiting(self) -> int:
        """Requests that wait, here and in the request loop."""
        return len(self._waiting) + self.core.gate_state()[5]

    @property
    def wanted(self) -> int:
        """Somebody waits until records up to this seq are on W disks."""
        return self.core.gate_state()[3]

    # -- for whoever counts

    def open(self, start: int, *, strict: bool, timeout_s: float) -> None:
        """Let clients in. `start`: the newest record, which W nodes have on their disks."""
        with self._lock:
            self._strict, self._timeout_ns = strict, int(timeout_s * _NS)
            self.core.gate_open(start, strict, self._timeout_ns)
            self._reads_until_ns = 0
            self._shut = False

    def close(self) -> None:
        """Let none in, and tell who waits. Nothing of a client is appended on return."""
        with self._lock:
            self._shut = True
            self.core.gate_shut()
            ended, self._waiting = self._waiting, []
        self._end(ended, errno.ESHUTDOWN)

    def advance(self, acked: int, durable: int) -> None:
        """W nodes have records up to `acked` in their journals, and up to `durable` on disk."""
        self.core.gate_advance(acked, durable)
        self.let_go()

    def let_go(self) -> None:
        """Tell who waits here and need not any more: the core has been told what there is."""
        with self._lock:
            if not self._waiting:
                return
            state = self.core.gate_state()
            passed = [
                each
                for each in self._waiting
                if self._passes(each.request, each.seq, each.durable, state)
            ]
            gone = set(map(id, passed))
            self._waiting = [each for each in self._waiting if id(each) not in gone]
        self._end(passed, 0)

    def lease(self, until_ns: int) -> None:
        """Reads may be answered until then, by `Clock.boottime_ns`."""
        self._reads_until_ns = until_ns
        # The core looks at the machine's clock; to a simulated one only this side can.
        real = isinstance(self._clock, SystemClock)
        self.core.gate_lease(until_ns if real else LAST_NS)
        self.let_go()

    def expire(self) -> None:
        """Give up what has waited too long. To be called now and then."""
        self.core.gate_expire()
        now_ns = self._clock.boottime_ns()
        with self._lock:
            late = [each for each in self._waiting if each.deadline_ns <= now_ns]
            self._waiting = [each for each in self._waiting if each.deadline_ns > now_ns]
        self._end(late, errno.EIO)

    @property
    def durable(self) -> int:
        """W nodes have records up to this seq on their disks."""
        return self.core.gate_state()[2]

    @property
    def timeout_s(self) -> float:
        return self._timeout_ns / _NS

    def want(self, seq: int) -> None:
        """Have W nodes put records up to `seq` on their disks."""
        self.core.gate_want(seq)

    def confirm(self, request: Request, seq: int, *, durable: bool, done: Done) -> None:
        """Tell `done` of `request` when W nodes have record `seq` in their journals, or on their
        disks; with its error when that is not to be known any more."""
        durable = durable or self._strict
        with self._lock:
            shut, acked, synced, *_ = self.core.gate_state()
            if shut or self._shut:
                request.error = errno.ESHUTDOWN
            elif seq > (synced if durable else acked):
                if durable:
                    self.core.gate_want(seq)
                deadline_ns = self._clock.boottime_ns() + self._timeout_ns
                self._waiting.append(_Waiting(request, seq, durable, deadline_ns, done))
                return
        done([request])

    # -- for requests

    def guard(self, done: Done) -> Done:
        """`done`, for requests that come back later: each when it may be told."""
        return lambda requests: self.pass_on(requests, done, later=True)

    def pass_on(self, requests: list[Request], done: Done, *, later: bool = False) -> None:
        """Requests are done here: tell those that need not wait, keep the others. `later`: they
        did not come right from the core, which has judged those that do."""
        free: list[Request] = []
        with self._lock:
            state = self.core.gate_state()
            for request in requests:
                waits = self._judge(request) if later else _judged(request)
                if request.error or waits is None or self._passes(request, *waits, state):
                    free.append(request)
                elif self._shut:
                    request.error = errno.ESHUTDOWN
                    free.append(request)
                else:
                    seq, durable = waits
                    if durable:
                        self.core.gate_want(seq)
                    deadline_ns = self._clock.boottime_ns() + self._timeout_ns
                    self._waiting.append(_Waiting(request, seq, durable, deadline_ns, done))
        if free:
            done(free)

    # -- inner

    def _judge(self, request: Request) -> tuple[int, bool] | None:
        if request.op in _READS:
            return self.core.gate_seen(request.offset, request.length), False
        durable = bool(self._strict or request.op == OP_FLUSH or request.flags & FLAG_FUA)
        return self.core.state()[0], durable

    def _passes(
        self,
        request: Request,
        seq: int,
        durable: bool,
        state: tuple[bool, int, int, int, int, int],
    ) -> bool:
        shut, acked, synced, *_ = state
        if shut or seq > (synced if durable else acked):
            return False
        return request.op not in _READS or self._clock.boottime_ns() < self._reads_until_ns

    def _end(self, waiting: list[_Waiting], error: int) -> None:
        for each in waiting:
            if error:
                each.request.error = error
            self._scheduler.post(partial(each.done, [each.request]))


def _judged(request: Request) -> tuple[int, bool] | None:
    if request.waits:
        return request.wait_seq, request.wait_durable
    return (0, False) if request.op in _READS else None
