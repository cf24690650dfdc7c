"""Log lines that strangers can cause, kept within a bound.

Whoever reaches the port can make a server log: bad magic, failed handshakes, connects and vanishes.
Per kind of line, `BURST` pass in a period; the rest are counted, and the count is logged once when
the period is over. Kinds may hold text that a stranger chose, so their number is bounded too.
"""

import logging
import time
from collections.abc import Callable

BURST = 5  # lines of one kind that pass in one period: enough to see a pattern
PERIOD_S = 60.0
MAX_KINDS = 64  # tracked at a time; the rest share one entry
MAX_KIND_LENGTH = 200  # characters kept of one
OTHER = "others"

Later = Callable[[float, Callable[[], None]], object]


class LogLimiter:
    """Passes lines to `logger`, a bounded number per kind and period."""

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._period_end = clock() + PERIOD_S
        self._seen: dict[str, tuple[int, int]] = {}  # by kind: level, lines of this period
        self._later: Later | None = None
        self._report_due = False

    def report_with(self, later: Later | None) -> None:
        """Use `later(delay_s, callback)` (a loop's call_later) to report what was suppressed; None
        leaves it to the next line and to `report`."""
        self._later = later

    def log(
        self,
        level: int,
        kind: str,
        event: str,
        /,
        *,
        trace: bool | Exception = False,
        **fields: object,
    ) -> None:
        """Log `event` with `fields` unless there were too many of this kind already; `trace` adds
        a traceback, when True that of the exception being handled."""
        if self._clock() >= self._period_end:
            self.report()
        kind = kind[:MAX_KIND_LENGTH]
        key = kind if kind in self._seen or len(self._seen) < MAX_KINDS else OTHER
        _, count = self._seen.get(key, (level, 0))
        self._seen[key] = (level, count + 1)
        if count < BURST:
            self._logger.log(level, event, extra=fields, exc_info=trace)
        elif self._later is not None and not self._report_due:
            self._report_due = True
            self._later(max(0.0, self._period_end - self._clock()), self.report)

    def report(self) -> None:
        """Log how many lines were held back, and begin a new period."""
        seen, self._seen = self._seen, {}
        self._period_end = self._clock() + PERIOD_S
        self._report_due = False
        for kind, (level, count) in seen.items():
            if count > BURST:
                held_back = {"kind": kind, "count": count - BURST}
                self._logger.log(level, "log lines suppressed", extra=held_back)
