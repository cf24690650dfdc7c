"""What stands in for `threading`, `concurrent.futures` and `time` in a simulated world.

`installed` puts them into every module of the product for as long as a world runs. The objects
behave as the real ones do where the product relies on it; a waiting thread hands the baton on.
"""

import concurrent.futures
import functools
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.sim.world import threads as world
from tests.sim.world.threads import SimThread, Threads, threads
from volume import sites

PACKAGES = ("blockd", "volume", "transport")
WALL_START_S = 1_800_000_000


class Lock:
    """threading.Lock, and RLock with `reentrant`."""

    reentrant = False

    def __init__(self) -> None:
        self._holder: SimThread | None = None
        self._depth = 0
        self._waiting: deque[SimThread] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        run = threads()
        me = run.current
        if self._holder is me and self.reentrant:
            self._depth += 1
            return True
        while self._holder is not None:
            if not blocking or timeout == 0:
                return False
            self._waiting.append(me)
            if not run.block("lock", None if timeout < 0 else timeout):
                self._waiting.remove(me)
                return False
        self._holder, self._depth = me, 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self._holder = None
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done:
                threads().wake(waiter)
                return

    def locked(self) -> bool:
        return self._holder is not None

    def take_by_force(self) -> None:
        """A killed thread unwinds out of `wait`: its `with` will release once."""
        self._holder, self._depth = threads().current, 1

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class RLock(Lock):
    reentrant = True


class Condition:
    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = lock or RLock()
        self._waiting: list[SimThread] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def acquire(self) -> bool:
        return self._lock.acquire()

    def release(self) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        run = threads()
        me = run.current
        self._waiting.append(me)
        self._lock.release()
        try:
            woken = run.block("condition", timeout)
            if me in self._waiting:
                self._waiting.remove(me)
                woken = False
            self._lock.acquire()
        except world.Killed:
            self._lock.take_by_force()
            raise
        return woken

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        run = threads()
        end = None if timeout is None else run.now_s + timeout
        while not predicate():
            left = None if end is None else end - run.now_s
            if left is not None and left <= 0:
                return False
            self.wait(left)
        return True

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiting))):
            threads().wake(self._waiting.pop(0))

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class Event:
    def __init__(self) -> None:
        self._set = False
        self._waiting: list[SimThread] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            threads().wake(each)

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        run = threads()
        if self._set:
            run.pause(0.5)
            return True
        me = run.current
        self._waiting.append(me)
        run.block("event", timeout)
        if me in self._waiting:
            self._waiting.remove(me)
        return self._set


class Thread:
    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self.name = name or "thread"
        assert target is not None
        self._work = functools.partial(target, *args, **(kwargs or {}))
        self._thread: SimThread | None = None

    def start(self) -> None:
        def work() -> None:
            self._work()

        self._thread = threads().spawn(self.name, work)

    def join(self, timeout: float | None = None) -> None:
        assert self._thread is not None
        threads().join(self._thread)
        if self._thread.error is not None:
            raise self._thread.error

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.done


class Future(concurrent.futures.Future[Any]):
    def result(self, timeout: float | None = None) -> Any:
        self._wait(timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._wait(timeout)
        return super().exception(0)

    def _wait(self, timeout: float | None) -> None:
        if not self.done():
            event = Event()
            self.add_done_callback(lambda _: event.set())
            event.wait(timeout)


class Executor(concurrent.futures.Executor):
    """ThreadPoolExecutor."""

    def __init__(
        self, max_workers: int | None = None, thread_name_prefix: str = "", **_: object
    ) -> None:
        self._limit = max_workers or 4
        self._prefix = thread_name_prefix or "pool"
        self._threads: list[SimThread] = []
        self._idle = 0
        self._calls: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._changed = Condition()
        self._closed = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        if self._closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = Future()
        self._calls.append((future, lambda: fn(*args, **kwargs)))
        if self._idle < len(self._calls) and len(self._threads) < self._limit:
            name = f"{self._prefix}_{len(self._threads)}"
            self._threads.append(threads().spawn(name, self._serve))
        with self._changed:
            self._changed.notify()
        return future

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._calls:
                    if self._closed:
                        return
                    self._idle += 1
                    try:
                        self._changed.wait()
                    finally:
                        self._idle -= 1
                future, call = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                value = call()
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(value)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._closed = True
        if cancel_futures:
            while self._calls:
                self._calls.popleft()[0].cancel()
        with self._changed:
            self._changed.notify_all()
        if wait:
            for thread in list(self._threads):
                threads().join(thread)


def monotonic() -> float:
    return threads().now_s


def monotonic_ns() -> int:
    return threads().now_ns


def wall_s() -> float:
    return WALL_START_S + threads().now_s


def wall_ns() -> int:
    return WALL_START_S * world.NS + threads().now_ns


def sleep(seconds: float) -> None:
    threads().sleep(seconds)


def _ident() -> int:
    return id(threads().current)


_THREADING = types.SimpleNamespace(
    Lock=Lock, RLock=RLock, Condition=Condition, Event=Event, Thread=Thread, get_ident=_ident
)
_TIME = types.SimpleNamespace(
    monotonic=monotonic,
    monotonic_ns=monotonic_ns,
    perf_counter=monotonic,
    time=wall_s,
    time_ns=wall_ns,
    sleep=sleep,
    strftime=time.strftime,
    gmtime=time.gmtime,
)
_STAND_INS: dict[Any, Any] = {
    threading: _THREADING,
    time: _TIME,
    threading.Lock: Lock,
    threading.RLock: RLock,
    threading.Condition: Condition,
    threading.Event: Event,
    threading.Thread: Thread,
    concurrent.futures.Future: Future,
    concurrent.futures.ThreadPoolExecutor: Executor,
    time.monotonic: monotonic,
    time.sleep: sleep,
}


@contextmanager
def installed(run: Threads, passed: Callable[[str], None] = lambda name: None) -> Iterator[None]:
    """Have the product's modules use the stand-ins, on `run`; `passed` is told of fail points."""
    assert world.running is None, "one world at a time"
    stand_ins = {**_STAND_INS, sites.fail_point: passed}
    world.running = run
    replaced: list[tuple[types.ModuleType, str, Any]] = []
    try:
        for name, module in sorted(sys.modules.items()):
            if name.partition(".")[0] not in PACKAGES or module is None:
                continue
            for attribute, value in list(vars(module).items()):
                try:
                    stand_in = stand_ins.get(value)
                except (TypeError, ValueError):  # not hashable: none of ours
                    continue
                if stand_in is not None:
                    replaced.append((module, attribute, value))
                    setattr(module, attribute, stand_in)
        yield
    finally:
        for module, attribute, value in reversed(replaced):
            setattr(module, attribute, value)
        world.running = None
