"""Records that a primary keeps in memory until every member in step has them.

They come from the tap, in order and without a gap; those that nobody needs any more go.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """Records that the tap gave at once, `first` to `last`, in `data`."""

    first: int
    last: int
    data: bytes


class Kept:
    """`taken`: seq behind which the tap began."""

    def __init__(self, taken: int) -> None:
        self.taken = taken
        """Seq of the newest record that came from the tap."""
        self.bytes = 0
        self._batches: deque[Batch] = deque()

    @property
    def first(self) -> int:
        """Seq from which on records are here, or will come."""
        return self._batches[0].first if self._batches else self.taken + 1

    def add(self, batch: Batch) -> None:
        assert batch.first == self.taken + 1, (batch.first, self.taken)
        self.taken = batch.last
        self._batches.append(batch)
        self.bytes += len(batch.data)

    def resume(self, taken: int, batches: list[Batch]) -> None:
        """Another one has gone on from here (native/src/sender.h): it has taken records up to
        `taken`, of which these are needed yet. Where they do not begin right behind what is here
        nobody needs that any more, nor what is between."""
        first = batches[0].first if batches else taken + 1
        if first != self.taken + 1:
            assert first > self.taken + 1, (first, self.taken)
            self.lost(first - 1)
        for batch in batches:
            self.add(batch)
        assert self.taken == taken, (self.taken, taken)

    def lost(self, seq: int) -> None:
        """The tap has begun again behind `seq`."""
        self._batches.clear()
        self.bytes = 0
        self.taken = seq

    def trim(self, needs: Iterable[int]) -> None:
        """Let go of what is before all of these seqs."""
        low = min(needs, default=self.taken + 1)
        while self._batches and self._batches[0].last < low:
            self.bytes -= len(self._batches.popleft().data)

    def behind(self, seq: int, max_bytes: int, max_count: int) -> list[Batch]:
        """The first of those with records behind `seq`: at least one, if there is any."""
        return list(self._some(seq, max_bytes, max_count))

    def _some(self, seq: int, max_bytes: int, max_count: int) -> Iterator[Batch]:
        length = count = 0
        for batch in self._batches:
            if batch.last > seq:
                length += len(batch.data)
                count += 1
                if count > 1 and (length > max_bytes or count > max_count):
                    return
                yield batch
