"""scripts/bench stripes: what cold data takes on all nodes of a cluster, and how it reads.

For 2+1 on three nodes and 4+2 on six, all of them and one etcd on this machine's loopback: a volume
of three copies gets random bytes, which do not compress, and is left to become cold. Space is what
the file systems gave to `packs/` and `shards/` of all data directories, over the bytes written, as
three copies and then as stripes. Reads are whole chunks at random offsets by one client, one after
the other, each of them once: of copies, of stripes, and of stripes with one node killed.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import report

from tests.cluster_daemons import Nodes, up
from tests.etcd_cluster import etcd_cluster
from tests.failover_rig import VOLUME, attached, serving, volume
from tests.nbd_client import NbdClient
from tests.peer_nodes import until

BEGIN = "<!-- scripts/bench stripes: from here -->"
END = "<!-- scripts/bench stripes: to here -->"
CODES = ((3, "2+1"), (6, "4+2"))
MIB = 1 << 20
CHUNK = 64 << 10
SLOW_S = 600.0
STORE = """\
pack_size = "16MiB"
window = "16MiB"
window_s = 0
keep = ""
compression = "none"
gc_interval_s = 1
gc_condemn_s = 1
"""
CLUSTER = "stripes = true\ncold_after_s = {cold}\nunused_after_s = 60\n"
COLD_S = 20.0


@dataclass(frozen=True, slots=True)
class Result:
    code: str
    copies: float
    stripes: float
    convert_s: float
    read_ms: tuple[float, float, float]
    """Median of a chunk, of copies, of stripes, with a node killed."""


def main(arguments: Sequence[str], page: Path) -> None:
    parser = report.options("scripts/bench stripes", __doc__, seconds=0, size_mib=256)
    parser.add_argument("--nodes", type=int, nargs="+", choices=[3, 6], default=[3, 6])
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{report.machine()}. Volume of {options.size_mib} MiB, packs of 16 MiB.",
        "",
        "| code | nodes | three copies | stripes | to be stripes | 64 KiB read of copies "
        "| of stripes | with a node killed |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for count, code in [each for each in CODES if each[0] in options.nodes]:
        found = measured(options, count, code)
        reads = " | ".join(f"{each:.2f} ms" for each in found.read_ms)
        lines.append(
            f"| {code} | {count} | {found.copies:.2f} | {found.stripes:.2f} "
            f"| {found.convert_s:.0f} s | {reads} |"
        )
        print(lines[-1])
    lines.append("")
    if options.dry:
        print("\n".join(lines))
    else:
        report.write(page, lines, begin=BEGIN, end=END)


def measured(options: argparse.Namespace, count: int, code: str) -> Result:
    work = Path(tempfile.mkdtemp(prefix="s-", dir=options.folder))
    names = tuple(f"n{number}" for number in range(1, count + 1))
    size = options.size_mib * MIB
    cluster = CLUSTER.format(cold=COLD_S)
    try:
        etcd = shutil.which("etcd")
        if etcd is None:
            raise SystemExit("there is no etcd here: apt-get install etcd-server")
        (work / "etcd").mkdir()
        with etcd_cluster(etcd, work / "etcd", 1) as store:
            nodes = Nodes(work, store, "bench", store=STORE, cluster=cluster)
            try:
                up(nodes, *names)
                return run(nodes, names, size, code)
            finally:
                for daemon in nodes.daemons.values():
                    daemon.discard()
    finally:
        shutil.rmtree(work)


def run(nodes: Nodes, names: tuple[str, ...], size: int, code: str) -> Result:
    nodes.daemons["n1"].run("cluster", "create", VOLUME, str(size))
    until(lambda: volume(nodes, "n1")["primary"] == "n1", "n1 serves it", SLOW_S)
    with attached(nodes, "n1", timeout_s=SLOW_S) as client:
        for at in range(0, size, MIB):
            client.write(at, random.Random(at).randbytes(MIB))
        client.flush()
        members = [each["name"] for each in volume(nodes, "n1")["members"]]
        for name in members:
            nodes.daemons[name].wait_for("destage", lambda s: s.hot_bytes == 0, SLOW_S)
        copies, began = used(nodes, names) / size, time.monotonic()
        of_copies = read_ms(client, size)
        wanted = size // (16 * MIB)
        until(lambda: stripes(nodes) >= wanted, "packs are stripes", SLOW_S)
        until(lambda: settled(nodes, members, size), "copies have gone", SLOW_S)
        took = time.monotonic() - began - COLD_S
        striped = used(nodes, names) / size
        of_stripes = read_ms(client, size)
    nodes.daemons[names[-1]].kill()
    _, client = serving(nodes, *names[:-1])
    with client:
        degraded = read_ms(client, size)
    return Result(code, copies, striped, max(0.0, took), (of_copies, of_stripes, degraded))


def stripes(nodes: Nodes) -> int:
    shown = json.loads(nodes.daemons["n1"].finish("cluster", "devices", "--json").stdout)
    return int(shown["stripes"])


def settled(nodes: Nodes, members: Sequence[str], size: int) -> bool:
    """Whether each member has let its copies go, but for the last pack, which is not full."""
    left = [folder_bytes(nodes.data(name) / "packs") for name in members]
    return max(left) < min(32 * MIB, size // 4)


def used(nodes: Nodes, names: Sequence[str]) -> int:
    folders = [nodes.data(name) / kind for name in names for kind in ("packs", "shards")]
    return sum(map(folder_bytes, folders))


def folder_bytes(folder: Path) -> int:
    total = 0
    for each in folder.iterdir():
        try:
            total += each.stat().st_blocks * 512
        except FileNotFoundError:  # gc, meanwhile
            continue
    return total


def read_ms(client: NbdClient, size: int) -> float:
    """Median of the reads of a quarter of all chunks."""
    offsets = list(range(0, size, CHUNK))
    random.Random(1).shuffle(offsets)
    times = []
    for offset in offsets[: len(offsets) // 4]:
        began = time.monotonic()
        data = client.read(offset, CHUNK)
        times.append(time.monotonic() - began)
        at = offset // MIB * MIB
        expected = random.Random(at).randbytes(MIB)[offset - at : offset - at + CHUNK]
        assert data == expected, offset
    return median(times) * 1e3
