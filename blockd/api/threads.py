"""Calls that take long (they walk trees or packs) run in threads, but only so many at once.

Quick calls share the event loop's default threads with them; without a bound a few scans of the
whole store would keep `blockd volume list` waiting.
"""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class LongCalls:
    """At most `limit` at once; the others wait in the order they came."""

    def __init__(self, limit: int = 1) -> None:
        self._turn = asyncio.Semaphore(limit)

    async def __call__(self, call: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        async with self._turn:
            return await asyncio.to_thread(call, *args, **kwargs)
