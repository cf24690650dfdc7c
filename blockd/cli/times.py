"""Times and ages as people read them. All times are UTC, nanoseconds since 1970 in the API."""

import time
from datetime import timedelta

from volume.refs import format_time

__all__ = ["age", "duration", "format_time", "now_ns", "seconds_time"]

_UNITS = (("w", 7 * 86400), ("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_NS = 1_000_000_000


def now_ns() -> int:
    return time.time_ns()


def seconds_time(time_ns: int) -> str:
    """To the second, for what is not used as a ref: 2026-11-22T10:31:05Z."""
    return format_time(time_ns - time_ns % _NS)


def duration(seconds: float) -> str:
    """ "12.5 s"; from a minute on "0:01:02", "3 days, 4:05:06"."""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=int(seconds)))


def age(then_ns: int, at_ns: int) -> str:
    """From `then_ns` to `at_ns` in its two largest units: "42s", "3h12m", "2d"; "0s" at least."""
    seconds = max(0, at_ns - then_ns) // _NS
    for index, (unit, unit_s) in enumerate(_UNITS):
        count, rest = divmod(seconds, unit_s)
        if count:
            if index + 1 == len(_UNITS):
                return f"{count}{unit}"
            smaller, smaller_s = _UNITS[index + 1]
            return f"{count}{unit}" + (f"{rest // smaller_s}{smaller}" if rest >= smaller_s else "")
    return "0s"
