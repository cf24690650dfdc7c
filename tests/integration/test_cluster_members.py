"""Nodes die for good, are drained and removed, under a client: volumes get other members."""

from collections.abc import Iterator

import pytest

from blockd.api.cluster_types import ClusterVolume
from tests.clients import FindTool
from tests.cluster_daemons import Nodes, up
from tests.etcd_cluster import etcd_cluster
from tests.failover_rig import BLOCK, BLOCKS, SLOW_S, VOLUME, Writer, attached, serving
from tests.peer_nodes import until

NAMES = ("n1", "n2", "n3", "n4")
REPLACE_AFTER = 'replace_after = 3\nprefix = "'


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, client_tool: FindTool) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("n")
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as etcd:
        made = Nodes(folder, etcd, folder.name)
        for name in NAMES:
            config = made.data(name) / "blockd.toml"
            config.write_text(config.read_text().replace('prefix = "', REPLACE_AFTER))
        try:
            yield made
        finally:
            made.close()


def shown(nodes: Nodes, at: str) -> ClusterVolume:
    with nodes.daemons[at].control() as client:
        (found,) = client.cluster_status().volumes
    return found


def members(nodes: Nodes, at: str, role: str = "member") -> set[str]:
    return {each.name for each in shown(nodes, at).members if each.role == role}


def names_here(nodes: Nodes, at: str) -> list[str]:
    with nodes.daemons[at].control() as client:
        return [each.name for each in client.volumes()]


def whole(nodes: Nodes, at: str, *wanted: str) -> bool:
    found = shown(nodes, at)
    names = {each.name for each in found.members if each.role == "member"}
    return names == set(wanted) and found.copies == len(wanted)


def test_dead_and_drained_nodes_are_replaced_while_a_volume_is_written_to(nodes: Nodes) -> None:
    up(nodes, *NAMES)
    nodes.daemons["n1"].run("cluster", "create", VOLUME, str(BLOCK * BLOCKS))
    until(lambda: shown(nodes, "n1").primary == "n1", "n1 serves it")
    before = members(nodes, "n1")
    (spare,) = set(NAMES) - before
    dead, other = sorted(before - {"n1"})
    with Writer(nodes, names=NAMES) as writer:
        writer.wait_for_more()
        # A node dies for good: the volume gets another member by itself, and its client stays.
        gaps = len(writer.gaps)
        nodes.daemons[dead].kill()
        until(lambda: whole(nodes, "n1", "n1", other, spare), "it is replaced", SLOW_S)
        assert members(nodes, "n1", "leaving") == {dead}
        writer.wait_for_more()
        assert (writer.at, len(writer.gaps)) == ("n1", gaps), "a client was cut off"
        # The new one counts: another one dies, and the volume goes on from what it has.
        nodes.daemons["n1"].kill()
        until(lambda: writer.at in (other, spare), "another one serves it", SLOW_S)
        writer.wait_for_more()
        # Who was replaced comes back, lets its part go, and may come again for the dead one.
        nodes.start(dead)
        until(lambda: whole(nodes, spare, other, spare, dead), f"{dead} is a member anew", SLOW_S)
        writer.wait_for_more()
        if writer.at != spare:
            nodes.daemons[writer.at].run("volume", "move", VOLUME, spare)
            until(lambda: writer.at == spare, "the client follows", SLOW_S)
            writer.wait_for_more()
    with attached(nodes, spare, SLOW_S) as client:
        writer.check(client)
    # n1 comes back and is none; the node that serves is drained, which hands the volume over.
    nodes.start("n1")
    until(lambda: VOLUME not in names_here(nodes, "n1"), "n1 lets its part go", SLOW_S)
    refused = nodes.daemons["n1"].finish("cluster", "remove", spare)
    assert refused.returncode == 5
    assert b"drain" in refused.stderr
    text = nodes.daemons["n1"].run("cluster", "drain", spare).decode()
    assert f"node {spare} is a member of no volume" in text
    until(lambda: whole(nodes, "n1", "n1", other, dead), "all have all", SLOW_S)
    nodes.daemons["n1"].run("cluster", "remove", spare)
    until(lambda: spare not in nodes.connected("n1"), f"{spare} is cut off")
    _, client = serving(nodes, "n1", other, dead)
    with client:
        writer.check(client)
    # By name, and refused where it makes no sense.
    done = nodes.daemons["n1"].finish("volume", "replace-member", VOLUME, "n1", dead)
    assert done.returncode == 5
    assert b"is a member" in done.stderr
