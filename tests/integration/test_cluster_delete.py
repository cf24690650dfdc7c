"""A volume of several real daemons is deleted by one command, also on a node that is away then."""

import json
from collections.abc import Iterator

import pytest

from tests.clients import FindTool
from tests.cluster_daemons import Nodes, up
from tests.etcd_cluster import etcd_cluster
from tests.peer_nodes import until

NAMES = ("n1", "n2", "n3")


@pytest.fixture
def nodes(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("n")
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as etcd:
        made = Nodes(folder, etcd, folder.name)
        try:
            up(made, *NAMES)
            yield made
        finally:
            made.close()


def volumes(nodes: Nodes, at: str) -> list[str]:
    """Names of the volumes in a node's store."""
    with nodes.daemons[at].control() as client:
        return [each.name for each in client.volumes()]


def until_gone(nodes: Nodes, at: str) -> None:
    until(lambda: volumes(nodes, at) == ["vm2"], f"{at} has let vm1 go")


def test_a_volume_is_deleted_on_every_node(nodes: Nodes) -> None:
    n1, n3 = nodes.daemons["n1"], nodes.daemons["n3"]
    n1.run("cluster", "create", "vm1", "1M")
    n1.run("cluster", "create", "vm2", "1M")
    until(lambda: "serving" in n1.run("cluster", "status").decode(), "n1 serves")
    n3.kill()

    refused = nodes.daemons["n2"].finish("volume", "delete", "vm1")
    assert refused.returncode != 0
    assert b"not its primary" in refused.stderr
    n1.run("snapshot", "create", "vm1@kept", "--pin")
    refused = n1.finish("volume", "delete", "vm1", "--yes")
    assert refused.returncode != 0
    assert b"has 1 snapshot(s)" in refused.stderr
    n1.run("volume", "delete", "vm1", "--force")
    until_gone(nodes, "n1")
    until_gone(nodes, "n2")
    nodes.start("n3")
    until_gone(nodes, "n3")
    shown = json.loads(n1.finish("cluster", "status", "--json").stdout)
    assert [each["name"] for each in shown["volumes"]] == ["vm2"]

    n1.run("cluster", "create", "vm1", "2M")  # the name is free again
    assert sorted(volumes(nodes, "n1")) == ["vm1", "vm2"]
