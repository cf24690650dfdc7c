"""Calls that wait for disks, on a few threads, so that no owner keeps the others waiting.

Owners (connections, mostly) take turns: of one owner `EACH` calls run at a time, and the next free
thread goes to whoever has waited for longest. How many calls wait is bounded by who hands them in:
a session by its command window. Everything but the calls themselves happens on the event loop's
thread.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

THREADS = 4  # a sync each; more of them would not make a disk quicker
EACH = 2  # one waits for a copy of 16 MiB, a reservation goes beside it

Done = Callable[[Any, Exception | None], None]
"""Called on the loop with what the call returned, or with what it raised."""


class Workers:
    """See the module's text."""

    def __init__(self, name: str, threads: int = THREADS, each: int = EACH) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._each = each
        self._running: Counter[object] = Counter()
        self._waiting: dict[object, deque[tuple[Callable[[], Any], Done]]] = {}  # in turn
        self._closed = False

    def submit(self, owner: object, call: Callable[[], Any], done: Done) -> None:
        """Run `call` when it is the owner's turn. `done` is called later, once, whatever happens;
        after `close` with an error."""
        if self._closed:
            loop = asyncio.get_running_loop()
            loop.call_soon(done, None, OSError("the server stops"))
            return
        self._waiting.setdefault(owner, deque()).append((call, done))
        self._start()

    def _start(self) -> None:
        """Give free threads to owners that may have one."""
        for owner in list(self._waiting):
            if self._running.total() >= self._threads:
                return
            if self._running[owner] >= self._each:
                continue
            queue = self._waiting.pop(owner)
            call, done = queue.popleft()
            if queue:
                self._waiting[owner] = queue  # behind all others
            self._run(owner, call, done)

    def _run(self, owner: object, call: Callable[[], Any], done: Done) -> None:
        self._running[owner] += 1
        loop = asyncio.get_running_loop()

        def work() -> None:
            value, error = None, None
            try:
                value = call()
            except Exception as raised:  # whoever waits for it is to decide
                error = raised
            loop.call_soon_threadsafe(self._ended, owner, done, value, error)

        self._pool.submit(work)

    def _ended(self, owner: object, done: Done, value: Any, error: Exception | None) -> None:
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        try:
            done(value, error)
        finally:
            self._start()

    async def close(self) -> None:
        """Return when the calls that run have ended; those that wait fail."""
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        for queue in waiting.values():
            for _, done in queue:
                done(None, OSError("the server stops"))
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.sleep(0)  # the last of them tell so
