"""Counters of one connection, for `blockd status`."""

import copy

from native import (
    OP_BLOCK_STATUS,
    OP_CACHE,
    OP_FLUSH,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Account,
)

_NAMES = {
    OP_READ: "read",
    OP_WRITE: "write",
    OP_FLUSH: "flush",
    OP_UNMAP: "unmap",
    OP_WRITE_ZEROES: "write_zeroes",
    OP_CACHE: "cache",
    OP_BLOCK_STATUS: "block_status",
}


class Stats:
    """Requests accepted by op, payload bytes of READ and WRITE, and error replies sent."""

    __slots__ = ("account", "errors", "read_bytes", "requests", "written_bytes")

    def __init__(self) -> None:
        self.requests = [0] * len(_NAMES)
        self.read_bytes = 0
        self.written_bytes = 0
        self.errors = 0
        self.account: Account | None = None
        """Of the volume, once there is one: where what no device is asked counts as well."""

    def count(self, op: int, length: int) -> None:
        """One request; `length` is 0 unless it is a READ or a WRITE."""
        self.requests[op] += 1
        if op == OP_READ:
            self.read_bytes += length
        else:
            self.written_bytes += length

    def aside(self, op: int, *, refused: bool = False) -> None:
        """A request was answered without its device."""
        self.errors += refused
        if self.account is not None:
            self.account.record(op, 0, refused, 0)

    def count_plain(self, reads: int, read_bytes: int, writes: int, written_bytes: int) -> None:
        """A batch of READs and WRITEs."""
        self.requests[OP_READ] += reads
        self.requests[OP_WRITE] += writes
        self.read_bytes += read_bytes
        self.written_bytes += written_bytes

    def served(self, counters: tuple[int, ...]) -> None:
        """What the request loop did (`native.LoopClient.counters`)."""
        reads, read_bytes, writes, written_bytes, flushes, unmaps, zeroes = counters
        self.count_plain(reads, read_bytes, writes, written_bytes)
        self.requests[OP_FLUSH] += flushes
        self.requests[OP_UNMAP] += unmaps
        self.requests[OP_WRITE_ZEROES] += zeroes

    def copied(self) -> "Stats":
        """As they are now."""
        now = copy.copy(self)
        now.requests = self.requests.copy()
        return now

    def by_name(self) -> dict[str, int]:
        """Requests by the name of their op."""
        return {name: self.requests[op] for op, name in _NAMES.items()}
