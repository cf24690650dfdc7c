"""scripts/bench cluster: a volume of three nodes beside one node's, and beside Ceph RBD.

Everything runs on this machine's loopback: three nodes of blockd with one etcd, a blockd by itself,
and Ceph with three OSDs where its packages are installed. In each round each of them has each cell
once, in an order that rotates; the others rest meanwhile.

What an acknowledged write survives differs, and the names say it: `mirror` has it in the journals
of two of three nodes (the death of one node), `strict` on the disks of two, Ceph on the disks of
all three; a node by itself has it in its journal (the death of its process).

Behind the cells: the bytes that cross between the nodes for a write of what is there already.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Protocol

import ceph
import crossing
import report
from cells import CELLS, Cell, Sample, Served, measure
from servers import BLOCKD, RAW, cpu_s, resident_bytes, wait_until_destaged

from tests.cluster_daemons import Nodes, up
from tests.daemon import Daemon
from tests.etcd_cluster import etcd_cluster

BEGIN = "<!-- scripts/bench cluster: from here -->"
END = "<!-- scripts/bench cluster: to here -->"

NAMES = ("n1", "n2", "n3")
DEFAULT_CELLS = ("randread-1", "randread-32", "randwrite-1", "randwrite-32", "flush-1")
START_S = 60.0
ONE, MIRROR, STRICT = "one node", "three nodes, mirror", "three nodes, strict"


class Volume:
    """A volume of some daemons, of which the first serves it."""

    def __init__(self, name: str, volume: str, daemons: Sequence[Daemon]) -> None:
        self.name = name
        self.volume = volume
        self._daemons = daemons

    @property
    def uri(self) -> str:
        return f"nbd://{self._daemons[0].ready['nbd'][0]}/{self.volume}"

    @property
    def fio(self) -> tuple[str, ...]:
        return "--ioengine=nbd", f"--uri={self.uri}"

    def cpu_s(self) -> float:
        return sum(cpu_s(daemon.pid) for daemon in self._daemons)

    def resident_bytes(self) -> int:
        return sum(resident_bytes(daemon.pid) for daemon in self._daemons)

    def settle(self) -> None:
        for daemon in self._daemons:
            wait_until_destaged(str(daemon.data / "control.sock"))

    def fill(self, raw: Path) -> None:
        subprocess.run(["nbdcopy", "--flush", str(raw), self.uri], check=True, stdout=sys.stderr)


def main(arguments: Sequence[str], page: Path) -> None:
    parser = report.options("scripts/bench cluster", __doc__, seconds=4, size_mib=512)
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(DEFAULT_CELLS))
    parser.add_argument("--no-ceph", action="store_true")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="c-", dir=options.folder))
    cells = [CELLS[name] for name in options.cells]
    size = options.size_mib << 20
    with_ceph = not options.no_ceph and ceph.usable()
    try:
        with ExitStack() as running:
            nodes, servers = started(running, work, size, with_ceph)
            samples = run_rounds(servers, cells, options.rounds, options.seconds, work)
            mirror = next(server for server in servers if server.name == MIRROR)
            crossed = crossing.report(nodes, "mirrored", size, mirror.settle)
    finally:
        shutil.rmtree(work)
    peers = f", {ceph.version()}" if with_ceph else "; Ceph was not there"
    lines = [
        f"{report.machine()}; {report.version_of(BLOCKD.version)}, "
        f"{report.version_of(('fio', '--version'))}{peers}. {options.rounds} rounds, "
        f"{options.seconds} s a cell, volume of {options.size_mib} MiB.",
        "",
    ]
    for cell in cells:
        lines += table(cell, [server.name for server in servers], samples)
    lines += crossed
    if options.dry:
        print("\n".join(lines))
    else:
        report.write(page, lines, begin=BEGIN, end=END)


class Named(Served, Protocol):
    """With a name for the table."""

    name: str

    def settle(self) -> None:
        """Wait until nothing goes on behind what clients have asked."""

    def fill(self, raw: Path) -> None:
        """The volume gets the file's bytes."""


def started(
    running: ExitStack, work: Path, size: int, with_ceph: bool
) -> tuple[Nodes, list[Named]]:
    raw = work / RAW
    with raw.open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
    etcd_program = shutil.which("etcd") or "/usr/bin/etcd"
    (work / "etcd").mkdir()
    etcd = running.enter_context(etcd_cluster(etcd_program, work / "etcd", 1))
    (work / "nodes").mkdir()
    nodes = Nodes(work / "nodes", etcd, "bench", store="short_percent = 0")
    running.callback(nodes.close)
    up(nodes, *NAMES)
    first = nodes.daemons["n1"]
    for volume, acks in (("mirrored", "mirror"), ("strictly", "strict")):
        first.run("cluster", "create", volume, str(size), "--acks", acks)
        wait_until_served(first, volume)
    alone = Daemon(work / "alone", ("--volume", f"alone={size}"))
    running.callback(alone.discard)
    alone.start()
    of_nodes = [nodes.daemons[name] for name in NAMES]
    servers: list[Named] = [
        Volume(ONE, "alone", [alone]),
        Volume(MIRROR, "mirrored", of_nodes),
        Volume(STRICT, "strictly", of_nodes),
    ]
    if with_ceph:
        servers.append(running.enter_context(ceph.Ceph(work, size)))
    for server in servers:
        server.fill(raw)
        print(f"{server.name}: filled", file=sys.stderr, flush=True)
    return nodes, servers


def wait_until_served(daemon: Daemon, volume: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        found = json.loads(daemon.run("cluster", "status", "--json"))["volumes"]
        if any(each["name"] == volume and each["primary"] == "n1" for each in found):
            return
        time.sleep(0.2)
    raise SystemExit(f"{volume}: nobody serves it after {START_S:.0f} s")


def run_rounds(
    servers: Sequence[Named], cells: Sequence[Cell], rounds: int, seconds: int, work: Path
) -> dict[tuple[str, str], list[Sample]]:
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for number in range(rounds):
        shift = number % len(servers)
        for cell in cells:
            for server in (*servers[shift:], *servers[:shift]):
                for each in servers:
                    each.settle()
                os.sync()
                sample = measure(cell, server, seconds, work)
                samples[server.name, cell.name].append(sample)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    return samples


def table(
    cell: Cell, names: Sequence[str], samples: dict[tuple[str, str], list[Sample]]
) -> list[str]:
    """Ratios are medians of each round's ratio to the last server, which is Ceph where it is."""
    last = samples[names[-1], cell.name]
    lines = [
        f"### {cell.title}",
        "",
        f"| server | IOPS | to {names[-1]} | mean latency us | p99 us | CPU us/request |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        mine = samples[name, cell.name]
        iops = median(sample.iops for sample in mine)
        ratio = median(a.iops / b.iops for a, b in zip(mine, last, strict=True))
        lines.append(
            f"| {name} | {iops:,.0f} | {ratio:.2f} "
            f"| {cell.depth * cell.jobs / iops * 1e6:,.0f} "
            f"| {median(sample.p99_us for sample in mine):,.0f} "
            f"| {median(sample.cpu_us for sample in mine):.1f} |"
        )
    return [*lines, ""]
