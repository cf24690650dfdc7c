"""How fast work is done, measured while it is, and how long what is left of it takes at that rate.

Pauses count: the rate is what was done since the work began, or in the last MARKS steps of it, by
the time that went by until now. So work that has stopped gets slower while one looks at it, and
what nobody has seen any of yet has no rate.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

MARKS: Final = 64  # enough that one long step does not decide


class Measured:
    """Bytes of one kind of work. Any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left = 0
        self._done = 0
        self._marks: deque[tuple[float, int]] = deque(maxlen=MARKS)

    @property
    def left(self) -> int:
        """Bytes."""
        return self._left

    def found(self, left: int) -> None:
        """So much is left, as was just counted."""
        with self._lock:
            if left == 0:
                self._marks.clear()
            elif not self._marks:
                self._marks.append((self._clock(), self._done))
            self._left = left

    def did(self, count: int) -> None:
        """So much of it was done just now."""
        with self._lock:
            self._done += count
            self._left = max(0, self._left - count)
            self._marks.append((self._clock(), self._done))

    def rate(self) -> float | None:
        """Bytes a second; None while nothing of it was done."""
        with self._lock:
            if not self._marks:
                return None
            since, had = self._marks[0]
            took_s, count = self._clock() - since, self._done - had
        return count / took_s if count and took_s > 0 else None

    def left_s(self) -> float | None:
        """Seconds until it is done; None: not known."""
        return time_left(self._left, self.rate())


def time_left(left: int, rate: float | None) -> float | None:
    """Seconds for so many bytes; None: nobody could tell."""
    if not left:
        return 0.0
    return left / rate if rate else None
