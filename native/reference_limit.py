"""Slow, obvious Python twin of limits (native/src/limit.h): an oracle for tests.

Buckets as they are usually drawn: a level that falls with time and rises with what is poured in;
with exact fractions, where the C kernel keeps one time in whole nanoseconds for each.
"""

from collections.abc import Sequence
from fractions import Fraction

from native.reference_account import OPS

READ, WRITE, UNMAP, WRITE_ZEROES = (
    OPS.index(name) for name in ("read", "write", "unmap", "write_zeroes")
)
SECOND_NS = 10**9


def amounts(op: int, length: int) -> tuple[int, ...]:
    """Operations, reads, writes, bytes, bytes read, bytes written that a request is."""
    reads, writes = op == READ, op in (WRITE, UNMAP, WRITE_ZEROES)
    payload = length if op in (READ, WRITE) else 0
    return (
        int(reads or writes),
        int(reads),
        int(writes),
        payload,
        payload * reads,
        payload * writes,
    )


class Limit:
    """One client's view: requests in order, each with the time at which it may go on."""

    def __init__(self, rates: Sequence[int], burst_ns: int) -> None:
        self._rates = rates
        self._burst_ns = burst_ns
        self._levels = [Fraction(0)] * len(rates)
        self._at_ns = 0

    def due_ns(self, op: int, length: int, now_ns: int) -> Fraction:
        """When a request that asks at `now_ns`, not before the last one, may go on."""
        due = Fraction(now_ns)
        for kind, (rate, amount) in enumerate(zip(self._rates, amounts(op, length), strict=True)):
            if not rate:
                continue
            leaked = Fraction((now_ns - self._at_ns) * rate, SECOND_NS)
            level = self._levels[kind] = max(Fraction(0), self._levels[kind] - leaked)
            if amount:
                excess = level - Fraction(self._burst_ns * rate, SECOND_NS)
                due = max(due, now_ns + excess * SECOND_NS / rate)
                self._levels[kind] += amount
        self._at_ns = now_ns
        return due
