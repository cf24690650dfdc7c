"""Bytes between real daemons: a member that was away gets what was written meanwhile, a write of
what is there already costs next to nothing, and what is damaged is read from another node."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.clients import FindTool
from tests.cluster_daemons import Nodes, up
from tests.damage import flip_a_bit
from tests.etcd_cluster import etcd_cluster
from tests.failover_rig import BLOCK, NAMES, SLOW_S, VOLUME, attached, volume
from tests.nbd_client import NbdClient
from tests.peer_nodes import until

MIB = 1 << 20
SIZE = 1024 * MIB
STORE = """\
short_percent = 0
journal_limit = "128MiB"
window = "32MiB"
window_s = 3600
destage_idle_s = 0.2
destage_age_s = 1
"""
BASE, AWAY, LONG, DUPLICATE = 16 * MIB, 8 * MIB, 64 * MIB, 64 * MIB  # AWAY < window < LONG


@pytest.fixture
def nodes(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as etcd:
        folder = tmp_path_factory.mktemp("n")
        made = Nodes(folder, etcd, folder.name, store=STORE)
        try:
            up(made, *NAMES)
            made.daemons["n1"].run("cluster", "create", VOLUME, str(SIZE))
            until(lambda: volume(made, "n1")["primary"] == "n1", "n1 serves it")
            until(lambda: volume(made, "n1")["copies"] == 3, "all are in step")
            yield made
        finally:
            made.close()


def sent(nodes: Nodes) -> Counter[str]:
    """Bytes of messages, of all nodes that run, by what they are."""
    found: Counter[str] = Counter()
    for name, daemon in nodes.daemons.items():
        if daemon.running:
            found.update(dict(nodes.show(name).sent))
    return found


def write(client: NbdClient, offset: int, data: bytes) -> None:
    for at in range(0, len(data), MIB):
        client.write(offset + at, data[at : at + MIB])


def settled(nodes: Nodes, *names: str) -> None:
    """All that is in the journals of these is in chunks as well."""
    for name in names:
        daemon = nodes.daemons[name]
        until(lambda daemon=daemon: daemon.store().hot_bytes == 0, name, SLOW_S)  # type: ignore[misc]


def away_while(nodes: Nodes, client: NbdClient, offset: int, data: bytes) -> None:
    """n3 is stopped while that is written."""
    nodes.daemons["n3"].stop()
    write(client, offset, data)
    client.flush()
    settled(nodes, "n1", "n2")


def back(nodes: Nodes) -> Counter[str]:
    """n3 comes back; what crossed until it had all."""
    before = sent(nodes)
    nodes.start("n3")
    until(lambda: volume(nodes, "n1")["copies"] == 3, "n3 has all again", SLOW_S)
    after = sent(nodes)
    after.subtract(before)
    return after


def told(what: str, crossed: Counter[str], length: int) -> float:
    share = sum(crossed.values()) / length
    kinds = ", ".join(f"{kind} {count}" for kind, count in crossed.most_common(6) if count)
    print(f"{what}: {sum(crossed.values())} bytes for {length}, {share:.4f} ({kinds})")
    return share


def test_node_reboot_copies_only_the_delta(nodes: Nodes) -> None:
    rng = random.Random(7)
    with attached(nodes, "n1", timeout_s=SLOW_S) as client:
        write(client, 0, rng.randbytes(BASE))
        settled(nodes, *NAMES)

        away_while(nodes, client, 4 * MIB, rng.randbytes(AWAY))  # over a part of what is there
        crossed = back(nodes)
        assert crossed["compare"] == 0
        assert told("away, from the log", crossed, AWAY) <= 1.1

        away_while(nodes, client, 256 * MIB, rng.randbytes(LONG))
        crossed = back(nodes)
        assert crossed["compare"] > 0
        assert told("away, beyond the log", crossed, LONG) <= 1.1

        data = rng.randbytes(DUPLICATE)
        write(client, 512 * MIB, data)
        settled(nodes, *NAMES)
        until(lambda: volume(nodes, "n1")["copies"] == 3, "all have it", SLOW_S)
        before = sent(nodes)
        write(client, 640 * MIB, data)
        client.flush()
        until(lambda: volume(nodes, "n1")["copies"] == 3, "all have it", SLOW_S)
        crossed = sent(nodes)
        crossed.subtract(before)
        assert crossed["append_brief"] > 0
        assert told("written again", crossed, DUPLICATE) < 0.02
        assert client.read(640 * MIB, MIB) == data[:MIB]

    # The member that was away serves what all have, from its own disk.
    nodes.daemons["n1"].run("volume", "move", VOLUME, "n3")
    with attached(nodes, "n3", timeout_s=SLOW_S) as client:
        for at in range(0, DUPLICATE, 16 * MIB):
            assert client.read(640 * MIB + at, BLOCK) == data[at : at + BLOCK]

        # A chunk of its pack is damaged: who reads it gets what another node has, and no error.
        at = 33 * MIB
        flip_a_bit(nodes.data("n3") / "packs", data[at : at + 512])
        assert client.read(640 * MIB + at, MIB) == data[at : at + MIB]
    stderr = nodes.daemons["n3"].stderr
    until(lambda: "damaged chunk fetched" in stderr(), "it came from another", SLOW_S)
    until(lambda: "damaged chunk stored anew" in stderr(), "it is whole again", SLOW_S)

    # So is one of a state that only this node has brought into chunks: they make it again.
    whole, part = rng.randbytes(64 << 10), rng.randbytes(BLOCK)
    at = 768 * MIB
    settled(nodes, *NAMES)
    seq = 1 + nodes.daemons["n3"].run_json("volume", "show", VOLUME)["seq"]
    with attached(nodes, "n3", timeout_s=SLOW_S) as client:
        client.write(at, whole)
        client.write(at, part)
    nodes.daemons["n3"].run("volume", "clone", f"{VOLUME}@seq:{seq}", "between", "--alone")
    flip_a_bit(nodes.data("n3") / "packs", whole[:512])
    with NbdClient(nodes.daemons["n3"].host_port, timeout_s=SLOW_S) as client:
        client.greet()
        client.go("between")
        assert client.read(at, len(whole)) == whole
    assert sent(nodes)["get_at"] > 0
