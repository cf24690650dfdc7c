"""scripts/bench upkeep: what destaging costs clients meanwhile, and the memory of a daemon.

Destaging: two blockds with a volume each, in turn, in rounds. One destages all the time (nothing
may be older than a second), the other not at all; the same fio jobs on both.

Memory: a blockd with a volume of 10 GiB, at rest after its start, under load, and at rest again.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import report
from cells import CELLS, Sample, measure
from servers import BLOCKD, RAW, Running, settle

BEGIN = "<!-- scripts/bench upkeep: from here -->"
END = "<!-- scripts/bench upkeep: to here -->"

ALWAYS, NEVER = "destaging", "not destaging"
SETTINGS = {
    ALWAYS: '[store]\njournal_limit = "8 GiB"\ndestage_age_s = 1\ndestage_idle_s = 1\n',
    NEVER: '[store]\njournal_limit = "8 GiB"\ndestage_age_s = 3600\ndestage_idle_s = 3600\n',
}
CELLS_BESIDE = ("randwrite-1", "randwrite-32", "randread-1", "randread-32")
WARM_UP_S = 3
"""Of writes before each cell, so that there is something to destage."""

DESTAGING, MEMORY = PARTS = ("destaging", "memory")

IDLE_SIZE = 10 << 30
REST_S = 20
LOAD = ("randwrite-32", "randread-32", "write-1m", "read-1m")


def main(arguments: Sequence[str], page: Path) -> None:
    parser = report.options("scripts/bench upkeep", __doc__, seconds=5, size_mib=512)
    parser.add_argument("--only", choices=PARTS, help="one part, printed; the page stays as it is")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="u-", dir=options.folder))
    found: list[str] = []
    try:
        if options.only != MEMORY:
            found += destaging_table(beside_destaging(options, work))
        if options.only != DESTAGING:
            found += memory_table(measure_memory(options, work))
    finally:
        shutil.rmtree(work)
    lines = [
        f"{report.machine()}; {report.version_of(BLOCKD.version)}, "
        f"{report.version_of(('fio', '--version'))}. {options.rounds} rounds, "
        f"{options.seconds} s a cell, volume of {options.size_mib} MiB.",
        "",
        *found,
    ]
    if options.dry or options.only:
        print("\n".join(lines))
    else:
        report.write(page, lines, begin=BEGIN, end=END)


# -- destaging


def beside_destaging(
    options: argparse.Namespace, work: Path
) -> dict[tuple[str, str], list[Sample]]:
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for name, settings in SETTINGS.items():
        make_folder(work / name, options.size_mib << 20, settings)
    for number in range(options.rounds):
        for name in (ALWAYS, NEVER) if number % 2 else (NEVER, ALWAYS):
            with Running(BLOCKD, work / name) as running:
                for cell in CELLS_BESIDE:
                    measure(CELLS["randwrite-32"], running, WARM_UP_S, work / name)
                    sample = measure(CELLS[cell], running, options.seconds, work / name)
                    samples[name, cell].append(sample)
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    return samples


def make_folder(folder: Path, size: int, settings: str) -> None:
    """One for a blockd; the raw file says how large its volume is."""
    data = folder / "blockd"
    data.mkdir(parents=True)
    data.chmod(0o700)
    (data / "blockd.toml").write_text(settings)
    with (folder / RAW).open("wb") as file:
        file.truncate(size)


def destaging_table(samples: dict[tuple[str, str], list[Sample]]) -> list[str]:
    lines = [
        "| cell | p99 us, not destaging | destaging | ratio | IOPS, not destaging | destaging "
        "| ratio | CPU us/request | destaging |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cell in CELLS_BESIDE:
        quiet, busy = samples[NEVER, cell], samples[ALWAYS, cell]
        pairs = list(zip(quiet, busy, strict=True))
        lines.append(
            f"| {CELLS[cell].title} | {median(s.p99_us for s in quiet):,.0f} "
            f"| {median(s.p99_us for s in busy):,.0f} "
            f"| {median(b.p99_us / max(q.p99_us, 1e-9) for q, b in pairs):.2f} "
            f"| {median(s.iops for s in quiet):,.0f} | {median(s.iops for s in busy):,.0f} "
            f"| {median(b.iops / q.iops for q, b in pairs):.2f} "
            f"| {median(s.cpu_us for s in quiet):.1f} | {median(s.cpu_us for s in busy):.1f} |"
        )
    return [*lines, ""]


# -- memory


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of the daemon at one moment, with what it holds of files, and without."""

    when: str
    resident: int
    anonymous: int


def measure_memory(options: argparse.Namespace, work: Path) -> list[Memory]:
    folder = work / "memory"
    make_folder(folder, IDLE_SIZE, "")
    with Running(BLOCKD, folder) as running:
        time.sleep(REST_S)
        found = [memory_of(running, f"at rest, {IDLE_SIZE >> 30} GiB volume, after its start")]
        for cell in LOAD:
            # Over all of it: more places and dirty ranges than any cache has room for.
            measure(CELLS[cell], running, 2 * options.seconds, folder)
            found.append(memory_of(running, f"right after {CELLS[cell].title}"))
        settle(BLOCKD, folder)
        time.sleep(REST_S)
        found.append(memory_of(running, "at rest again, destaged"))
    return found


def memory_of(running: Running, when: str) -> Memory:
    status = Path(f"/proc/{running.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return Memory(when, _kib(fields["VmRSS"]), _kib(fields["RssAnon"]))


def _kib(text: str) -> int:
    return int(text.split()[0]) << 10


def memory_table(memory: Sequence[Memory]) -> list[str]:
    lines = ["| memory | resident MiB | of it anonymous |", "| --- | ---: | ---: |"]
    lines += [
        f"| {row.when} | {row.resident / 2**20:,.0f} | {row.anonymous / 2**20:,.0f} |"
        for row in memory
    ]
    return [*lines, ""]
