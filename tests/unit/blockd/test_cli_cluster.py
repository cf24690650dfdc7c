"""`blockd cluster token` and `show` against a real control API."""

from dataclasses import replace

import pytest

from blockd.cli import exits
from tests.command import Blockd
from tests.fake_cluster import INFO, N1, N2, FakeCluster
from tests.fake_node import FakeNode
from transport.errors import NodeNeeded, NoSuchNode
from volume.metastore import MetaStoreUnavailable


@pytest.fixture
def cluster(node: FakeNode) -> FakeCluster:
    made = FakeCluster()
    node.cluster = made
    return made


def test_nodes_are_shown_with_how_we_stand_with_them(cluster: FakeCluster, blockd: Blockd) -> None:
    lost = replace(N2, connected=False, asks_us=False, since_s=5.0, reason="lost: it broke")
    slow = replace(N2, name="n3", slow=True)
    cluster.shown = replace(INFO, nodes=(N1, lost, slow), problem="etcd: nobody answers")
    lines = [" ".join(line.split()) for line in blockd("cluster", "show").out.splitlines()]
    assert lines[:5] == [
        "cluster " + "c" * 32,
        f"node n1 ({'1' * 32})",
        "listens 10.0.0.1:10811",
        "problem etcd: nobody answers",
        "refused 3 connections",
    ]
    assert lines[7:] == [
        "n1 11111111 10.0.0.1:10811 this node 0:01:01 -",
        "n2 22222222 10.0.0.1:10811 not connected, does not ask us 5.0 s lost: it broke",
        "n3 22222222 10.0.0.1:10811 slow 0:01:01 -",
    ]


def test_programs_are_told_the_same(cluster: FakeCluster, blockd: Blockd) -> None:
    told = blockd("cluster", "show", "--json").json
    assert (told["cluster"], told["refused"]) == ("c" * 32, 3)
    assert [each["name"] for each in told["nodes"]] == ["n1", "n2"]


def test_a_token_alone_is_on_standard_output(cluster: FakeCluster, blockd: Blockd) -> None:
    done = blockd("cluster", "token", "--ttl", "10m")
    assert done.out == "blockd-join-1-abc\n"
    assert "until 2027-01-15T08:00:00Z" in done.err
    assert cluster.ttl_s == 600


@pytest.mark.parametrize("ttl", ["30s", "90d", "soon"])
def test_a_time_that_makes_no_sense_is_refused(
    cluster: FakeCluster, blockd: Blockd, ttl: str
) -> None:
    done = blockd("cluster", "token", "--ttl", ttl)
    assert (done.code, done.out) == (exits.USAGE, "")


def test_without_etcd_there_is_no_token(cluster: FakeCluster, blockd: Blockd) -> None:
    cluster.error = MetaStoreUnavailable("etcd: nobody answers")
    done = blockd("cluster", "token")
    assert (done.code, done.out) == (exits.FAILED, "")
    assert "nobody answers" in done.err


def test_a_node_is_removed_by_its_name(cluster: FakeCluster, blockd: Blockd) -> None:
    assert blockd("cluster", "remove", "n2").out == "node n2 is removed\n"
    assert cluster.removed == ["n2"]
    cluster.error = NodeNeeded("n2", ["vm1", "vm2"])
    refused = blockd("cluster", "remove", "n2")
    assert refused.code == exits.CONFLICT
    assert "is a member of volumes: vm1, vm2" in refused.err
    cluster.error = NoSuchNode("n9")
    assert blockd("cluster", "remove", "n9").code == exits.NOT_FOUND
    assert blockd("cluster", "remove", "a/b").code == exits.NOT_FOUND


@pytest.mark.parametrize("command", [("token",), ("show",), ("remove", "n2")])
def test_a_single_node_says_that_it_is_one(
    node: FakeNode, blockd: Blockd, command: tuple[str, ...]
) -> None:
    done = blockd("cluster", *command)
    assert done.code == exits.CONFLICT
    assert "in no cluster" in done.err


@pytest.mark.parametrize("coming", [(), ("vm1", "vm2")])
def test_who_waits_for_a_drain_is_told_when_no_node_comes(
    cluster: FakeCluster,
    blockd: Blockd,
    monkeypatch: pytest.MonkeyPatch,
    coming: tuple[str, ...],
) -> None:
    monkeypatch.setattr("blockd.cli.cluster_members.POLL_S", 0.0)
    monkeypatch.setattr("blockd.cli.cluster_members.STUCK_POLLS", 2)
    cluster.left = replace(cluster.left, member_of=("vm1", "vm2", "vm3"), under_way=coming)
    done = blockd("cluster", "drain", "n1")
    assert done.code == exits.OK
    assert done.out.startswith("node n1 is a member of no volume")
    told = "no node comes to volume vm1 in the place of n1 yet; it takes one that is connected"
    assert (told in done.err) == (not coming)


def test_a_drain_that_goes_on_is_not_said_to_be_over(cluster: FakeCluster, blockd: Blockd) -> None:
    cluster.left = replace(cluster.left, member_of=("vm1", "vm2"))
    done = blockd("cluster", "drain", "n1", "--no-wait")
    assert done.out == "node n1 is being drained: 2 volumes have it as a member still\n"
