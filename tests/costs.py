"""What each file of the tests costs, in seconds of CPU: its own, and those of all that it started.

    python -m pytest -p tests.costs ...

ends with the files that cost most. How long a test takes says little on a machine with other work,
and what a daemon takes is nobody's in `--durations`. A file's share goes from where the one before
it ended to the end of its last test, whose fixtures are gone by then. Processes count once they
have ended and were waited for, those that `tests.forks` has begun among them.
"""

import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests import forks

ROOT = Path(__file__).parents[1]
SHOWN = 20
COLLECTING = "(imports and collection)"
_TICKS = os.sysconf("SC_CLK_TCK")
_TIMES = slice(11, 15)  # of /proc/PID/stat behind the name: utime, stime, cutime, cstime


class Costs:
    """Of the files that this process has run, and of what its workers tell."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._before = 0.0

    def spent_on(self, name: str) -> None:
        """All that was not spent on something else before."""
        now = cpu_s()
        self.seconds[name] += now - self._before
        self._before = now

    # -- hooks of pytest

    def pytest_collection_finish(self) -> None:
        self.spent_on(COLLECTING)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        result = yield
        if nextitem is None or nextitem.path != item.path:
            self.spent_on(str(item.path.relative_to(ROOT)))
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        told = getattr(session.config, "workeroutput", None)
        if told is not None:
            told["costs"] = dict(self.seconds)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        for name, seconds in getattr(node, "workeroutput", {}).get("costs", {}).items():
            self.seconds[name] += seconds

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        total = sum(self.seconds.values())
        terminalreporter.section(f"{total:.0f} s of CPU, most of them in")
        for name in sorted(self.seconds, key=self.seconds.__getitem__, reverse=True)[:SHOWN]:
            terminalreporter.write_line(f"{self.seconds[name]:8.1f} s  {name}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Costs(), "costs of files")


def cpu_s() -> float:
    """What this process has taken so far, and all that has ended of what it began."""
    spent = os.times()
    ours = spent.user + spent.system + spent.children_user + spent.children_system
    pid = forks.shared.pid
    return ours if pid is None else ours + _with_children_s(pid)


def _with_children_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[_TIMES])) / _TICKS
