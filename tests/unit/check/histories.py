"""Short histories for tests: what was done, and what the checker makes of it."""

from typing import Any

from tests.check.events import Header
from tests.check.judge import Judge, Report
from tests.check.stamps import Run

SECTORS = 32


class Script:
    """Collects events; `w` and the like begin and end at once, `begin` and `end` are apart."""

    def __init__(self) -> None:
        self.lines: list[list[Any]] = []
        self._number = 0

    def begin(self, kind: str, first: int = 0, count: int = 1) -> int:
        self._number += 1
        self.lines.append(["b", self._number, 1, kind, first, count])
        return self._number

    def end(self, operation: int, error: int = 0) -> None:
        self.lines.append(["e", operation, error])

    def saw(self, operation: int, *runs: Run) -> None:
        self.lines.append(["e", operation, 0, list(runs)])

    def write(self, first: int = 0, count: int = 1, kind: str = "write") -> int:
        operation = self.begin(kind, first, count)
        self.end(operation)
        return operation

    def flush(self) -> None:
        self.end(self.begin("flush", 0, 0))

    def read(self, first: int, *runs: Run) -> None:
        operation = self.begin("read", first, sum(int(count) for count, _ in runs))
        self.saw(operation, *runs)

    def name(self, name: str) -> None:
        self.lines += [["m", name], ["n", name, 0]]

    def crash(self, kind: str = "kill") -> None:
        self.lines += [["crash", kind], ["restart"]]

    def state(self, *runs: Run, of: str | None = None) -> None:
        """The runs at the start of the volume; the rest is zeros."""
        rest = SECTORS - sum(int(count) for count, _ in runs)
        self.lines.append(["state", of, [*runs, [rest, 0]]])

    def report(self) -> Report:
        judge = Judge(Header(1, "demo", SECTORS * 512))
        judge.take(self.lines)
        return judge.report

    def found(self) -> list[tuple[str, int, int]]:
        """(invariant, first sector, sectors) of each finding."""
        report = self.report()
        assert len(report.findings) == report.found
        return [(one.invariant, one.first, one.count) for one in report.findings]
