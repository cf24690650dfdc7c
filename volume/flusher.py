"""Group commit: one sync of the journal serves every flush and FUA write that waits for it.

`run_once` takes whoever waits, syncs, and finishes them; those that arrive meanwhile form the next
group. A sync that fails seals the store: it is never tried again, and every waiting and later
request that asks for durability gets EIO.

Between the groups the thread has the disk begin to write what was appended, so that a sync, when
one is asked for after a long time of plain writes, has little left to wait for.
"""

import errno
import logging
import threading
from collections.abc import Callable

from native import Journal, Request
from volume.scheduler import Scheduler

log = logging.getLogger(__name__)

BEHIND_BUSY_S = 0.005  # between two looks at what the disk could begin to write
BEHIND_IDLE_S = 0.1

Done = Callable[[list[Request]], None]


class Flusher:
    """Finishes requests when what they wrote is durable. `add` may be called from any thread."""

    def __init__(
        self, journal: Journal, scheduler: Scheduler, on_failure: Callable[[OSError], None]
    ) -> None:
        self._journal = journal
        self._scheduler = scheduler
        self._on_failure = on_failure
        self._condition = threading.Condition()
        self._waiting: list[tuple[list[Request], Done]] = []
        self._stopped = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Serve from a thread of its own. Without one, `add` syncs before it returns."""
        self._thread = threading.Thread(target=self._serve, name="blockd-flush", daemon=True)
        self._thread.start()

    def add(self, requests: list[Request], done: Done) -> None:
        """Finish `requests` when everything appended before this call is durable."""
        with self._condition:
            self._waiting.append((requests, done))
            self._condition.notify()
        if self._thread is None:
            self.run_once()

    def run_once(self) -> None:
        """One group: sync, then finish who waited when it began."""
        with self._condition:
            group, self._waiting = self._waiting, []
        if not group:
            return
        error = 0
        try:
            self._journal.sync()
        except OSError as failure:
            error = errno.EIO
            self._on_failure(failure)
        self._scheduler.post(lambda: _finish(group, error))

    def stop(self) -> None:
        """Serve who waits, then end the thread."""
        with self._condition:
            self._stopped = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.run_once()

    def _serve(self) -> None:
        busy = False
        while True:
            with self._condition:
                if not self._waiting and not self._stopped:
                    self._condition.wait(BEHIND_BUSY_S if busy else BEHIND_IDLE_S)
                if self._stopped:
                    return
            busy = self._journal.write_behind()
            self.run_once()


def _finish(group: list[tuple[list[Request], Done]], error: int) -> None:
    for requests, done in group:
        for request in requests:
            request.error = error
        done(requests)
