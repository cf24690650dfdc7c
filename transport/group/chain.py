"""A chain: which records of a volume a member has, told by the epochs that they were written in.

Records of a volume are numbered by seq, without a gap, over all epochs. One primary writes in an
epoch, so two members that both have record (epoch, seq) have the same record, and the same ones
before it. Hence a few numbers say it all: for each epoch, the seq of its last record.

    ((1, 100), (2, 150))      records 1-100 of epoch 1, 101-150 of epoch 2

A member whose last records nobody acknowledged may have others than the rest: ((1, 120),) parts
from the chain above at 100.

An epoch that was opened and has no record yet is told too: ((1, 100), (2, 100)). It says that epoch
1 ended at 100 and that somebody may have read it so; ((1, 120),) is older, although longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_EPOCHS: Final = 64
"""Told of a chain: its newest. A member that has fewer in common with a chain gets a stream."""


class BadChain(ValueError):
    """What a peer says of a chain cannot be."""


@dataclass(frozen=True, slots=True)
class Chain:
    """`ends`: (epoch, seq of its last record); epochs rise, seqs do not fall.

    `start`: records up to this seq are there, of epochs that are not told any more."""

    ends: tuple[tuple[int, int], ...] = ()
    start: int = 0

    def __post_init__(self) -> None:
        """Raises BadChain."""
        if len(self.ends) > MAX_EPOCHS:
            raise BadChain(f"{len(self.ends)} epochs in a chain; {MAX_EPOCHS} at most are told")
        epoch, seq = 0, self.start
        if seq < 0:
            raise BadChain(f"a chain begins behind record {seq}")
        for next_epoch, next_seq in self.ends:
            if next_epoch <= epoch or next_seq < seq:
                raise BadChain(
                    f"epoch {next_epoch} ends at {next_seq}, but epoch {epoch} before it at {seq}"
                )
            epoch, seq = next_epoch, next_seq

    @property
    def end(self) -> tuple[int, int]:
        """(epoch, seq) of the newest record; (0, start) where none is told. The greater one of two
        is the newer state: what was acknowledged in its epoch is in it."""
        return self.ends[-1] if self.ends else (0, self.start)

    @property
    def seq(self) -> int:
        return self.end[1]

    def extended(self, epoch: int, seq: int) -> "Chain":
        """With records up to `seq` of `epoch`, the newest or a later one. Raises BadChain."""
        if (epoch, seq) < self.end or seq < self.seq:
            raise BadChain(f"record {seq} of epoch {epoch} is not behind {self.end}")
        ends = self.ends
        if ends and ends[-1][0] == epoch:
            ends = ends[:-1]
        return _bounded((*ends, (epoch, seq)), self.start)

    def cut(self, epoch: int, seq: int) -> "Chain":
        """Without what is behind record `seq`, which is of `epoch`. Raises BadChain when it has
        none such."""
        ends = tuple(end for end in self.ends if end[0] < epoch)
        last = dict(self.ends).get(epoch)
        if last is None or not (ends[-1][1] if ends else self.start) <= seq <= last:
            raise BadChain(f"there is no record {seq} of epoch {epoch} in {self.ends}")
        return Chain((*ends, (epoch, seq)), self.start)


def common(one: Chain, other: Chain) -> tuple[int, int] | None:
    """(epoch, seq) of the last point that both have gone through; (0, 0) when that is the empty
    volume. None when it is older than what is told: nothing can be said."""
    others = dict(other.ends)
    shared = [(epoch, min(seq, others[epoch])) for epoch, seq in one.ends if epoch in others]
    if shared:
        return shared[-1]
    return (0, 0) if one.start == other.start == 0 else None


def _bounded(ends: Sequence[tuple[int, int]], start: int) -> Chain:
    while len(ends) > MAX_EPOCHS:
        start = ends[0][1]
        ends = ends[1:]
    return Chain(tuple(ends), start)
