"""What the parts share: their settings, tables, percentiles, and fio against a daemon."""

import json
import math
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.daemon import Daemon

FIO_STOP_S = 60.0
QUIET = ("--log-level", "warning")


@dataclass(frozen=True, slots=True)
class Settings:
    folder: Path
    """Empty, removed afterwards."""
    quick: bool
    """Small sizes: the figures mean nothing, the script is tried."""
    say: Callable[[str], None]
    """A line of progress."""

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` (0 to 1) of all do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown; all columns but the first to the right."""
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


def met(value: bool) -> str:
    return "yes" if value else "**no**"


def size(count: float) -> str:
    """Bytes for a table: in MiB."""
    return f"{count / 2**20:,.1f}"


def daemon(data: Path, *options: str) -> Daemon:
    """A daemon on that directory, started."""
    made = Daemon(data, (*QUIET, *options))
    made.start()
    return made


@dataclass(frozen=True, slots=True)
class FioResult:
    iops: float
    p50_us: float
    p99_us: float
    errors: int


class Fio:
    """One fio job against an export; in the background between `with` and its end."""

    def __init__(
        self,
        uri: str,
        folder: Path,
        rw: str,
        depth: int,
        *,
        seconds: int,
        extra: Sequence[str] = (),
    ) -> None:
        self._rw = rw
        self._command = [
            *("fio", "--name=job", "--ioengine=nbd", f"--uri={uri}", f"--rw={rw}", "--bs=4k"),
            *(f"--iodepth={depth}", "--norandommap", "--randrepeat=0", "--time_based"),
            *(f"--runtime={seconds}", "--output-format=json", f"--aux-path={folder}", *extra),
        ]
        self._process: subprocess.Popen[str] | None = None
        self.result: FioResult | None = None

    def run(self) -> FioResult:
        """To its end."""
        done = subprocess.run(self._command, check=True, capture_output=True, text=True)
        return self._parsed(done.stdout)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        died = self._process.poll() is not None
        self._process.terminate()  # it ends its job and reports
        output = self._process.communicate(timeout=FIO_STOP_S)[0]
        if died and exc[0] is None:
            raise SystemExit(f"fio ended too early:\n{output}")
        if exc[0] is None:
            self.result = self._parsed(output)

    def _parsed(self, output: str) -> FioResult:
        # fio prints notes around its JSON.
        job: dict[str, Any]
        job = json.loads(output[output.index("{") : output.rindex("}") + 1])["jobs"][0]
        side = job["read" if "read" in self._rw else "write"]
        latency = side["clat_ns"].get("percentile", {})
        return FioResult(
            side["iops"],
            latency.get("50.000000", 0) / 1e3,
            latency.get("99.000000", 0) / 1e3,
            job["error"] + job.get("total_err", 0),
        )
