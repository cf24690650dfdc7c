"""I1: a read returns the last acked write or a concurrent one, and never goes back.

Each sector is a register. Its writes are told apart by their stamps, so whether the operations on
it have a legal order can be decided by looking at each value once: take the operations that show a
value was there (its write, its reads). The value was there at some time before the first of them
ended (`seen`), and at some time after the last of them began (`last`). Two values u and v are a
violation exactly if

    u.seen < v.last  and  v.seen < u.last

for then u was there before v and v before u, and each was written only once. (Gibbons and Korach,
Testing Shared Memories, 1997: zones of reads with unique values.)

A value that is known to be gone is kept until no operation in flight can have seen it. So a sector
has one value most of the time, and the sectors of one write share one state. Zeros are not unique:
a read of zeros is a proof only if there is a single write of zeros that it can be of, and wrong if
there is none.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from tests.check.log import INFINITY, INITIAL, Change


class Value(NamedTuple):
    """What a sector may hold, and since when that is known."""

    change: Change
    seen: int
    """The first operation that proves it ended then."""
    last: int
    """The last operation that proves it began then."""
    gone: int = INFINITY
    """What begins after this cannot see it."""


State = tuple[Value, ...]
_NEW: Final[State] = (Value(INITIAL, 0, 0),)


class Registers:
    """The sectors of one volume."""

    def __init__(self) -> None:
        self._states: dict[int, State] = {}
        self._default = _NEW
        self.open_zeros: dict[int, Change] = {}
        """By operation: writes of zeros that have no end yet and may show."""

    def acked(self, change: Change, oldest: int) -> None:
        """A change has been acked. `oldest`: begin of the oldest operation that is in flight."""
        states, default = self._states, self._default
        before: State | None = None
        after = default
        for sector in range(change.first, change.first + change.count):
            state = states.get(sector, default)
            if state is not before:  # neighbours mostly share their state
                before = state
                after = _acked(state, change, oldest)
            states[sector] = after

    def read(
        self, change: Change, sectors: range, begin: int, end: int, oldest: int
    ) -> Iterator[tuple[int, Value | None]]:
        """A read saw `change` in these sectors. Wrong ones: sector, and the value that was there
        instead, if that is known still."""
        states, default = self._states, self._default
        before: State | None = None
        after, wrong = default, False
        instead: Value | None = None
        for sector in sectors:
            state = states.get(sector, default)
            if state is not before:
                before = state
                after, instead, wrong = _seen(state, change, begin, end, oldest)
            states[sector] = after
            if wrong:
                yield sector, instead

    def read_zeros(
        self, sectors: range, begin: int, end: int, oldest: int, *, quiet: bool = False
    ) -> Iterator[tuple[int, Value | None]]:
        """The same for zeros. `quiet`: nobody was writing, so that is what there is."""
        states, default = self._states, self._default
        nearby = [
            change
            for change in self.open_zeros.values()
            if change.first < sectors.stop and sectors.start < change.first + change.count
        ]
        before: State | None = None
        after, wrong = default, False
        instead: Value | None = None
        for sector in sectors:
            state = states.get(sector)
            if state is None and not nearby and default is _NEW:
                continue  # never written
            state = state or default
            if nearby or state is not before:
                before = state
                may_be = [change for change in nearby if change.covers(sector, 1)]
                after, instead, wrong = _seen_zeros(state, may_be, begin, end, oldest)
                if quiet and not wrong:
                    after = (Value(INITIAL, end, begin),)
            states[sector] = after
            if wrong:
                yield sector, instead

    def power_cut(self, at: int, seen: int) -> None:
        """Forget what there was before the cut `at`. All that was `seen` then are zeros, and what
        `settle` says."""
        self._states = {}
        self._default = (Value(INITIAL, at, seen),)
        self.open_zeros = {}

    def settle(self, change: Change, sectors: range, at: int, seen: int) -> None:
        """After a power cut `at` these sectors were `seen` to be of `change`."""
        self._states.update(dict.fromkeys(sectors, (Value(change, at, seen),)))


def _acked(state: State, change: Change, oldest: int) -> State:
    if any(value.change is change for value in state):
        return state  # a read has seen it before its reply came
    end = change.end
    kept = [
        value._replace(gone=end) if value.seen < change.begin and end < value.gone else value
        for value in state
    ]
    return (*(value for value in kept if value.gone >= oldest), Value(change, end, change.begin))


def _seen(
    state: State, change: Change, begin: int, end: int, oldest: int
) -> tuple[State, Value | None, bool]:
    """(the new state, the value that contradicts, whether the read is wrong)."""
    own = next((value for value in state if value.change is change), None)
    if own is None:
        if change.end < INFINITY:  # acked, and gone since
            return (Value(change, end, begin),), state[-1], True
        own = Value(change, min(end, change.crashed), change.begin)
    seen, last, gone = min(own.seen, end), max(own.last, begin), own.gone
    contradicting = None
    kept = []
    for value in state:
        if value.change is change:
            continue
        if value.seen < last:
            if seen < value.last:
                contradicting = value
            if seen < value.gone:
                value = value._replace(gone=seen)
        if seen < value.last:
            gone = min(gone, value.seen)
        if value.gone >= oldest:
            kept.append(value)
    if contradicting is not None or gone < begin:
        return (Value(change, end, begin),), contradicting or (kept or state)[-1], True
    return (*kept, Value(change, seen, last, gone)), None, False


def _seen_zeros(
    state: State, may_be: list[Change], begin: int, end: int, oldest: int
) -> tuple[State, Value | None, bool]:
    known = [value.change for value in state if value.change.zero]
    candidates = known + [change for change in may_be if change not in known]
    outcomes = [_seen(state, change, begin, end, oldest) for change in candidates]
    legal = [after for after, _, wrong in outcomes if not wrong]
    if not legal:
        return (Value(INITIAL, end, begin),), state[-1], True
    return (legal[0] if len(legal) == 1 else state), None, False
