"""Turns: what lets clients of a volume in and out is done one after the other."""

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from transport.group.around import Around

T = TypeVar("T")


class Turns:
    """As `Around.work`, but so that an end never overtakes the beginning after it."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._waiting: deque[Callable[[], None]] = deque()

    def take(self, call: Callable[[], T], then: Callable[[T | Exception], None]) -> None:
        def done(result: T | Exception) -> None:
            self._waiting.popleft()
            if self._waiting:
                self._waiting[0]()
            then(result)

        self._waiting.append(lambda: self._around.work(call, done))
        if len(self._waiting) == 1:
            self._waiting[0]()
