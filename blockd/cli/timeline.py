"""A timeline for `blockd volume log`: when a volume changed, and what can still be reached.

           -3h                  -2h                  -1h                 now
    ▃                ▂                            █▅                     ▂▂▁
    ◆──────┴─────────◆──────────┴─────────────────◆──┴─────────────────════┴
    sunday           monday                       before-upgrade
    ═ every write since 10:21:05Z

From the top: how long ago, written as in refs (`vol@-2h`); how much changed, more the higher; the
axis, with a mark for each snapshot and a double line where every single write can be restored; the
names of the snapshots, as far as there is room, newest first.

Pure; `draw` gives lines of text without colours.
"""

from typing import NamedTuple, TextIO

from volume.model import VersionLog
from volume.refs import format_time
from volume.retention import UNITS, format_duration

MIN_WIDTH = 40
NAME_ROWS = 2
MAX_LABEL = 24  # characters of a name; longer ones are cut
TICK_GAP = 13  # columns between ticks, at least; a label has 7 at most

_NS = 1_000_000_000
_MIN_SPAN_NS = 60 * _NS
_STEPS = [
    count * UNITS[unit]
    for unit, counts in {
        "s": (1, 2, 5, 10, 15, 30),
        "m": (1, 2, 5, 10, 15, 30),
        "h": (1, 2, 3, 6, 12),
        "d": (1, 2, 4),
        "w": (1, 2, 4, 8, 13, 26, 52),
    }.items()
    for count in counts
]


class _Glyphs(NamedTuple):
    levels: str
    """How much changed, from a little to most."""
    line: str
    window: str
    tick: str
    snapshot: str
    older: str
    """Where the axis begins when older versions were left out."""
    cut: str


_UNICODE = _Glyphs("▁▂▃▄▅▆▇█", "─", "═", "┴", "◆", "╌", "…")
_ASCII = _Glyphs(".:-=+*%#", "-", "=", "+", "o", "<", "~")


def shows_unicode(stream: TextIO) -> bool:
    """Whether block characters can be expected to look right on `stream`."""
    return stream.isatty() and (stream.encoding or "").lower().replace("-", "") == "utf8"


def draw(log: VersionLog, width: int, now_ns: int, *, unicode: bool = True) -> list[str]:
    """The timeline of `log` in at most `width` columns (40, if it is less); none without versions.

    The right end is `now_ns`. Without `unicode` it is ASCII only."""
    if not log.versions:
        return []
    drawing = _Drawing(log, max(width, MIN_WIDTH), now_ns, _UNICODE if unicode else _ASCII)
    rows = [drawing.ages(), drawing.changes(), drawing.axis(), *drawing.names()]
    return [row.rstrip() for row in rows] + drawing.legend()


class _Drawing:
    def __init__(self, log: VersionLog, width: int, now_ns: int, glyphs: _Glyphs) -> None:
        self._log = log
        self._width = width
        self._end = now_ns
        oldest = min(version.time_ns for version in log.versions)
        self._span = max(now_ns - oldest, _MIN_SPAN_NS)
        self._glyphs = glyphs
        self._unnamed = 0

    def ages(self) -> str:
        now = "now"
        row = [" "] * (self._width - len(now))
        free = len(row) - 1  # a label must end before it
        for column, seconds in self._ticks():
            label = f"-{format_duration(seconds)}"
            if column + len(label) <= free:
                row[column : column + len(label)] = label
                free = column - 1
        return "".join(row) + now

    def changes(self) -> str:
        changed = [0] * self._width
        for version in self._log.versions:
            changed[self._column(version.time_ns)] += version.bytes
        most = max(changed)
        levels = self._glyphs.levels
        row = [" "] * self._width
        for column, amount in enumerate(changed):
            if amount:  # by the square root: a hundredth of the most is still seen as a tenth
                row[column] = levels[round((amount / most) ** 0.5 * (len(levels) - 1))]
        return "".join(row)

    def axis(self) -> str:
        glyphs = self._glyphs
        row = [glyphs.line] * self._width
        if self._log.window_start_ns is not None:
            first = self._column(self._log.window_start_ns)
            row[first:] = glyphs.window * (self._width - first)
        row[-1] = glyphs.tick
        for column, _ in self._ticks():
            row[column] = glyphs.tick
        if self._log.more:
            row[0] = glyphs.older
        for column in self._snapshots():
            row[column] = glyphs.snapshot
        return "".join(row)

    def names(self) -> list[str]:
        """The names of snapshots, each beginning or ending below its mark."""
        rows = [[" "] * self._width for _ in range(NAME_ROWS)]
        for column, names in self._snapshots().items():
            label = names[0]
            if len(label) > MAX_LABEL:
                label = label[: MAX_LABEL - 1] + self._glyphs.cut
            if len(names) > 1:
                label += f" +{len(names) - 1}"
            start = column if column + len(label) <= self._width else column - len(label) + 1
            start = max(0, start)
            end = start + len(label)
            for row in rows:
                if all(cell == " " for cell in row[max(0, start - 1) : end + 1]):
                    row[start:end] = label
                    break
            else:
                self._unnamed += len(names)
        return [text for row in rows if (text := "".join(row)).strip()]

    def legend(self) -> list[str]:
        """What cannot be told by its look. After `names`."""
        lines = []
        if self._log.window_start_ns is not None:
            lines.append(f"{self._glyphs.window} every write since {self._clock_time()}")
        if self._unnamed:
            lines.append(f"{self._glyphs.snapshot} {self._unnamed} more without room for the name")
        return lines

    def _clock_time(self) -> str:
        """When the window starts, in UTC, to the second; without the date when that is today's."""
        assert self._log.window_start_ns is not None
        start, now = (
            format_time(time_ns // _NS * _NS) for time_ns in (self._log.window_start_ns, self._end)
        )
        day, _, clock = start.partition("T")
        return clock if now.startswith(day) else start

    def _snapshots(self) -> dict[int, list[str]]:
        """Columns that have snapshots, the newest first, with their names."""
        found: dict[int, list[str]] = {}
        for version in self._log.versions:  # newest first
            if version.snapshots:
                found.setdefault(self._column(version.time_ns), []).extend(version.snapshots)
        return found

    def _ticks(self) -> list[tuple[int, int]]:
        """(column, seconds ago) of each tick but the last, the youngest first."""
        most = self._width // TICK_GAP
        step = next((step for step in _STEPS if self._span <= most * step * _NS), 0)
        if not step:
            years = -(-self._span // (most * _STEPS[-1] * _NS))
            step = years * _STEPS[-1]
        ages = range(step, self._span // _NS + 1, step)
        return [(self._column(self._end - age * _NS), age) for age in ages]

    def _column(self, time_ns: int) -> int:
        """Times before the begin and after the end are drawn there."""
        since = time_ns - (self._end - self._span)
        return min(max(0, since * (self._width - 1) // self._span), self._width - 1)
