"""How the volume layer, which knows no event loop, gets calls onto ours (volume.scheduler)."""

import asyncio
from collections.abc import Callable


class LoopScheduler:
    """Runs calls on `loop`'s thread. The store is closed before the loop is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def post(self, call: Callable[[], None]) -> None:
        """From any thread: run `call` soon."""
        self._loop.call_soon_threadsafe(call)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """From the loop's thread: run `call` after `delay_s` seconds."""
        self._loop.call_later(delay_s, call)
