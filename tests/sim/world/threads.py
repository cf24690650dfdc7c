"""Threads under a seed: the product's own threads, one at a time, in an order and a time we decide.

Each simulated thread is an operating system thread that runs only while it holds the baton. It
gives the baton up where it would wait (locks, conditions, events, futures, sleeps) and, by chance,
where a disk would take its time (`pause`). Who goes on is drawn from the seed. When nobody can run,
time jumps to the next moment at which somebody will: a day of it costs nothing.

So the same seed runs the same code in the same order, whatever the machine does: nothing that the
product calls waits for anything but the baton. `primitives` has what stands in for `threading`,
`concurrent.futures` and `time` while a world runs.

Threads belong to a group, a process of the simulated world. `kill` ends a group as kill -9 does:
each of its threads gets `Killed`, a BaseException, at the place where it waits, and at each place
where it would wait while it unwinds.
"""

import _thread
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

NS = 1_000_000_000


class Killed(BaseException):
    """This thread's process is gone."""


class Stuck(Exception):
    """Every thread waits, and no time will come at which one of them goes on."""


@dataclass(eq=False, slots=True)
class Group:
    """A process: threads that die together."""

    name: str
    killed: bool = False
    threads: "list[SimThread]" = field(default_factory=list)


class SimThread:
    """One thread. Everything in here is touched by whoever holds the baton."""

    def __init__(self, name: str, group: Group, work: Callable[[], None]) -> None:
        self.name = name
        self.group = group
        self.done = False
        self.error: BaseException | None = None
        self.work = work
        self.baton = _thread.allocate_lock()
        self.baton.acquire()
        self.ready = False
        self.timed_out = False
        self.waits_for = ""
        self.ticket = 0  # of the newest wait: timers of earlier ones are void
        self.joiners: list[SimThread] = []


class Threads:
    """All threads of a world, and its time. The one that makes it is the first of them."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(f"threads:{seed}")
        self.now_ns = 0
        self.switches = 0
        self.switch_limit = 1_000_000
        self.ending = False
        """The first thread knows of `failure`, and cleans up."""
        self.failure: BaseException | None = None
        """What ended the world before its time; raised in the first thread."""
        self._ready: list[SimThread] = []
        self._timers: list[tuple[int, int, SimThread, int]] = []
        self._timer_count = 0
        self.main = self.current = SimThread("main", Group("main"), lambda: None)

    # -- running

    def spawn(self, name: str, work: Callable[[], None], group: Group | None = None) -> SimThread:
        """A new thread, in the group of the one that asks unless another is named."""
        thread = SimThread(name, group or self.current.group, work)
        thread.group.threads.append(thread)
        _thread.start_new_thread(self._run, (thread,))
        self._make_ready(thread)
        return thread

    def _run(self, thread: SimThread) -> None:
        thread.baton.acquire()
        try:
            if not thread.group.killed:
                thread.work()
        except Killed:
            pass
        except BaseException as error:
            thread.error = error
            if not thread.group.killed:
                self.fail(error)
        thread.done = True
        thread.group.threads.remove(thread)
        for joiner in thread.joiners:
            self._make_ready(joiner)
        self._next().baton.release()

    def _make_ready(self, thread: SimThread) -> None:
        if not thread.ready:
            thread.ready = True
            thread.ticket += 1
            self._ready.append(thread)

    def _next(self) -> SimThread:
        """Who goes on; time may jump. It is `current` on return."""
        while not self._ready:
            if not self._timers:
                self.fail(Stuck(f"nobody can go on at {self.now_s:.3f} s"))
                continue
            when, _, thread, ticket = heapq.heappop(self._timers)
            if thread.ticket == ticket and not thread.done:
                self.now_ns = max(self.now_ns, when)
                thread.timed_out = True
                self._make_ready(thread)
        ready = self._ready
        at = int(self.random.random() * len(ready)) if len(ready) > 1 else 0
        chosen = ready[at]
        ready[at] = ready[-1]
        ready.pop()
        chosen.ready = False
        self.current = chosen
        return chosen

    def _switch(self) -> None:
        me = self.current
        chosen = self._next()
        if chosen is not me:
            self.switches += 1
            if self.switches > self.switch_limit:
                self.fail(Stuck(f"no end after {self.switches} switches, {self.now_s:.3f} s"))
                self.switch_limit *= 2
            chosen.baton.release()
            me.baton.acquire()
        if me.group.killed:
            raise Killed(me.name)
        if me is self.main and self.failure is not None and not self.ending:
            raise self.failure

    def fail(self, error: BaseException) -> None:
        """End the world: the first thread gets `error` where it waits."""
        if self.failure is None:
            self.failure = error
        self._make_ready(self.main)

    # -- what threads do

    @property
    def now_s(self) -> float:
        return self.now_ns / NS

    def block(self, why: str, timeout_s: float | None = None) -> bool:
        """Wait until `wake`, or until the time is over; whether it was `wake`."""
        me = self.current
        if me.group.killed:
            raise Killed(me.name)
        me.waits_for = why
        me.timed_out = False
        if timeout_s is not None:
            self._timer_count += 1
            # A nanosecond at least: who waits for what is left of a time must not do so for ever.
            when = self.now_ns + max(1 if timeout_s > 0 else 0, round(timeout_s * NS))
            heapq.heappush(self._timers, (when, self._timer_count, me, me.ticket))
        self._switch()
        return not me.timed_out

    def wake(self, thread: SimThread) -> None:
        if not thread.done and thread is not self.current:
            self._make_ready(thread)

    def sleep(self, seconds: float) -> None:
        self.block("sleep", seconds)

    def pause(self, chance: float = 1.0) -> None:
        """Perhaps let others go on first."""
        me = self.current
        if me.group.killed:
            raise Killed(me.name)
        if self._ready and self.random.random() < chance:
            self._make_ready(me)
            self._switch()

    def join(self, thread: SimThread) -> None:
        while not thread.done:
            thread.joiners.append(self.current)
            self.block(f"end of {thread.name}")

    def kill(self, group: Group) -> None:
        """End all threads of another group; returns when they have unwound."""
        assert self.current.group is not group
        group.killed = True
        for thread in list(group.threads):
            self._make_ready(thread)
        while group.threads:
            self.join(group.threads[0])


running: Threads | None = None
"""The threads of the world that runs in this process; there is one at a time."""


def threads() -> Threads:
    assert running is not None, "no world is running"
    return running
