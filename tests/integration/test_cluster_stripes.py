"""Cold packs of real daemons as stripes: space, degraded reads, a lost device, and trim.

One scenario, since three daemons and an etcd take long to start: each step is what the one before
has left.
"""

import contextlib
import json
import os
import random
import shlex
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests import daemon
from tests.clients import FindTool
from tests.cluster_daemons import Nodes, good, up
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.failover_rig import SLOW_S, VOLUME, attached, serving, volume
from tests.peer_nodes import until
from tests.recipes import recipes
from transport.etcd.client import EtcdMetaStore, EtcdSettings
from transport.packrecords import PackRecords
from volume.metastore import ClusterRecords

MiB = 1 << 20
NAMES = ("n1", "n2", "n3")
SIZE = 24 * MiB
RECIPES = recipes(Path(__file__).parents[2] / "docs" / "disaster-recovery.md")
STORE = f"""\
{daemon.STORE}
pack_size = "1MiB"
window = "1MiB"
window_s = 0
keep = ""
destage_idle_s = 0.2
gc_interval_s = 0.5
gc_condemn_s = 0.5
"""
CLUSTER = """\
stripes = true
cold_after_s = 12.0
cold_unread_s = 3.0
unused_after_s = 3.0
"""


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("n")
    made = Nodes(folder, etcd, folder.name, store=STORE, cluster=CLUSTER)
    try:
        up(made, *NAMES)
        made.daemons["n1"].run("cluster", "create", VOLUME, str(SIZE))
        until(lambda: volume(made, "n1")["primary"] == "n1", "n1 serves it")
        yield made
    finally:
        made.close()


def piece(at: int) -> bytes:
    return random.Random(at).randbytes(MiB)


def devices(nodes: Nodes, at: str = "n1") -> dict[str, Any]:
    with nodes.daemons[at].control() as client:
        return asdict(client.cluster_devices())


def stripes(nodes: Nodes, at: str = "n1") -> dict[str, Any]:
    """As `blockd cluster status` tells of them, and whether all is well."""
    with nodes.daemons[at].control() as client:
        found = client.cluster_status().stripes
    assert found is not None
    return {**asdict(found), "well": found.well}


def used(folder: Path) -> int:
    """Bytes of packs, stubs and shards of a data directory."""
    total = 0
    for name in ("packs", "shards"):
        for each in (folder / name).iterdir():
            with contextlib.suppress(FileNotFoundError):  # it goes meanwhile
                total += each.stat().st_blocks * 512
    return total


@pytest.fixture
def rows(nodes: Nodes, etcd: EtcdCluster) -> Iterator[PackRecords]:
    """Those of stripes, as the nodes keep them in etcd."""
    store = EtcdMetaStore(EtcdSettings(etcd.endpoints, f"{nodes.prefix}/"))
    with contextlib.closing(store):
        yield PackRecords(ClusterRecords(store, lambda: os.urandom(16).hex()))


def follow(nodes: Nodes, at: str, heading: str) -> None:
    """Run the commands of a section of docs/disaster-recovery.md at a node, as they stand."""
    for block in RECIPES[heading]:
        if block.kind == "sh":
            for line in block.text.splitlines():
                command, _, allowed = line.partition(" || test $? = ")
                done = nodes.daemons[at].finish(*shlex.split(command)[1:])
                assert done.returncode in (0, int(allowed or 0)), (line, done.stdout, done.stderr)


