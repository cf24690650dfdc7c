"""Samples to Markdown, between two markers of a page."""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from cells import Cell, Sample
from servers import Server

BEGIN = "<!-- scripts/bench writes from here -->"
END = "<!-- to here -->"

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
