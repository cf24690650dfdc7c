"""Running coroutines from plain tests, on the event loop that the daemon uses."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 30.0  # far beyond any test's work: only a hang reaches it


def run(main: Coroutine[Any, Any, T], timeout_s: float = DEFAULT_TIMEOUT_S) -> T:
    """The result of `main`, run on a fresh uvloop. Raises TimeoutError after `timeout_s`."""

    async def bounded() -> T:
        async with asyncio.timeout(timeout_s):
            return await main

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(bounded())