def test_space_shrinks_after_trim_on_all_nodes(nodes: Nodes, rows: PackRecords) -> None:
    """Release gate."""
    with attached(nodes, "n1", timeout_s=SLOW_S) as client:
        for at in range(0, SIZE, MiB):
            client.write(at, piece(at))
        client.flush()

    # Cold packs become stripes of 2+1: 1.5 times the data on all nodes together, not three times.
    def total() -> int:
        return sum(used(nodes.data(name)) for name in NAMES)

    until(lambda: total() > 2.5 * SIZE, "each node has packed it", SLOW_S)
    until(lambda: total() < 1.9 * SIZE, "packs are stripes, and copies have gone", 2 * SLOW_S)
    until(lambda: devices(nodes)["stripes"] >= 20, "a round has seen them", SLOW_S)
    shown = devices(nodes)
    assert [each["state"] for each in shown["devices"]] == ["in"] * 3
    assert shown["stripes"] >= 20
    print(f"three copies of {SIZE >> 20} MiB take {total() / SIZE:.2f} of it as stripes")
    for name in NAMES:
        assert list((nodes.data(name) / "packs").glob("*.stripe"))
    until(lambda: stripes(nodes)["well"], "every stripe has all of its shards", SLOW_S)
    told = stripes(nodes)
    assert told["all"]["bytes"] >= 20 * MiB
    assert [each["broken"] for each in told["nodes"]] == [0, 0, 0]

    # A node is killed: what it had is decoded, wherever the volume is served.
    nodes.daemons["n3"].kill()
    name, client = serving(nodes, "n1", "n2")
    with client:
        for at in range(0, SIZE, MiB):
            assert client.read(at, MiB) == piece(at), at
    told = stripes(nodes)
    assert (told["degraded"], told["well"]) == (told["all"], False)
    assert [each["answered"] for each in told["nodes"]] == [True, True, False]
    assert told["shards_left_s"] is None
    with nodes.daemons["n1"].control() as control:
        scraped = control.metrics()
    assert f'blockd_stripes{{state="degraded"}} {told["all"]["stripes"]:.1f}' in scraped
    assert "blockd_stripe_degraded_reads_total" in scraped

    # Its device has failed: there is nowhere to build its shards, until a node joins.
    failed = next(each["device"] for each in shown["devices"] if each["node"] == "n3")
    nodes.daemons["n1"].run("cluster", "device", "fail", failed)
    until(
        lambda: any("3 are needed" in text for text in devices(nodes)["problems"]),
        "it waits for a device",
        SLOW_S,
    )
    good(nodes.join("n4", nodes.token("n1")))
    nodes.start("n4")
    until(lambda: nodes.connected("n1") >= {"n1", "n2", "n4"}, "n4 is there", SLOW_S)

    def on(node: str) -> int:
        return int(next(e["shards"] for e in devices(nodes)["devices"] if e["node"] == node))

    until(lambda: on("n3") == 0 and devices(nodes)["moves"] == 0, "all is built again", SLOW_S)
    assert on("n4") >= 20
    nodes.daemons["n1"].run("cluster", "device", "remove", failed)
    nodes.daemons["n2"].kill()
    nodes.start("n2")
    until(lambda: nodes.connected("n1") >= {"n1", "n2", "n4"}, "n2 is back", SLOW_S)
    nodes.start("n3")
    until(lambda: volume(nodes, name)["copies"] == 3, "all members are in step", SLOW_S)

    # etcd goes back to a state before there were stripes: rows are made again from shards.
    before = list(rows.all())
    for row in before:
        while not rows.swap(row, replace(row, shards=())):
            row = rows.read(row.pack_id) or row
    until(
        lambda: any("no row of it" in text for text in devices(nodes)["problems"]),
        "a node misses its row",
        SLOW_S,
    )
    follow(nodes, "n1", "Rows of stripes that etcd has lost")
    made = {row.pack_id: row.digest for row in rows.all()}  # a shard may be on two devices
    needed = {row.pack_id: row.digest for row in before if row.users}
    assert made.items() >= needed.items()
    until(lambda: stripes(nodes)["well"], "all stripes have all of their shards", SLOW_S)

    # Trim: packs, stubs and shards go on all nodes, also on the one that only has shards.
    name, client = serving(nodes, "n1", "n2")
    with client:
        for at in range(MiB, SIZE, MiB):
            client.trim(at, MiB)
        client.flush()
        assert client.read(0, MiB) == piece(0)
    everyone = (*NAMES, "n4")
    until(
        lambda: all(used(nodes.data(name)) < SIZE // 4 for name in everyone),
        "space shrinks on all nodes",
        SLOW_S,
    )
    with attached(nodes, name, timeout_s=SLOW_S) as client:
        assert client.read(0, MiB) == piece(0)
        assert client.read(MiB, MiB) == bytes(MiB)

    # All devices but one are lost. What is left is named, given up, and written again.
    until(
        lambda: bool(found := list(rows.all())) and all(len(each.users) == 3 for each in found),
        "it is in a stripe that all members need",
        SLOW_S,
    )
    used_ones = [
        each["device"] for each in devices(nodes, name)["devices"] if each["state"] == "in"
    ]
    for device in used_ones[1:]:
        nodes.daemons[name].run("cluster", "device", "fail", device)
    until(lambda: stripes(nodes, name)["lost"]["stripes"] > 0, "it is lost", SLOW_S)
    found = json.loads(nodes.daemons[name].finish("cluster", "stripes", "lost", "--json").stdout)
    assert {each["name"].partition("@")[0] for each in found["ranges"]} == {VOLUME}
    assert all(each["offset"] + each["length"] <= MiB for each in found["ranges"])
    follow(nodes, name, "A stripe that is lost")
    told = stripes(nodes, name)
    assert told["given_up"] == told["lost"]
    assert told["lost_packs"]
    with attached(nodes, name, timeout_s=SLOW_S) as client:
        # The same again, at once: nobody finds it in what is lost, whether its last round knows
        # that or not.
        client.write(0, piece(0))
        client.flush()
    until(lambda: not list(rows.all()), "the stripe is removed", SLOW_S)
    nodes.daemons[name].kill()
    nodes.start(name)
    name, client = serving(nodes, "n1", "n2")
    with client:
        assert client.read(0, MiB) == piece(0)
