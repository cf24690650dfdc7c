"""What a primary wrote lately, and when: so that it can be said by how many bytes, and since when,
a member is behind that has the records up to some seq.

Batches are put together to stretches of SPAN_S, and once there are MOST of them to longer ones, so
memory is bounded however long a member is away. Within a stretch records count as equally long and
equally spaced. What was written before it began, or could not be seen, is not known.
"""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

SPAN_S: Final = 1.0
MOST: Final = 512  # stretches, of 100 bytes or so each


@dataclass(slots=True)
class _Stretch:
    """Records behind `before`, up to `last`."""

    before: int
    last: int
    bytes: int
    since: float
    """When the first of its batches was written, in seconds of the caller's clock..."""
    until: float
    """...and the last."""


class Trail:
    def __init__(self, seq: int) -> None:
        self.seq = seq
        """Of the newest record that is known of."""
        self._span_s = SPAN_S
        self._stretches: list[_Stretch] = []

    def add(self, last: int, length: int, now: float) -> None:
        """Records up to `last`, of so many bytes, right behind what is there."""
        newest = self._stretches[-1] if self._stretches else None
        if newest is not None and now - newest.since <= self._span_s:
            newest.last, newest.until = last, now
            newest.bytes += length
        else:
            self._stretches.append(_Stretch(self.seq, last, length, now, now))
            if len(self._stretches) > MOST:
                self._thin()
        self.seq = last

    def lost(self, seq: int) -> None:
        """It is not known what was written up to `seq`."""
        self._stretches.clear()
        self.seq = seq

    def behind(self, seq: int, now: float) -> tuple[int, float] | None:
        """For who has records up to `seq`: bytes of those that follow, and how long ago the first
        of them was written; None: not known."""
        if seq >= self.seq:
            return 0, 0.0
        at = bisect_right(self._stretches, seq, key=lambda each: each.last)
        if at == len(self._stretches) or seq < self._stretches[at].before:
            return None
        found = self._stretches[at]
        share = (seq - found.before) / (found.last - found.before)
        length = sum(each.bytes for each in self._stretches[at + 1 :])
        began = found.since + share * (found.until - found.since)
        return length + round((1 - share) * found.bytes), max(0.0, now - began)

    def rate(self, seconds: float, now: float) -> float:
        """Bytes a second that were written in about the last `seconds`."""
        recent = [each for each in self._stretches if each.until >= now - seconds]
        if not recent:
            return 0.0
        return sum(each.bytes for each in recent) / max(seconds, now - recent[0].since)

    def _thin(self) -> None:
        """Of two stretches one."""
        self._span_s *= 2
        pairs = zip(self._stretches[::2], self._stretches[1::2], strict=False)
        odd = self._stretches[len(self._stretches) // 2 * 2 :]
        self._stretches = [
            _Stretch(one.before, two.last, one.bytes + two.bytes, one.since, two.until)
            for one, two in pairs
        ] + odd
