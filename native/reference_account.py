"""Slow, obvious Python twin of accounts (native/src/account.h): an oracle for tests."""

from itertools import pairwise

OPS = ("read", "write", "flush", "unmap", "write_zeroes", "cache", "block_status", "other")

BOUNDS_NS = tuple(
    2**power // 2 * halves
    for power in range(10, 37)
    for halves in (2, 3)
    if (power, halves) < (36, 3)
)


class Account:
    """As `native.Account`; one list of latencies for each op."""

    def __init__(self) -> None:
        self._latencies: list[list[int]] = [[] for _ in OPS]
        self._bytes = [0] * len(OPS)
        self._errors = [0] * len(OPS)

    def record(self, op: int, length: int, failed: bool, elapsed_ns: int) -> None:
        self._latencies[op].append(elapsed_ns)
        self._bytes[op] += length
        self._errors[op] += failed

    def snapshot(self) -> tuple[tuple[int, int, int, int, tuple[int, ...]], ...]:
        return tuple(
            (len(latencies), self._bytes[op], self._errors[op], sum(latencies), _counts(latencies))
            for op, latencies in enumerate(self._latencies)
        )


def _counts(latencies: list[int]) -> tuple[int, ...]:
    """How many are in each bucket: above the bound before it, and not above its own."""
    edges = (-1, *BOUNDS_NS, float("inf"))
    return tuple(
        sum(below < latency <= bound for latency in latencies) for below, bound in pairwise(edges)
    )
