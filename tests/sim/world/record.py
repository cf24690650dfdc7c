"""A long run, kept in a file range by range, so that it can be stopped, continued and summed.

A line for each range of seeds that all worlds of were lived, as JSON; it is there whole or not at
all. A seed means the same for one commit only, and for one kind of world: ranges of others are in
the file as well, and do not count for these. What was under way when a run ended is lived again.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Range:
    """`what`: of worlds, as settings tell it. Seeds are `first` and the `count` - 1 after it."""

    commit: str
    what: str
    first: int
    count: int
    cpu_s: float
    failures: list[dict[str, object]] = field(default_factory=list)
    """Seed, error, and the command that lives it again."""
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        return range(self.first, self.first + self.count)


class Record:
    """`path` need not be there yet."""

    def __init__(self, path: Path, commit: str, what: str) -> None:
        self.path = path
        self._commit = commit
        self._what = what

    def ranges(self) -> list[Range]:
        """Those of this commit and this kind."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().split("\n")[:-1]  # without one that was begun only
        found = [Range(**json.loads(line)) for line in lines]
        return [each for each in found if (each.commit, each.what) == (self._commit, self._what)]

    def left(self, first: int, count: int, length: int) -> Iterator[range]:
        """Of `count` seeds from `first` on, what is not in the file, `length` at a time at most."""
        done = {seed for each in self.ranges() for seed in each.seeds}
        begin, end = first, first + count
        while begin < end:
            if begin in done:
                begin += 1
                continue
            stop = begin + 1
            while stop < min(end, begin + length) and stop not in done:
                stop += 1
            yield range(begin, stop)
            begin = stop

    def add(
        self,
        seeds: range,
        cpu_s: float,
        failures: list[dict[str, object]],
        counts: Mapping[str, int],
    ) -> None:
        """All worlds of `seeds` were lived."""
        row = Range(
            *(self._commit, self._what, seeds.start, len(seeds), round(cpu_s, 1)),
            *(failures, dict(sorted(counts.items()))),
        )
        with self.path.open("ab+") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            if end and file.read(1) != b"\n":  # a run ended in the middle of a line
                file.seek(0)
                whole = file.read().rfind(b"\n") + 1
                file.truncate(whole)
            file.write(json.dumps(asdict(row)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def summary(self) -> str:
        """Over all ranges."""
        ranges = self.ranges()
        seeds = {seed for each in ranges for seed in each.seeds}
        failed = sorted({str(each["seed"]) for row in ranges for each in row.failures}, key=int)
        cpu_s = sum(each.cpu_s for each in ranges)
        counts: Counter[str] = Counter()
        for each in ranges:
            counts.update(each.counts)
        told = ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))
        per_world = 1000 * cpu_s / max(1, sum(each.count for each in ranges))
        return (
            f"{self.path}: commit {self._commit}, {self._what}: {len(seeds)} worlds, "
            f"{len(failed)} failed ({', '.join(failed) or 'none'}), {per_world:.0f} ms of CPU each"
            + (f"\n{told}" if told else "")
        )
