"""scripts/bench cluster-turns CHECKOUT...: volumes of three nodes, of other checkouts and this one.

Each has a cluster of its own on this machine's loopback, all at once, and each cell is run by one
after the other, in an order that turns; who does not have its turn rests. So what else goes on in
the machine hits all alike. Told are medians of all rounds: CPU time of the primary and of the two
members, and how long a write takes. It prints, and writes nothing.
"""

import os
import shutil
import sys
import tempfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import checkouts
import report
from cells import CELLS, Cell, Sample, measure
from cluster import NAMES, Volume, wait_until_served
from servers import RAW, cpu_s

from tests.cluster_daemons import Nodes, up
from tests.daemon import Daemon
from tests.etcd_cluster import EtcdCluster, etcd_cluster

DEFAULT_CELLS = ("randwrite-1", "randwrite-32", "flush-1")
VOLUME = "turned"


@dataclass(frozen=True, slots=True)
class Turn:
    sample: Sample
    primary_us: float
    """CPU time of the primary for a write..."""
    members_us: float
    """...and of both members."""


class Side:
    """One checkout's cluster."""

    def __init__(self, name: str, nodes: Nodes, size: int, acks: str) -> None:
        self.name = name
        up(nodes, *NAMES)
        self._daemons: list[Daemon] = [nodes.daemons[each] for each in NAMES]
        first = self._daemons[0]
        first.run("cluster", "create", VOLUME, str(size), "--acks", acks)
        wait_until_served(first, VOLUME)
        self.volume = Volume(name, VOLUME, self._daemons)

    def turn(self, cell: Cell, seconds: int, work: Path) -> Turn:
        before = [cpu_s(each.pid) for each in self._daemons]
        sample = measure(cell, self.volume, seconds, work)
        primary, *members = (
            cpu_s(each.pid) - was for each, was in zip(self._daemons, before, strict=True)
        )
        each_s = sample.cpu_us / max(primary + sum(members), 1e-9)
        return Turn(sample, primary * each_s, sum(members) * each_s)


def main(arguments: Sequence[str]) -> None:
    parser = report.options("scripts/bench cluster-turns", __doc__, seconds=4, size_mib=256)
    parser.add_argument("checkouts", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(DEFAULT_CELLS))
    parser.add_argument("--acks", choices=("mirror", "strict"), default="mirror")
    options = parser.parse_args(arguments)
    own, *others = checkouts.find(options.checkouts)
    for each in others:
        _same_python(own, each)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="t-", dir=options.folder))
    size = options.size_mib << 20
    try:
        with ExitStack() as running:
            with (work / RAW).open("wb") as raw:
                for _ in range(options.size_mib):
                    raw.write(os.urandom(1 << 20))
            (work / "etcd").mkdir()
            program = shutil.which("etcd") or "/usr/bin/etcd"
            etcd = running.enter_context(etcd_cluster(program, work / "etcd", 1))
            sides = [
                started(running, work, etcd, checkout, size, options.acks)
                for checkout in (*others, own)
            ]
            for side in sides:
                side.volume.fill(work / RAW)
            turns = run_rounds(sides, options, work)
    finally:
        shutil.rmtree(work)
    print(report.machine() + f"; {options.rounds} rounds, {options.seconds} s a cell.\n")
    print("\n".join(table(options.cells, [side.name for side in sides], turns)))


def _same_python(own: checkouts.Checkout, other: checkouts.Checkout) -> None:
    """SystemExit: what another interpreter costs would be taken for what the change does."""
    pythons = [Path(each.program[0]).resolve() for each in (own, other)]
    if pythons[0] != pythons[1]:
        raise SystemExit(f"{other.root}: its .venv has {pythons[1]}, this one's {pythons[0]}")


def started(
    running: ExitStack,
    work: Path,
    etcd: EtcdCluster,
    checkout: checkouts.Checkout,
    size: int,
    acks: str,
) -> Side:
    folder = work / checkout.name
    folder.mkdir()
    variables = [f"{name}={value}" for name, value in checkout.environ.items()]
    program = ("env", *variables, *checkout.program)
    nodes = Nodes(folder, etcd, checkout.name, store="short_percent = 0", program=program)
    running.callback(nodes.close)
    side = Side(checkout.name, nodes, size, acks)
    print(f"{checkout.name}: {checkout.root} serves", file=sys.stderr, flush=True)
    return side


def run_rounds(
    sides: Sequence[Side], options: Namespace, work: Path
) -> dict[tuple[str, str], list[Turn]]:
    turns: dict[tuple[str, str], list[Turn]] = defaultdict(list)
    for number in range(options.rounds):
        shift = number % len(sides)
        order = (*sides[shift:], *sides[:shift])
        for cell in options.cells:
            for side in order:
                for each in sides:
                    each.volume.settle()
                os.sync()
                turns[side.name, cell].append(side.turn(CELLS[cell], options.seconds, work))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    return turns


def table(
    cells: Sequence[str], names: Sequence[str], turns: dict[tuple[str, str], list[Turn]]
) -> list[str]:
    lines = [
        "| cell | checkout | IOPS | median latency us | p99 us "
        "| CPU us/write, primary | of both members |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cell in cells:
        for name in names:
            mine = turns[name, cell]
            lines.append(
                f"| {CELLS[cell].title} | {name} "
                f"| {median(each.sample.iops for each in mine):,.0f} "
                f"| {median(each.sample.p50_us for each in mine):,.0f} "
                f"| {median(each.sample.p99_us for each in mine):,.0f} "
                f"| {median(each.primary_us for each in mine):.1f} "
                f"| {median(each.members_us for each in mine):.1f} |"
            )
    return lines
