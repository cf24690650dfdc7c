"""What the daemon takes of the machine, over its lives, and whether that grows.

Every sample is of /proc/PID: anonymous resident memory (what the process has allocated; the page
cache and mapped files are the kernel's to take back), open files, threads. Of each life that lasted
long enough, the samples after its warm-up are fitted by a straight line. The rule:

    memory   the line rises by no more than GROWTH_BYTES over the whole life, and no sample is
             above CAP_BYTES
    files    by no more than GROWTH_FILES, and no sample is above CAP_FILES
    threads  by no more than GROWTH_THREADS

The warm-up is a third of the life, at most WARM_UP_S: caches fill up to their budgets in it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

MiB = 1 << 20
WARM_UP_S = 300.0
SHORTEST_S = (
    600.0  # caches were seen to fill for 3 to 5 minutes; of shorter lives only the caps hold
)
GROWTH_BYTES = 16 * MiB
CAP_BYTES = 512 * MiB
GROWTH_FILES = 8
CAP_FILES = 256
GROWTH_THREADS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """Time in seconds of any clock."""

    at_s: float
    anonymous_bytes: int
    files: int
    threads: int


def sample(pid: int, at_s: float) -> Sample:
    """Raises OSError when the process is gone."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return Sample(
        at_s,
        int(fields["RssAnon"].split()[0]) << 10,
        len(os.listdir(f"/proc/{pid}/fd")),
        int(fields["Threads"]),
    )


def rise(points: list[tuple[float, float]]) -> float:
    """How much the straight line through the points (least squares) rises from first to last."""
    if len(points) < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    if not spread:
        return 0.0
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return slope * (points[-1][0] - points[0][0])


@dataclass(frozen=True, slots=True)
class Life:
    """Samples of one process, from its start to its end."""

    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        return self.samples[-1].at_s - self.samples[0].at_s if self.samples else 0.0

    def settled(self) -> list[Sample]:
        """Those after the warm-up; none of a short life."""
        if self.seconds < SHORTEST_S:
            return []
        begin = self.samples[0].at_s + min(self.seconds / 3, WARM_UP_S)
        return [one for one in self.samples if one.at_s >= begin]

    def rises(self) -> tuple[float, float, float]:
        """Of memory (bytes), files and threads."""
        settled = self.settled()
        return (
            rise([(one.at_s, one.anonymous_bytes) for one in settled]),
            rise([(one.at_s, one.files) for one in settled]),
            rise([(one.at_s, one.threads) for one in settled]),
        )

    def complaints(self) -> list[str]:
        """What breaks the rule."""
        found = []
        memory, files, threads = self.rises()
        if memory > GROWTH_BYTES:
            found.append(f"memory rises by {memory / MiB:.1f} MiB in {self.seconds:.0f} s")
        if files > GROWTH_FILES:
            found.append(f"open files rise by {files:.1f} in {self.seconds:.0f} s")
        if threads > GROWTH_THREADS:
            found.append(f"threads rise by {threads:.1f} in {self.seconds:.0f} s")
        most = max((one.anonymous_bytes for one in self.samples), default=0)
        if most > CAP_BYTES:
            found.append(f"memory reached {most / MiB:.0f} MiB")
        if any(one.files > CAP_FILES for one in self.samples):
            found.append(f"open files reached {max(one.files for one in self.samples)}")
        return found
