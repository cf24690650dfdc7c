"""What is measured over iSCSI: reads by iscsi-perf (libiscsi), writes by qemu-img bench.

Both drive one connection. iscsi-perf reports IOPS every second; qemu-img bench does a fixed number
of requests, so a short run finds out how many make the wanted time.
"""

import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from servers import Running

BLOCK = 512  # of the units
PROBE_S = 0.5  # what the run that finds out the rate takes, about
STARTING = 2000  # requests of the first try


@dataclass(frozen=True, slots=True)
class Job:
    """`depth` requests of `size` bytes in flight."""

    name: str
    title: str
    size: int
    depth: int
    run: Callable[["Job", Running, int], "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    iops: float
    cpu_us: float
    """Of the server's processes, per request."""


def _perf(job: Job, server: Running, seconds: int, *options: str) -> Outcome:
    """iscsi-perf: reads, one after the other or at random."""
    before = server.cpu_s()
    began = time.perf_counter()
    done = subprocess.run(
        [
            *("iscsi-perf", "-m", str(job.depth), "-b", str(job.size // BLOCK)),
            *("-t", str(seconds), *options, server.uri),
        ],
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
    )
    took = time.perf_counter() - began
    used = server.cpu_s() - before
    found = re.findall(r"iops average (\d+)", done.stdout)
    if not found:
        raise SystemExit(f"iscsi-perf said nothing about IOPS:\n{done.stdout}{done.stderr}")
    iops = float(found[-1])
    return Outcome(iops, used * 1e6 / max(1.0, iops * min(took, seconds)))


def _read(job: Job, server: Running, seconds: int) -> Outcome:
    return _perf(job, server, seconds)


def _random_read(job: Job, server: Running, seconds: int) -> Outcome:
    return _perf(job, server, seconds, "-r")


def _write(job: Job, server: Running, seconds: int) -> Outcome:
    """qemu-img bench -w: writes one after the other, over and over the unit."""
    count = STARTING if job.size < 1 << 20 else STARTING // 20
    while True:
        took, used = _bench(job, server, count)
        if took >= PROBE_S:
            break
        count *= 4
    count = max(1, round(count / took * seconds))
    took, used = _bench(job, server, count)
    return Outcome(count / took, used * 1e6 / count)


def _bench(job: Job, server: Running, count: int) -> tuple[float, float]:
    """(seconds that the requests took, CPU seconds of the server)."""
    before = server.cpu_s()
    done = subprocess.run(
        [
            *("qemu-img", "bench", "-w", "-f", "raw", "-t", "none", "-c", str(count)),
            *("-d", str(job.depth), "-s", str(job.size), server.uri),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    used = server.cpu_s() - before
    match = re.search(r"completed in ([\d.]+) seconds", done.stdout)
    if match is None:
        raise SystemExit(f"qemu-img bench did not tell its time:\n{done.stdout}")
    return float(match[1]), used


JOBS = {
    job.name: job
    for job in (
        Job("randread-1", "4k random read, QD1 (iscsi-perf)", 4096, 1, _random_read),
        Job("randread-32", "4k random read, QD32 (iscsi-perf)", 4096, 32, _random_read),
        Job("randread-128", "4k random read, QD128 (iscsi-perf)", 4096, 128, _random_read),
        Job("write-1", "4k write, QD1 (qemu-img bench)", 4096, 1, _write),
        Job("write-32", "4k write, QD32 (qemu-img bench)", 4096, 32, _write),
        Job("read-1m", "1m read, QD8 (iscsi-perf)", 1 << 20, 8, _read),
        Job("write-1m", "1m write, QD8 (qemu-img bench)", 1 << 20, 8, _write),
    )
}
