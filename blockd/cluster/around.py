"""What the parts of volumes live in, in a daemon: the sessions' thread, its clock, and threads that
may wait. See `transport.group.around`."""

import logging
import os
import random
import select
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from transport.group.around import Timer
from transport.peer import messages as m
from transport.sessions import Sessions, Then

logger = logging.getLogger(__name__)

DISK_THREADS: Final = 8
STORE_THREADS: Final = 2  # takeovers of many volumes wait for each other here, not for disks

T = TypeVar("T")


class DaemonAround:
    """`close` after the sessions have ended: nothing is called after that."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._disk = ThreadPoolExecutor(DISK_THREADS, "blockd-group")
        self._store = ThreadPoolExecutor(STORE_THREADS, "blockd-takeover")
        self._taps = _Taps(sessions.post)
        self.random = random.SystemRandom().random

    def close(self) -> None:
        self._taps.close()
        self._disk.shutdown()
        self._store.shutdown()

    def ask(self, node: bytes, message: m.Request, timeout_s: float, then: Then) -> None:
        self._sessions.ask(node, message, timeout_s, then)

    def features(self, node: bytes) -> int:
        return self._sessions.features(node)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        return self._sessions.after(delay_s, call)

    def post(self, call: Callable[[], None]) -> None:
        self._sessions.post(call)

    def clock(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def work(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self._do(self._disk, call, then)

    def ask_store(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        self._do(self._store, call, then)

    def watch_tap(self, descriptor: int, call: Callable[[], None]) -> Timer:
        return self._taps.watch(descriptor, call)

    def _do(
        self,
        pool: ThreadPoolExecutor,
        call: Callable[[], T],
        then: Callable[[T | Exception], None],
    ) -> None:
        def work() -> None:
            result: T | Exception
            try:
                result = call()
            except Exception as error:  # belongs to whoever asked for it
                result = error
            self._sessions.post(lambda: then(result))

        pool.submit(work)


class _Watched:
    """A tap; `cancel` on the sessions' thread."""

    def __init__(self, taps: "_Taps", descriptor: int, call: Callable[[], None]) -> None:
        self._taps = taps
        self._call = call
        self.descriptor = descriptor
        self.pending = False
        self.cancelled = False

    def cancel(self) -> None:
        if not self.cancelled:
            self.cancelled = True
            self._taps.forget(self)

    def ring(self) -> None:
        self.pending = False
        if not self.cancelled:
            self._call()


class _Taps:
    """A thread that waits for the eventfds of taps, edge-triggered: what is not taken yet does not
    wake it again and again. Each has at most one call under way."""

    def __init__(self, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._watched: dict[int, _Watched] = {}
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="blockd-taps", daemon=True)
        self._thread.start()

    def watch(self, descriptor: int, call: Callable[[], None]) -> _Watched:
        watched = _Watched(self, descriptor, call)
        self._watched[descriptor] = watched
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLET)
        return watched

    def forget(self, watched: _Watched) -> None:
        """Before the descriptor is closed."""
        del self._watched[watched.descriptor]
        self._epoll.unregister(watched.descriptor)

    def close(self) -> None:
        self._closed = True
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while not self._closed:
            for descriptor, _ in self._epoll.poll():
                watched = self._watched.get(descriptor)
                if watched is not None and not watched.pending:
                    watched.pending = True
                    self._post(watched.ring)
