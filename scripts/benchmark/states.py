"""Reads of data in every state that it can be in: in the journal, destaged raw or compressed,
behind a long chain of clones, and from a disk with nothing in memory.

The peer beside it is nbdkit on a raw file of the same bytes; both in turn, in rounds.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cells import CELLS, Sample
from cells import measure as measure_cell
from servers import BLOCKD, RAW, SERVERS, VOLUME, Running, Server, fill_volume, settle
from versions.clones import make_chain

PEER = next(server for server in SERVERS if server.name == "nbdkit file")
READS = ("randread-1", "randread-32", "read-1m")
CHAIN = 1000
KEEP_HOT = '[store]\njournal_limit = "8 GiB"\ndestage_age_s = 3600\ndestage_idle_s = 3600\n'


@dataclass(frozen=True, slots=True)
class State:
    name: str
    prepare: Callable[[Path, Path], None]
    """From the folder of the main run (RAW in it) to a folder of its own, with RAW in it too."""
    volume: str = VOLUME
    hot: bool = False
    cold: bool = False


def measure(folder: Path, options: argparse.Namespace) -> list[str]:
    """The table, as Markdown."""
    lines = [
        "### Reads by the state of the data",
        "",
        f"IOPS and CPU beside {PEER.name} on a raw file of the same bytes: medians of the ratios "
        f"of {options.rounds} rounds.",
        "",
        "| state | cell | IOPS | to nbdkit | CPU us/request | to nbdkit | p99 us | errors |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for state in STATES:
        print(f"state: {state.name}", file=sys.stderr)
        own = folder / "state"
        own.mkdir()
        try:
            state.prepare(folder, own)
            lines += _rows(state, own, options.rounds, options.seconds)
        finally:
            shutil.rmtree(own)
    return [*lines, ""]


def _rows(state: State, folder: Path, rounds: int, seconds: int) -> list[str]:
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for number in range(rounds):
        servers = [BLOCKD, PEER] if number % 2 else [PEER, BLOCKD]
        for server in servers:
            for cell in READS:
                samples[server.name, cell] += _sample(state, server, cell, seconds, folder)
    return [_row(state, cell, samples) for cell in READS]


def _sample(state: State, server: Server, cell: str, seconds: int, folder: Path) -> list[Sample]:
    if state.cold:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
    with Running(server, folder, volume=state.volume) as running:
        if not state.hot and not state.cold:
            settle(server, folder)
        return [measure_cell(CELLS[cell], running, seconds, folder)]


def _row(state: State, cell: str, samples: dict[tuple[str, str], list[Sample]]) -> str:
    own, peer = samples[BLOCKD.name, cell], samples[PEER.name, cell]
    pairs = list(zip(own, peer, strict=True))
    return (
        f"| {state.name} | {CELLS[cell].title} | {median(a.iops for a in own):,.0f} "
        f"| {median(a.iops / b.iops for a, b in pairs):.2f} "
        f"| {median(a.cpu_us for a in own):.1f} "
        f"| {median(a.cpu_us / max(b.cpu_us, 1e-9) for a, b in pairs):.2f} "
        f"| {median(a.p99_us for a in own):,.0f} | {sum(a.errors for a in own)} |"
    )


# How data comes into each state.


def _same_raw(source: Path, folder: Path) -> None:
    os.link(source / RAW, folder / RAW)


def _raw(source: Path, folder: Path) -> None:
    _same_raw(source, folder)
    fill_volume(BLOCKD, folder)


def _journal(source: Path, folder: Path) -> None:
    _same_raw(source, folder)
    data = folder / "blockd"
    data.mkdir()
    (data / "blockd.toml").write_text(KEEP_HOT)
    with Running(BLOCKD, folder) as blockd:
        command = ["nbdcopy", "--flush", str(folder / RAW), blockd.uri]
        subprocess.run(command, check=True, stdout=sys.stderr)


def _compressed(source: Path, folder: Path) -> None:
    """Python's sources over and over: chunks of them take about a third."""
    text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    left = (source / RAW).stat().st_size
    shift = 0
    with (folder / RAW).open("wb") as file:
        while left > 0:  # each time from another place, so that no two chunks are the same
            piece = (text[shift:] + text[:shift])[:left]
            left -= file.write(piece)
            shift = (shift + 4093) % len(text)
        os.fsync(file.fileno())
    fill_volume(BLOCKD, folder)


def _chain(source: Path, folder: Path) -> None:
    _same_raw(source, folder)
    with Running(BLOCKD, folder, volume="v0") as blockd:
        command = ["nbdcopy", "--flush", str(folder / RAW), blockd.uri]
        subprocess.run(command, check=True, stdout=sys.stderr)
    make_chain(folder / "blockd", CHAIN, (folder / RAW).stat().st_size)


STATES = (
    State("in the journal", _journal, hot=True),
    State("destaged raw", _raw),
    State("destaged, lz4", _compressed),
    State(f"behind {CHAIN:,} clones", _chain, volume=f"v{CHAIN}"),
    State("after a restart, nothing cached", _raw, cold=True),
)
