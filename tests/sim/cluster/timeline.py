"""Time in a world of several nodes: events in their order, and what each node's clocks make of it.

One thread runs everything; what happens next is the earliest event, and of those at one moment the
one that was asked for first. So the same seed lives the same world, and a day without events costs
nothing. A *process* is what events of one daemon belong to: they end with it, and wait while it is
stopped.
"""

import heapq
import math
import random
from collections.abc import Callable

from tests.sim.simclock import EPOCH_NS

NS = 1_000_000_000
MAX_EVENTS = 400_000  # of one world; a busy one has a twentieth of it

Call = Callable[[], None]


class Stuck(AssertionError):
    """Events beget events, and no time passes."""


class Timeline:
    def __init__(self) -> None:
        self.now_ns = 0
        self.event_count = 0
        self._order = 0
        self._heap: list[tuple[int, int, Call]] = []

    @property
    def now_s(self) -> float:
        return self.now_ns / NS

    def after(self, delay_s: float, call: Call) -> None:
        """Have `call` made `delay_s` seconds from now; what is due already comes next."""
        self.at(self.now_ns + round(delay_s * NS) if delay_s > 0.0 else self.now_ns, call)

    def at(self, when_ns: int, call: Call) -> None:
        """The same at a moment that is not before now."""
        self._order = order = self._order + 1
        heapq.heappush(self._heap, (when_ns, order, call))

    def step(self) -> bool:
        """Let the next event happen; False when there is none."""
        if not self._heap:
            return False
        self.event_count += 1
        if self.event_count > MAX_EVENTS:
            raise Stuck(f"{MAX_EVENTS} events in {self.now_s:.3f} s")
        self.now_ns, _, call = heapq.heappop(self._heap)
        call()
        return True

    def run_until(self, end_s: float, over: Callable[[], bool]) -> None:
        """Let time pass, up to the first event at `end_s` or later, or until something is so."""
        end_ns = math.ceil(end_s * NS)
        while self.now_ns < end_ns and not over():
            if not self.step():
                return

    def run(self, seconds: float) -> None:
        """Let time pass, with all that happens in it."""
        end_ns = self.now_ns + round(seconds * NS)
        while self._heap and self._heap[0][0] <= end_ns:
            self.step()
        self.now_ns = end_ns


class NodeClock:
    """volume.disk.Clock of one node. Its wall clock may be set; its clock of intervals, which goes
    on while the node is stopped (CLOCK_BOOTTIME), runs a little fast or slow."""

    def __init__(self, timeline: Timeline, seed: str) -> None:
        self._timeline = timeline
        self._random = random.Random(f"uuid:{seed}")
        self.skew_ns = 0
        """How far the wall clock is ahead."""
        self._rate = 1.0
        self._since_ns = timeline.now_ns
        self._base_s = 0.0

    def now_ns(self) -> int:
        return EPOCH_NS + self._timeline.now_ns + self.skew_ns

    def monotonic(self) -> float:
        return self._base_s + (self._timeline.now_ns - self._since_ns) / NS * self._rate

    def boottime_ns(self) -> int:
        return round(self.monotonic() * NS)

    def new_uuid(self) -> bytes:
        return self._random.randbytes(16)

    def drift(self, rate: float) -> None:
        """Let it run at `rate` seconds a second from now on."""
        self._base_s, self._since_ns = self.monotonic(), self._timeline.now_ns
        self._rate = rate

    def restart(self, base_s: float) -> None:
        """The machine boots: the clock of intervals begins anew."""
        self._base_s, self._since_ns = base_s, self._timeline.now_ns

    def until(self, at_s: float) -> float:
        """Seconds of the world until `monotonic` says `at_s`, at its present rate."""
        return (at_s - self.monotonic()) / self._rate


class Process:
    """One life of a daemon. Every call that is made for it goes through `run`."""

    def __init__(self, timeline: Timeline, clock: NodeClock) -> None:
        self.timeline = timeline
        self.clock = clock
        self.alive = True
        self._stopped = False
        self._held: list[Call] = []
        self._wake_ns: int | None = None
        self.on_due: list[Call] = []
        """Called when the time has come that `wake_at` was told; each says what it waits for next.
        """

    @property
    def stopped(self) -> bool:
        return self._stopped

    def run(self, call: Call) -> None:
        """Make a call, unless the process is gone; later, if it is stopped."""
        if not self.alive:
            return
        if self._stopped:
            self._held.append(call)
        else:
            call()

    def after(self, delay_s: float, call: Call) -> None:
        """Have a call made `delay_s` seconds of the world from now."""
        self.timeline.after(delay_s, lambda: self.run(call))

    def wake_at(self, due_s: float) -> None:
        """Have `on_due` called when the node's clock of intervals says `due_s`, or before."""
        now_ns = self.timeline.now_ns
        if due_s == math.inf or self._wake_ns == now_ns:
            return
        left_s = self.clock.until(due_s)
        left_ns = round(left_s * NS) if left_s > 0.0 else 0
        if left_ns == 0 and left_s > 0.0:
            left_ns = 1  # less than that is left: time has to go on
        when_ns = now_ns + left_ns
        if self._wake_ns is None or when_ns < self._wake_ns:
            self._wake_ns = when_ns
            self.timeline.at(when_ns, lambda: self._woken(when_ns))

    def _woken(self, when_ns: int) -> None:
        if self._wake_ns == when_ns:
            self._wake_ns = None
            for call in self.on_due:
                self.run(call)

    def stop(self) -> None:
        """SIGSTOP."""
        self._stopped = True

    def go_on(self) -> None:
        """SIGCONT: what came meanwhile is seen to, in its order."""
        self._stopped = False
        held, self._held = self._held, []
        for call in held:
            self.run(call)

    def end(self) -> None:
        self.alive = False
        self._held.clear()
