"""Interval scan: is there one point that all sectors of a state can be from?

Each sector of a state tells during which half-open intervals of time it looked so: since its write
began, until the next write of it had ended. A *cut* is a point of time in all of them. What time is
is the caller's: lines of a history, or positions in a volume's order.
"""

import itertools
from collections.abc import Iterable, Sequence

Span = tuple[int, int]
"""Half-open: [start, end)."""


def most_agreed(sectors: Iterable[Sequence[Span]], at_least: int, at_most: int) -> tuple[int, int]:
    """(how many sectors, point): the newest point within [at_least, at_most] that most sectors can
    be from. The spans of one sector do not overlap each other."""
    agreeing, points = agreed(sectors, at_least, at_most)
    return agreeing, points[0]


def agreed(
    sectors: Iterable[Sequence[Span]], at_least: int, at_most: int, edges: Iterable[int] = ()
) -> tuple[int, list[int]]:
    """The same with all such points, newest first: one for each stretch of time in which no span
    begins or ends, and none of `edges` is."""
    steps = {edge: 0 for edge in edges if at_least < edge <= at_most}
    steps[at_least] = 0
    for spans in sectors:
        for start, end in spans:
            start = max(start, at_least)
            if start < end and start <= at_most:
                steps[start] = steps.get(start, 0) + 1
                steps[end] = steps.get(end, 0) - 1
    stretches = [*sorted(point for point in steps if point <= at_most), at_most + 1]
    agreeing, best = -1, [at_least]
    level = 0
    for start, end in itertools.pairwise(stretches):
        level += steps[start]
        if level > agreeing:
            agreeing, best = level, []
        if level == agreeing:
            best.append(end - 1)
    return agreeing, best[::-1]


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same points as spans that do not overlap, in order."""
    found: list[Span] = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found
