"""Crash states of a short trace, each with a name: what a cut may leave of the last operations.

At each point of a trace the last WINDOW unsynced operations are taken (a write, a truncation, a
creation, rename, removal or mkdir that no sync covers); what is older and unsynced stays, or goes,
as a whole. The states of a point are

    subsets     each subset of the window that the file systems' rules allow: all 2^8 when eight
                writes are unsynced
    ages        each of these without the older operations, where there are any
    tears       the last write that a subset keeps is torn: of its sectors only the first, all but
                the first, one half, the other half, every other one; or it is whole, and the file
                has the size of an earlier page of it
    draws       DRAWS states with every name, size and sector drawn by itself from a seed

A state's name is "point.kind.window[.tear]", such as "57.k.e3" or "57.k.e3.half": it depends on the
trace only, so that it can be replayed whichever sample it was found in. Different names may well be
the same disk; `Window.build` tells by its digest.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.sim.crash import CrashState
from tests.sim.image import Image
from tests.sim.trace import Mark, Trace, Write

WINDOW = 8
DRAWS = 8

TEARS: dict[str, Callable[[Sequence[int]], Sequence[int]]] = {
    "first": lambda sectors: sectors[1:],
    "rest": lambda sectors: sectors[:1],
    "front": lambda sectors: sectors[len(sectors) // 2 :],
    "back": lambda sectors: sectors[: len(sectors) // 2],
    "odd": lambda sectors: sectors[::2],
}
"""How a write is torn -> those of its sectors that are lost."""
SHORT = "short"


@dataclass(frozen=True, slots=True, order=True)
class StateName:
    """One crash state of one trace."""

    point: int
    """Operations that had happened when the power went."""
    kind: str
    """"k": older unsynced operations are kept, "l": they are lost, "d": drawn by a seed."""
    window: int
    """Bit i: the i-th operation of the window survived; the seed of a drawn one."""
    tear: str = ""

    def __str__(self) -> str:
        return f"{self.point}.{self.kind}.{self.window:x}" + (f".{self.tear}" if self.tear else "")

    @staticmethod
    def parse(text: str) -> "StateName":
        """ValueError for what is no name of a state."""
        point, kind, window, *tear = text.split(".")
        found = StateName(int(point), kind, int(window, 16), *tear)
        if kind not in ("k", "l", "d") or found.tear not in ("", SHORT, *TEARS):
            raise ValueError(f"{text}: no crash state has such a name")
        return found


def cut_points(trace: Trace, said: tuple[type, ...]) -> list[int]:
    """Points of a trace at which the disk, or what has been promised, differs from the point
    before: not those right before a mark of type `said`, which only tells what was promised."""
    ops = trace.ops
    return [
        point
        for point in range(len(ops) + 1)
        if point == len(ops)
        or not (isinstance(op := ops[point], Mark) and isinstance(op.value, said))
    ]


class Window:
    """Walks a trace; `move` to ascending points only."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._state = CrashState(trace)
        self._recent: list[int] = []
        self._older: list[int] = []

    def move(self, point: int) -> None:
        """Go on to `point`."""
        assert self._state.point <= point <= len(self._trace.ops)
        for op in self._trace.ops[self._state.point : point]:
            self._state.apply(op)
        pending = self._state.pending()
        self._recent, self._older = pending[-WINDOW:], pending[:-WINDOW]

    def names(self) -> Iterator[StateName]:
        """Every state of this point, in a fixed order."""
        point = self._state.point
        tears = [*TEARS, SHORT]
        for kind in ("k", "l") if self._older else ("k",):
            for window in range(1 << len(self._recent)):
                kept = self._kept(kind, window)
                if self._state.names.closed(kept) != kept & set(self._state.names.pending):
                    continue
                yield StateName(point, kind, window)
                if self._last_write(kept) is not None:
                    yield from (StateName(point, kind, window, tear) for tear in tears)
        if self._recent:
            yield from (StateName(point, "d", seed) for seed in range(DRAWS))

    def build(self, name: StateName) -> Image:
        """The disk of a state of this point."""
        state = self._state
        assert name.point == state.point
        if name.kind == "d":
            return state.drawn(str(name), random.Random(f"{name.point}:{name.window}"))
        kept = self._kept(name.kind, name.window)
        last = self._last_write(kept)
        if not name.tear or last is None:
            return state.image(str(name), kept)
        if name.tear == SHORT:
            return state.image(str(name), kept, short={last})
        lost = TEARS[name.tear](state.sectors_of(last))
        return state.image(str(name), kept, {(last, sector) for sector in lost})

    def _kept(self, kind: str, window: int) -> set[int]:
        kept = {p for bit, p in enumerate(self._recent) if window >> bit & 1}
        return kept.union(self._older) if kind == "k" else kept

    def _last_write(self, kept: set[int]) -> int | None:
        """The last write of the window that is kept."""
        ops = self._trace.ops
        writes = (p for p in reversed(self._recent) if p in kept and isinstance(ops[p], Write))
        return next(writes, None)


def all_names(trace: Trace, points: Iterable[int]) -> list[StateName]:
    """Every state of these ascending points."""
    window = Window(trace)
    names: list[StateName] = []
    for point in points:
        window.move(point)
        names += window.names()
    return names


def images(trace: Trace, names: Iterable[StateName]) -> Iterator[tuple[StateName, Image]]:
    """The disks of these states, ascending by point."""
    window, at = Window(trace), -1
    for name in sorted(names):
        if name.point != at:
            at = name.point
            window.move(at)
        yield name, window.build(name)
