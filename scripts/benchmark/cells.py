"""What is measured: one cell is one fio job, one sample is one run of it against one server."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Cell:
    """`depth` requests in flight for each of `jobs` connections."""

    name: str
    rw: str
    block: str
    depth: int
    jobs: int = 1
    size: int | None = None
    """Bytes of the volume's beginning that are used; None: all of it."""
    flush_every: int = 0
    """A FLUSH after so many writes; 0: none. It is not counted as a request."""

    @property
    def title(self) -> str:
        connections = f", {self.jobs} connections" if self.jobs > 1 else ""
        part = f", over {self.size >> 20} MiB" if self.size is not None else ""
        flush = f", a flush after each {self.flush_every}" if self.flush_every > 1 else ""
        flush = ", a flush after each" if self.flush_every == 1 else flush
        return f"{self.block} {self.rw}, QD{self.depth}{connections}{part}{flush}"


CELLS = {
    cell.name: cell
    for cell in (
        Cell("randread-1", "randread", "4k", 1),
        Cell("randread-32", "randread", "4k", 32),
        Cell("randwrite-1", "randwrite", "4k", 1),
        Cell("randwrite-32", "randwrite", "4k", 32),
        Cell("randread-128", "randread", "4k", 128),
        Cell("randwrite-128", "randwrite", "4k", 128),
        Cell("randread-32x2", "randread", "4k", 32, 2),
        Cell("randwrite-32x2", "randwrite", "4k", 32, 2),
        Cell("randread-32x4", "randread", "4k", 32, 4),
        Cell("randwrite-32x4", "randwrite", "4k", 32, 4),
        Cell("flush-1", "randwrite", "4k", 1, flush_every=1),
        Cell("flush-32", "randwrite", "4k", 32, flush_every=32),
        Cell("read-1m", "read", "1m", 8),
        Cell("write-1m", "write", "1m", 8),
    )
}
DEFAULT_CELLS = (
    *("randread-1", "randread-32", "randread-128", "randread-32x2", "randread-32x4", "read-1m"),
    *("randwrite-1", "randwrite-32", "randwrite-128", "randwrite-32x2", "randwrite-32x4"),
    *("flush-1", "flush-32", "write-1m"),
)
"""Reads first: nothing that was written goes on meanwhile."""


@dataclass(frozen=True, slots=True)
class Sample:
    iops: float
    cpu_us: float
    """Of the server's processes, per request."""
    p99_us: float
    resident_bytes: int
    errors: int
    p50_us: float = 0.0


class Served(Protocol):
    """A server that runs, as a job meets it."""

    @property
    def fio(self) -> tuple[str, ...]:
        """The options of fio by which it gets there."""

    def cpu_s(self) -> float: ...

    def resident_bytes(self) -> int: ...


def measure(
    cell: Cell, server: Served, seconds: int, folder: Path, size: int | None = None
) -> Sample:
    """Run fio's job once, on so many bytes, or as many as the raw file in the folder has.
    CalledProcessError: fio could not."""
    size = cell.size or size or (folder / "volume.raw").stat().st_size
    before = server.cpu_s()
    done = subprocess.run(
        [
            *("fio", f"--name={cell.name}", *server.fio),
            *(f"--rw={cell.rw}", f"--bs={cell.block}", f"--iodepth={cell.depth}"),
            *(f"--numjobs={cell.jobs}", f"--size={size}", "--norandommap", "--randrepeat=0"),
            "--refill_buffers",  # or chunks of what was written would be the same few bytes
            *((f"--fsync={cell.flush_every}",) if cell.flush_every else ()),
            *("--time_based", f"--runtime={seconds}", "--group_reporting"),
            *("--output-format=json", f"--aux-path={folder}"),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    used = server.cpu_s() - before
    # fio prints notes before its JSON.
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    side = job["read" if "read" in cell.rw else "write"]
    percentiles = side["clat_ns"].get("percentile", {})
    return Sample(
        iops=side["iops"],
        cpu_us=used * 1e6 / max(1, side["total_ios"]),
        p99_us=percentiles.get("99.000000", 0) / 1e3,
        resident_bytes=server.resident_bytes(),
        errors=job["error"] + job.get("total_err", 0),
        p50_us=percentiles.get("50.000000", 0) / 1e3,
    )
