"""What the parts of volumes live in, in a daemon: the sessions' thread, its clock, and threads that
may wait. See `transport.group.around`."""

import logging
import random
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
        self.random = random.Random(random.SystemRandom().getrandbits(128)).random

    def close(self) -> None:
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
        return self._sessions.watched(descriptor, call)

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
