"""Real daemons as nodes of a cluster, with a real etcd: made, joined, seen, killed, removed."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockd.config import load_config
from tests.clients import FindTool
from tests.cluster_daemons import Nodes, good, up
from tests.daemon import run_blockd
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.peer_nodes import until
from transport.keys import read_identity


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("n")
    made = Nodes(folder, etcd, folder.name)
    yield made
    made.close()


def table(nodes: Nodes, at: str) -> list[str]:
    """The rows of `blockd cluster show`."""
    lines = nodes.daemons[at].run("cluster", "show").decode().splitlines()
    return lines[lines.index("") + 2 :]


def test_three_nodes_join_by_tokens_and_are_connected(nodes: Nodes) -> None:
    up(nodes, "n1", "n2", "n3")
    shown = nodes.daemons["n2"].run_json("cluster", "show")
    assert (shown["name"], shown["problem"]) == ("n2", "")
    assert all(each["reason"] == "" for each in shown["nodes"])
    states = [line.split()[3] for line in table(nodes, "n2")]
    assert states == ["connected", "this", "connected"]
    # Restarted, it finds the others by itself, and is found.
    assert nodes.daemons["n3"].stop() == 0
    until(lambda: nodes.connected("n1") == {"n1", "n2"}, "n3 is gone")
    nodes.start("n3")
    until(lambda: nodes.connected("n1") == {"n1", "n2", "n3"}, "n3 is back")
    until(lambda: nodes.connected("n3") == {"n1", "n2", "n3"}, "n3 sees all")


def test_a_node_that_is_killed_is_shown_with_the_reason(nodes: Nodes) -> None:
    up(nodes, "n1", "n2")
    nodes.daemons["n2"].kill()
    until(lambda: nodes.connected("n1") == {"n1"}, "n2 is gone")
    gone = nodes.show("n1").nodes[1]
    assert gone.reason
    assert not gone.asks_us
    assert "not connected, does not ask us" in table(nodes, "n1")[1]


def test_a_node_that_is_paused_is_noticed_and_comes_back(nodes: Nodes) -> None:
    up(nodes, "n1", "n2")
    os.kill(nodes.daemons["n2"].pid, signal.SIGSTOP)
    try:
        until(lambda: nodes.connected("n1") == {"n1"}, "n2 is silent")
        assert nodes.show("n1").nodes[1].reason.startswith(("silent", "lost", "no greeting"))
    finally:
        os.kill(nodes.daemons["n2"].pid, signal.SIGCONT)
    for name in ("n1", "n2"):
        until(lambda name=name: nodes.connected(name) == {"n1", "n2"}, "both")  # type: ignore[misc]


def test_a_node_that_is_removed_is_cut_off(nodes: Nodes) -> None:
    up(nodes, "n1", "n2")
    nodes.daemons["n1"].run("cluster", "remove", "n2")
    until(lambda: len(nodes.show("n1").nodes) == 1, "it is known no more")
    until(lambda: "removed" in nodes.show("n2").problem, "it knows itself")
    assert nodes.show("n2").nodes == ()
    assert nodes.daemons["n2"].stop() == 0


def test_a_port_that_is_taken_stops_the_start_and_is_named(nodes: Nodes) -> None:
    good(nodes.init("n1"))
    (listen,) = load_config(None, nodes.data("n1")).cluster.listen
    with socket.create_server((listen.host, listen.port)):
        done = nodes.run("serve", "--nbd", "127.0.0.1:0", "--data", str(nodes.data("n1")))
    assert done.returncode == 1
    assert f"peer address {listen}: Address already in use" in done.stderr


def test_sessions_go_on_without_etcd(
    client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("n")
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as etcd:
        nodes = Nodes(folder, etcd, "b")
        try:
            up(nodes, "n1", "n2")
            both = {"n1", "n2"}
            etcd.kill(0)
            until(lambda: "etcd" in nodes.show("n1").problem, "it is noticed")
            assert nodes.connected("n1") == both == nodes.connected("n2")
            refused = nodes.daemons["n1"].finish("cluster", "token")
            assert refused.returncode != 0
            assert b"etcd" in refused.stderr
            etcd.start(0)
            until(lambda: nodes.show("n1").problem == "", "it is back")
        finally:
            nodes.close()


# -- commands


def test_a_cluster_is_made_once_and_made_again_by_the_same_node_only(nodes: Nodes) -> None:
    first = good(nodes.init("n1"))
    assert good(nodes.init("n1")) == first
    other = nodes.init("n2")
    assert other.returncode == 5
    assert "etcd has a cluster under this prefix already" in other.stderr
    renamed = nodes.run("cluster", "init", "x", "--data", str(nodes.data("n1")))
    assert "is node n1 already" in renamed.stderr


def test_a_node_that_never_heard_that_it_joined_is_not_started(nodes: Nodes) -> None:
    nodes.init("n1")
    assert nodes.init("n2").returncode == 5  # its key is there, the cluster is not
    done = nodes.run("serve", "--data", str(nodes.data("n2")))
    assert done.returncode == 2
    assert "has not heard yet that it is in the cluster" in done.stderr


def test_a_token_is_used_once_and_is_in_no_log(nodes: Nodes) -> None:
    good(nodes.init("n1"))
    daemon = nodes.start("n1")
    token = nodes.token("n1")
    good(nodes.join("n2", token))
    good(nodes.join("n2", token))  # again, after it is in: nothing is asked for
    used = nodes.join("n3", token)
    assert used.returncode == 5
    assert "the token was used" in used.stderr  # by its row, or since its key is not known any more
    assert token.strip() not in daemon.stderr()
    secret = read_identity(nodes.data("n1"))
    assert secret is not None
    assert secret.keys.secret.hex() not in daemon.stderr()


@pytest.mark.parametrize(
    ("given", "code", "why"),
    [("nonsense", 2, "begin with"), ("blockd-join-1-AAAA", 2, "not whole")],
)
def test_what_is_no_token_is_refused_before_anything_is_made(
    nodes: Nodes, given: str, code: int, why: str
) -> None:
    done = nodes.join("n2", given)
    assert done.returncode == code
    assert why in done.stderr
    assert read_identity(nodes.data("n2")) is None


def test_a_node_needs_a_configuration_that_says_where_etcd_is(
    tmp_path: Path, blockd_command: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    done = blockd_command("cluster", "init", "n1", "--data", str(tmp_path / "d"))
    assert done.returncode == 2
    assert "needs [cluster] with etcd" in done.stderr
    assert not (tmp_path / "d").exists()


@pytest.fixture
def blockd_command() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        done = run_blockd(arguments)
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run
