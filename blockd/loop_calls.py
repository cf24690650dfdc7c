"""A call that other threads have made on the event loop's."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

SETTLE_S: Final = 5.0  # a loop comes to it within milliseconds; a volume is not opened meanwhile


class LoopCall:
    """`call` is made on `loop`'s thread. A loop that has ended makes no calls, and nobody waits."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call

    def soon(self) -> None:
        """Any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._call)

    def settle(self, timeout_s: float = SETTLE_S) -> None:
        """Return when it was made, after all that were asked for before. Any thread but the loop's;
        waits. TimeoutError: the loop does not come to it."""
        made: Future[None] = Future()

        def make() -> None:
            try:
                self._call()
            finally:
                made.set_result(None)

        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(make)
            made.result(timeout_s)
