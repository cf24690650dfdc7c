"""What a part of the volume lives in (`transport.group.around.Around`), simulated.

What waits for a disk, or for etcd, is done in an event of its own: at once mostly, now and then
later than what was asked for after it, as on threads. The node's own clock says how long a timer
runs. A tap, or a gate, says by an eventfd that there is something: it is looked at whenever the
process has done something.
"""

import math
import random
import select
from collections.abc import Callable
from typing import TypeVar

from tests.sim.cluster.metastore import MetaStoreClient
from tests.sim.cluster.network import Sessions
from tests.sim.cluster.timeline import NS, Process
from transport.group.around import synced
from transport.peer import messages as m
from transport.peer.caller import Answered, Failed
from volume.replica import Replica

T = TypeVar("T")

WORK_S = ((0.0, 0.7), (0.002, 0.25), (0.06, 0.05))
"""(at most so long, how often): waiting for a disk."""


class SimTimer:
    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def ring(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call()


class _Watched:
    """An eventfd, for as long as somebody watches it."""

    def __init__(self, around: "SimAround", descriptor: int, call: Callable[[], None]) -> None:
        self.descriptor = descriptor
        self.call = call
        self._around = around

    def cancel(self) -> None:
        if self in self._around.watched:
            self._around.watched.remove(self)
            self._around.forget(self.descriptor)


class SimAround:
    """Of one process."""

    def __init__(
        self, process: Process, sessions: Sessions, etcd: MetaStoreClient, seed: str
    ) -> None:
        self.watched: list[_Watched] = []
        self._poll = select.poll()
        self._process = process
        self._sessions = sessions
        self._etcd = etcd
        self._random = random.Random(f"around:{seed}")

    def ask(
        self,
        node: bytes,
        message: m.Request,
        timeout_s: float,
        then: Callable[[Answered | Failed], None],
    ) -> None:
        self._sessions.ask(node.hex(), message, timeout_s, then)

    def features(self, node: bytes) -> int:
        return int(m.FEATURES)

    def after(self, delay_s: float, call: Callable[[], None]) -> SimTimer:
        timer = SimTimer(call)
        clock = self._process.clock
        # Rounded up: a timer that rings early would be set again for no time at all.
        left_ns = math.ceil(max(0.0, clock.until(clock.monotonic() + delay_s)) * NS)
        self._process.after(left_ns / NS, timer.ring)
        return timer

    def post(self, call: Callable[[], None]) -> None:
        self._process.after(0.0, call)

    def clock(self) -> float:
        return self._process.clock.monotonic()

    def random(self) -> float:
        return self._random.random()

    def work(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self._process.after(self._work_s(), lambda: then(_result_of(call)))

    def sync(self, replica: Replica, then: Callable[[int | Exception], None]) -> None:
        self.work(lambda: synced(replica), then)

    def ask_store(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self._etcd.call(lambda: _result_of(call), then)

    def watch_tap(self, descriptor: int, call: Callable[[], None]) -> _Watched:
        watched = _Watched(self, descriptor, call)
        self.watched.append(watched)
        self._poll.register(descriptor, select.POLLIN)
        return watched

    def forget(self, descriptor: int) -> None:
        """Nobody watches it any more, or somebody else does."""
        if not any(each.descriptor == descriptor for each in self.watched):
            self._poll.unregister(descriptor)

    def look_at_taps(self) -> None:
        """Tell those who watch what can be read."""
        if not self._poll.poll(0):
            return  # nearly always
        for each in list(self.watched):
            if each in self.watched and select.select([each.descriptor], [], [], 0)[0]:
                each.call()

    def _work_s(self) -> float:
        draw = self._random.random()
        for longest_s, chance in WORK_S:
            if draw < chance:
                return longest_s * draw / chance
            draw -= chance
        return 0.0


def _result_of(call: Callable[[], T]) -> T | Exception:
    try:
        return call()
    except Exception as error:  # is for who asked
        return error
