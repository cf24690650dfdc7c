"""Make a failing world smaller: leave out acts while it still breaks the same invariant."""

import time
from collections.abc import Callable, Sequence

from tests.sim.world.world import Report

Live = Callable[[Sequence[int]], Report]


def kind_of(error: str) -> str:
    """What stays the same of an error while its world shrinks: "Violation: I3"."""
    return " ".join(error.split()[:2])


def shrunk(
    failed: Report, indices: Sequence[int], live: Live, *, limit_s: float
) -> tuple[list[int], Report]:
    """The acts that are left, and how their world goes. Halves first, then ever smaller pieces,
    until no single act can go or `limit_s` seconds of real time are over."""
    ends = time.monotonic() + limit_s
    kept, best = list(indices), failed
    size = max(1, len(kept) // 2)
    while True:
        went = False
        at = 0
        while at < len(kept):
            if time.monotonic() > ends:
                return kept, best
            fewer = kept[:at] + kept[at + size :]
            report = live(fewer)
            if report.error and kind_of(report.error) == kind_of(failed.error):
                kept, best, went = fewer, report, True
            else:
                at += size
        if size == 1 and not went:
            return kept, best
        size = max(1, size // 2) if not went or size > 1 else 1
