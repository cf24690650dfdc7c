"""Samples to Markdown, between two markers of a page."""

import argparse
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from cells import Cell, Sample
from servers import Server

BEGIN = "<!-- scripts/bench writes from here -->"
END = "<!-- to here -->"

FOLDER = Path(__file__).parents[2] / "build"


def options(
    prog: str, description: str | None, *, seconds: int, size_mib: int
) -> argparse.ArgumentParser:
    """What every benchmark takes; the numbers are defaults."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=int, default=seconds, help=f"of each cell (default: {seconds})"
    )
    parser.add_argument(
        "--size-mib", type=int, default=size_mib, help=f"of the volume (default: {size_mib})"
    )
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    parser.add_argument("--dry", action="store_true", help="print, leave docs/benchmarks.md alone")
    return parser


Samples = Mapping[tuple[str, str], Sequence[Sample]]
"""By server and cell, one a round."""


def table(cell: Cell, servers: Sequence[Server], samples: Samples) -> list[str]:
    """One cell's table; ratios are medians of each round's ratio to the first server."""
    baseline = samples[servers[0].name, cell.name]
    lines = [
        f"### {cell.title}",
        "",
        f"| server | IOPS | to {servers[0].name} | server CPU us/request | p99 us | RSS MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for server in servers:
        own = samples[server.name, cell.name]
        ratio = median(a.iops / b.iops for a, b in zip(own, baseline, strict=True))
        errors = sum(sample.errors for sample in own)
        lines.append(
            f"| {server.name}{f' ({errors} errors)' if errors else ''} "
            f"| {median(s.iops for s in own):,.0f} | {ratio:.2f} "
            f"| {median(s.cpu_us for s in own):.1f} | {median(s.p99_us for s in own):,.0f} "
            f"| {median(s.resident_bytes for s in own) / 2**20:,.0f} |"
        )
    return [*lines, ""]


def verdicts(
    cells: Sequence[Cell], servers: Sequence[Server], samples: Samples, own: str, limit: str
) -> list[str]:
    """What `own` reaches beside the best of the others in each cell, and whether that was wanted;
    medians of the rounds' ratios. `limit` is no peer."""
    peers = [server.name for server in servers if server.name not in (own, limit)]
    has_limit = any(server.name == limit for server in servers)
    lines = [
        "| cell | best peer | IOPS to it | CPU to it | p99 to it | IOPS to no work | wanted |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for cell in cells:

        def ratio(other: str, figure: Callable[[Sample], float], cell: Cell = cell) -> float:
            pairs = zip(samples[own, cell.name], samples[other, cell.name], strict=True)
            return median(figure(a) / max(figure(b), 1e-9) for a, b in pairs)

        best = min(peers, key=lambda peer: ratio(peer, _iops), default=None)
        if best is None:
            continue
        iops, cpu, p99 = (ratio(best, figure) for figure in (_iops, _cpu, _p99))
        to_limit = ratio(limit, _iops) if has_limit else None
        wanted, met = _target(cell, iops, cpu, p99, to_limit)
        lines.append(
            f"| {cell.title} | {best} | {iops:.2f} | {cpu:.2f} | {p99:.2f} "
            f"| {'-' if to_limit is None else f'{to_limit:.2f}'} "
            f"| {wanted}: {'yes' if met else '**no**'} |"
        )
    return [*lines, ""]


def _target(
    cell: Cell, iops: float, cpu: float, p99: float, to_limit: float | None
) -> tuple[str, bool]:
    """What is wanted of a cell in words, and whether it was reached."""
    if cell.flush_every:
        return "IOPS >= 2.0, p99 <= 1.0", iops >= 2.0 and p99 <= 1.0
    if cell.block != "4k":
        least = 1.3 if cell.rw == "read" else 1.0
        return f"IOPS >= {least}, p99 <= 1.0", iops >= least and p99 <= 1.0
    met = (iops >= 1.3 or cpu <= 0.6) and p99 <= 1.0
    if cell.depth >= 32 and to_limit is not None:
        wanted = "IOPS >= 1.3 or CPU <= 0.6, p99 <= 1.0, 0.8 of no work"
        return wanted, met and to_limit >= 0.8
    return "IOPS >= 1.3 or CPU <= 0.6, p99 <= 1.0", met


def _iops(sample: Sample) -> float:
    return sample.iops


def _cpu(sample: Sample) -> float:
    return sample.cpu_us


def _p99(sample: Sample) -> float:
    return sample.p99_us


def facts(servers: Sequence[Server], size: int, rounds: int, seconds: int) -> list[str]:
    """What the figures depend on; nothing that names the machine."""
    versions = {server.program: version_of(server.version) for server in servers}
    return [
        f"{machine()}; {', '.join(versions.values())}, {version_of(('fio', '--version'))}. "
        f"Volume of {size >> 20} MiB, {rounds} rounds, {seconds} s a cell.",
        "",
    ]


def machine() -> str:
    """The machine in words, without its name."""
    kernel = re.match(r"[\d.]+", os.uname().release)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB of memory, "
        f"Linux {kernel.group() if kernel else os.uname().release}"
    )


def version_of(command: Sequence[str]) -> str:
    """The first line that has a number, up to it: "qemu-nbd 7.2.22"."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = done.stdout or done.stderr
    match = re.search(r"([\w-]+?)[ -](?:version )?v?(\d+\.[\d.]*\d)", text)
    if not match:
        return f"{Path(command[0]).name} (version unknown)"
    name = "nbd-server" if command[0] == "nbd-server" else match.group(1)
    return f"{name} {match.group(2)}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def write(page: Path, lines: Sequence[str], *, begin: str = BEGIN, end: str = END) -> None:
    """Put `lines` between two markers of the page."""
    text = page.read_text()
    if begin not in text or end not in text:
        raise SystemExit(f"{page.name}: no lines {begin!r} and {end!r} to write between")
    before, _, rest = text.partition(begin)
    after = rest.partition(end)[2]
    page.write_text("\n".join([before + begin, "", *lines, end + after]))
