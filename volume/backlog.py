"""Back-pressure: what happens to writes when the journal fills faster than it is destaged.

From FILL_START of the journal on, finished writes are held back for a while that grows with the
square of the fill, up to MAX_DELAY_S: writers slow down smoothly, long before the end. When no
segment is ready at all, writes wait here, in order, and are tried again whenever a segment becomes
ready. They are never failed for that; when the disk is full, the retry gets its ENOSPC from the
journal's space limit.
"""

import errno
from collections import deque
from collections.abc import Callable

from native import Request
from volume.scheduler import Scheduler
from volume.volume import Volume

Done = Callable[[list[Request]], None]

FILL_START = 0.6
MAX_DELAY_S = 0.02


def delay_for(fill: float) -> float:
    """How long finished writes are held back when `fill` (0.0 to 1.0) of the journal is used."""
    if fill <= FILL_START:
        return 0.0
    over = min(1.0, (fill - FILL_START) / (1.0 - FILL_START))
    return MAX_DELAY_S * over * over


class WriteBacklog:
    """Waiting writes. Everything on the front ends' thread, but `wake`."""

    def __init__(self, scheduler: Scheduler, starving: Callable[[], None]) -> None:
        self.delay_s = 0.0
        self._scheduler = scheduler
        self._starving = starving
        self._waiting: deque[tuple[Volume, list[Request], Done]] = deque()

    @property
    def count(self) -> int:
        return len(self._waiting)

    def add(self, volume: Volume, requests: list[Request], done: Done) -> None:
        """Keep `requests` until there is journal space. What they carry is their own."""
        self._waiting.append((volume, requests, done))
        self._starving()

    def wake(self) -> None:
        """From any thread: there may be space again."""
        self._scheduler.post(self._retry)

    def _retry(self) -> None:
        """Try each waiting group once; those that are blocked again stay in line."""
        for _ in range(len(self._waiting)):
            volume, requests, done = self._waiting.popleft()
            volume.submit(requests, done)
            if self._waiting and self._waiting[-1][0] is volume:
                return  # blocked again: no use trying the others now

    def fail(self, error: int = errno.ESHUTDOWN) -> None:
        """The store closes: finish who still waits with `error`."""
        while self._waiting:
            _, requests, done = self._waiting.popleft()
            for request in requests:
                request.error = error
            done(requests)
