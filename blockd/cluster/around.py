"""What the parts of volumes live in, in a daemon: the sessions' thread, its clock, and threads that
may wait. See `transport.group.around`."""

import logging
import random
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from native import Syncer
from transport.group.around import Timer, synced
from transport.peer import messages as m
from transport.sessions import Sessions, Then
from volume.replica import Replica

logger = logging.getLogger(__name__)

DISK_THREADS: Final = 8
STORE_THREADS: Final = 2  # takeovers of many volumes wait for each other here, not for disks

T = TypeVar("T")


class DaemonAround:
    """`close` after the sessions have ended: nothing is called after that."""

    def __init__(self, sessions: Sessions, syncer: Syncer) -> None:
        self._sessions = sessions
        self._syncer = syncer
        self._syncs: deque[tuple[int, Callable[[bool], None]]] = deque()
        self._disk = ThreadPoolExecutor(DISK_THREADS, "blockd-group")
        self._store = ThreadPoolExecutor(STORE_THREADS, "blockd-takeover")
        self.random = random.Random(random.SystemRandom().getrandbits(128)).random

    def start(self) -> None:
        """On the sessions' thread."""
        self._sessions.watched(self._syncer.fileno(), self._synced)

    def close(self) -> None:
        self._syncer.close()
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

    def sync(self, replica: Replica, then: Callable[[int | Exception], None]) -> None:
        """Without a hop through Python's threads, as far as it goes well."""

        def wait() -> None:
            self.work(lambda: synced(replica), then)

        def ended(well: bool) -> None:
            if well and syncing is not None and replica.sync_ended(syncing):
                then(syncing.seq)
            else:
                wait()  # where it failed, all of the store hears of it there

        syncing = replica.sync_begins()
        if syncing is None:
            wait()
        else:
            self._syncs.append((self._syncer.ask(), ended))

    def _synced(self) -> None:
        done, failure = self._syncer.done()
        while self._syncs and self._syncs[0][0] <= done:
            ended = self._syncs.popleft()[1]
            try:
                ended(failure == 0)
            except Exception:  # nobody would tell the others before the next sync
                logger.exception("what follows a sync failed")

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
