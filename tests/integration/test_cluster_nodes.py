"""Real daemons as nodes of a cluster, with a real etcd: made, joined, seen, killed, removed."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockd.api.types import ClusterInfo
from tests.clients import FindTool
from tests.daemon import CLI_S, Daemon
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.peer_nodes import until
from transport.etcd.client import EtcdMetaStore, EtcdSettings
from transport.keys import read_identity
from volume.metastore import ClusterRecords, Done

CONFIG = """\
[store]
short_percent = 0

[cluster]
etcd = ["{etcd}"]
prefix = "{prefix}/"
listen = ["127.0.0.1:{port}"]
"""


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


class Nodes:
    """Data directories, each with its configuration, and their daemons."""

    def __init__(self, folder: Path, etcd: EtcdCluster, prefix: str) -> None:
        self._folder = folder
        self._etcd = etcd
        self._prefix = prefix
        self.daemons: dict[str, Daemon] = {}
        store = EtcdMetaStore(EtcdSettings(etcd.endpoints, prefix=prefix + "/"))
        self.records = ClusterRecords(store, lambda: os.urandom(16).hex())

    def data(self, name: str) -> Path:
        """A data directory with its configuration."""
        data = self._folder / name
        if not data.exists():
            data.mkdir(mode=0o700)
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            where = {"etcd": self._etcd.endpoints[0], "prefix": self._prefix, "port": port}
            (data / "blockd.toml").write_text(CONFIG.format(**where))
        return data

    def run(self, *arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "blockd", *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=CLI_S,
            check=False,
        )

    def init(self, name: str) -> "subprocess.CompletedProcess[str]":
        return self.run("cluster", "init", name, "--data", str(self.data(name)))

    def token(self, at: str) -> str:
        return self.daemons[at].run("cluster", "token").decode()

    def join(self, name: str, token: str) -> "subprocess.CompletedProcess[str]":
        data = str(self.data(name))
        return self.run("cluster", "join", "-", "--name", name, "--data", data, given=token)

    def start(self, name: str) -> Daemon:
        self.daemons[name] = Daemon(self.data(name))
        self.daemons[name].start()
        return self.daemons[name]

    def show(self, at: str) -> ClusterInfo:
        with self.daemons[at].control() as client:
            return client.cluster()

    def connected(self, at: str) -> set[str]:
        return {each.name for each in self.show(at).nodes if each.connected}


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("n")
    made = Nodes(folder, etcd, folder.name)
    yield made
    for name, daemon in made.daemons.items():
        daemon.discard()
        print(f"--- stderr of {name}\n{daemon.stderr()}")
    made.records.store.close()


def good(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(nodes: Nodes, at: str) -> list[str]:
    """The rows of `blockd cluster show`."""
    lines = nodes.daemons[at].run("cluster", "show").decode().splitlines()
    return lines[-3:]


def three(nodes: Nodes) -> Nodes:
    good(nodes.init("n1"))
    nodes.start("n1")
    for name in ("n2", "n3"):
        good(nodes.join(name, nodes.token("n1")))
        nodes.start(name)
    for name in ("n1", "n2", "n3"):
        until(lambda name=name: nodes.connected(name) == {"n1", "n2", "n3"}, name)  # type: ignore[misc]
    return nodes


def test_three_nodes_join_by_tokens_and_are_connected(nodes: Nodes) -> None:
    three(nodes)
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


def test_a_node_that_is_killed_is_shown_with_since_when(nodes: Nodes) -> None:
    three(nodes)
    nodes.daemons["n2"].kill()
    until(lambda: nodes.connected("n1") == {"n1", "n3"}, "n2 is gone")
    gone = next(each for each in nodes.show("n1").nodes if each.name == "n2")
    assert gone.reason
    assert not gone.asks_us
    assert "not connected, does not ask us" in table(nodes, "n1")[1]


def test_a_node_that_is_removed_is_cut_off(nodes: Nodes) -> None:
    three(nodes)
    identity = read_identity(nodes.data("n3"))
    assert identity is not None
    stored = nodes.records.node(identity.node_id)
    assert stored is not None
    assert isinstance(nodes.records.commit(nodes.records.remove_node(stored)), Done)
    for name in ("n1", "n2"):
        until(lambda name=name: len(nodes.show(name).nodes) == 2, "it is known no more")  # type: ignore[misc]
    until(lambda: "removed" in nodes.show("n3").problem, "it knows itself")
    assert nodes.connected("n1") == {"n1", "n2"}


def test_sessions_go_on_without_etcd(
    client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("n")
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as etcd:
        nodes = Nodes(folder, etcd, "b")
        try:
            good(nodes.init("n1"))
            nodes.start("n1")
            good(nodes.join("n2", nodes.token("n1")))
            nodes.start("n2")
            both = {"n1", "n2"}
            until(lambda: nodes.connected("n1") == both == nodes.connected("n2"), "both")
            etcd.kill(0)
            until(lambda: "etcd" in nodes.show("n1").problem, "it is noticed")
            assert nodes.connected("n1") == both == nodes.connected("n2")
            refused = nodes.daemons["n1"].finish("cluster", "token")
            assert refused.returncode != 0
            assert b"etcd" in refused.stderr
            etcd.start(0)
            until(lambda: nodes.show("n1").problem == "", "it is back")
        finally:
            for daemon in nodes.daemons.values():
                daemon.discard()
            nodes.records.store.close()


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
    assert "the token was used, or has expired" in used.stderr
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
        command = [sys.executable, "-m", "blockd", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=CLI_S, check=False)

    return run
