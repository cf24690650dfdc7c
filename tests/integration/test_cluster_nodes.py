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

THREE = {"n1", "n2", "n3"}


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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("n")
    nodes = Nodes(folder, etcd, folder.name)
    try:
        up(nodes, *sorted(THREE))
        yield nodes
    finally:
        nodes.close()


@pytest.fixture
def three(made: Nodes) -> Nodes:
    """n1, n2 and n3, which are connected; they are those of the test before."""
    for name in sorted(THREE):
        if not made.daemons[name].running:
            made.start(name)
    for name in sorted(THREE):
        until(lambda name=name: made.connected(name) == THREE, f"{name} sees all")  # type: ignore[misc]
    return made


def table(nodes: Nodes, at: str) -> list[str]:
    """The rows of `blockd cluster show`."""
    lines = nodes.daemons[at].run("cluster", "show").decode().splitlines()
    return lines[lines.index("") + 2 :]


def test_three_nodes_join_by_tokens_and_are_connected(three: Nodes) -> None:
    shown = three.daemons["n2"].run_json("cluster", "show")
    assert (shown["name"], shown["problem"]) == ("n2", "")
    assert all(each["reason"] == "" for each in shown["nodes"])
    states = [line.split()[3] for line in table(three, "n2")]
    assert states == ["connected", "this", "connected"]
    # Restarted, it finds the others by itself, and is found.
    assert three.daemons["n3"].stop() == 0
    until(lambda: three.connected("n1") == {"n1", "n2"}, "n3 is gone")
    three.start("n3")
    until(lambda: three.connected("n1") == THREE, "n3 is back")
    until(lambda: three.connected("n3") == THREE, "n3 sees all")


def test_a_node_that_is_killed_is_shown_with_the_reason(three: Nodes) -> None:
    three.daemons["n2"].kill()
    until(lambda: three.connected("n1") == {"n1", "n3"}, "n2 is gone")
    gone = three.show("n1").nodes[1]
    assert gone.reason
    assert not gone.asks_us
    assert "not connected, does not ask us" in table(three, "n1")[1]


def test_a_node_that_is_paused_is_noticed_and_comes_back(three: Nodes) -> None:
    os.kill(three.daemons["n2"].pid, signal.SIGSTOP)
    try:
        until(lambda: three.connected("n1") == {"n1", "n3"}, "n2 is silent")
        assert three.show("n1").nodes[1].reason.startswith(("silent", "lost", "no greeting"))
    finally:
        os.kill(three.daemons["n2"].pid, signal.SIGCONT)
    for name in ("n1", "n2"):
        until(lambda name=name: three.connected(name) == THREE, "all")  # type: ignore[misc]


def test_a_node_that_is_removed_is_cut_off(three: Nodes) -> None:
    good(three.join("n4", three.token("n1")))
    n4 = three.start("n4")
    until(lambda: three.connected("n1") == {*THREE, "n4"}, "it is there")
    three.daemons["n1"].run("cluster", "remove", "n4")
    until(lambda: len(three.show("n1").nodes) == 3, "it is known no more")
    until(lambda: "removed" in three.show("n4").problem, "it knows itself")
    assert three.show("n4").nodes == ()
    assert n4.stop() == 0


def test_a_port_that_is_taken_stops_the_start_and_is_named(nodes: Nodes) -> None:
    good(nodes.init("n1"))
    (listen,) = load_config(None, nodes.data("n1")).cluster.listen
    with socket.create_server((listen.host, listen.port)):
        done = nodes.run("serve", "--nbd", "127.0.0.1:0", "--data", str(nodes.data("n1")))
    assert done.returncode == 1
    assert f"peer address {listen}: Address already in use" in done.stderr


def test_sessions_go_on_without_etcd(three: Nodes, etcd: EtcdCluster) -> None:
    etcd.kill(0)
    try:
        until(lambda: "etcd" in three.show("n1").problem, "it is noticed")
        assert three.connected("n1") == THREE == three.connected("n2")
        refused = three.daemons["n1"].finish("cluster", "token")
        assert refused.returncode != 0
        assert b"etcd" in refused.stderr
    finally:
        etcd.start(0)
    until(lambda: three.show("n1").problem == "", "it is back")


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
