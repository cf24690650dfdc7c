"""How worker threads reach the thread that front ends run on.

The daemon gives the event loop's own; tests and simulations use `InlineScheduler`.
"""

from collections.abc import Callable
from typing import Protocol


class Scheduler(Protocol):
    def post(self, call: Callable[[], None]) -> None:
        """From any thread: run `call` on the front ends' thread soon, in the order of posting."""

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """From the front ends' thread: run `call` there after `delay_s` seconds."""


class InlineScheduler:
    """Runs every call at once, on whatever thread it comes from; delays are not waited for."""

    def post(self, call: Callable[[], None]) -> None:
        call()

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        call()
