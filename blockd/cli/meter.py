"""Progress of something that takes long: a bar on a terminal, a line now and then in a log.

Everything goes to stderr: stdout may be the data itself. What is shown is how much is done, of how
much if that is known, at which rate, and how long the rest will take.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from blockd.sizes import format_size

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_EVERY_S = 10.0  # between two lines in a log
RATE_OVER_S = 8.0  # the rate shown is that of this long
SAMPLE_EVERY_S = 0.1


class Pace:
    """Bytes done and part of the whole, over time. `monotonic` gives seconds."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._started = monotonic()
        self._samples: deque[tuple[float, int, float]] = deque([(self._started, 0, 0.0)])
        self.done = 0
        self.total: int | None = None
        self.fraction: float | None = None
        """0 to 1; None when it cannot be known."""

    def update(self, done: int, total: int | None = None, fraction: float | None = None) -> None:
        """`done` bytes so far, of `total` if known; else `fraction` says how far that is."""
        self.done = done
        self.total = total
        self.fraction = min(1.0, done / total) if total else fraction
        now = self._monotonic()
        if now - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((now, done, self.fraction or 0.0))
            while len(self._samples) > 2 and now - self._samples[1][0] > RATE_OVER_S:
                self._samples.popleft()

    @property
    def elapsed_s(self) -> float:
        return self._monotonic() - self._started

    @property
    def rate(self) -> float:
        """Bytes a second, lately."""
        then, done, _ = self._samples[0]
        passed = self._monotonic() - then
        return (self.done - done) / passed if passed > 0 else 0.0

    @property
    def left_s(self) -> float | None:
        """Until the end at the present pace; None when there is no telling."""
        then, _, before = self._samples[0]
        passed = self._monotonic() - then
        if self.fraction is None or self.fraction <= before or passed <= 0:
            return None
        return (1.0 - self.fraction) * passed / (self.fraction - before)

    def text(self) -> str:
        """As "1.5 GiB of 10 GiB, 120 MiB/s, 1:13 left"."""
        done = format_size(self.done)
        if self.total is not None:
            done += f" of {format_size(self.total)}"
        elif self.fraction is not None:
            done += f" ({self.fraction:.0%})"
        parts = [done, f"{format_size(int(self.rate))}/s"]
        left_s = self.left_s
        if left_s is not None:
            parts.append(f"{duration(left_s)} left")
        return ", ".join(parts)

    def summary(self) -> str:
        """As "10 GiB in 1:25, 120 MiB/s", over the whole time."""
        elapsed_s = self.elapsed_s
        rate = int(self.done / elapsed_s) if elapsed_s > 0 else 0
        return f"{format_size(self.done)} in {duration(elapsed_s)}, {format_size(rate)}/s"


def duration(seconds: float) -> str:
    """As "0.4 s", "12 s", "1:13", "2:01:13"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class Meter:
    """Shows a Pace while the block runs; ends with a line when it ended well."""

    def __init__(
        self,
        what: str,
        stream: IO[str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`what` is shown in front, as "send vm1@monday"."""
        self._what = what
        self._stream = stream or sys.stderr
        self._monotonic = monotonic
        self._bar: Progress | None = None
        self.pace = Pace(monotonic)
        self._said = monotonic()

    def __enter__(self) -> "Meter":
        if self._stream.isatty():
            self._bar = _bar(self._stream)
            self._bar.start()
            self._task = self._bar.add_task(self._what, total=None, text="")
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is None:
            self._line(self.pace.summary())

    def update(self, done: int, total: int | None = None, fraction: float | None = None) -> None:
        """As `Pace.update`."""
        pace = self.pace
        pace.update(done, total, fraction)
        if self._bar is not None:
            known = pace.fraction is not None
            options: dict[str, Any] = {"total": 1.0, "completed": pace.fraction} if known else {}
            self._bar.update(self._task, text=pace.text(), **options)
        elif self._monotonic() - self._said >= LINE_EVERY_S:
            self._said = self._monotonic()
            self._line(pace.text())

    def _line(self, text: str) -> None:
        print(f"{self._what}: {text}", file=self._stream, flush=True)


def _bar(stream: IO[str]) -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(file=stream),
        transient=True,
    )
