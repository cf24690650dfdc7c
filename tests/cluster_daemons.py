"""Daemons as nodes of a cluster, with a real etcd, for tests."""

import socket
import subprocess
import sys
from pathlib import Path

from blockd.api.types import ClusterInfo
from tests.daemon import CLI_S, Daemon
from tests.etcd_cluster import EtcdCluster
from tests.peer_nodes import until

CONFIG = """\
[store]
short_percent = 0

[cluster]
etcd = ["{etcd}"]
prefix = "{prefix}/"
listen = ["127.0.0.1:{port}"]
"""


class Nodes:
    """Data directories, each with its configuration, and their daemons."""

    def __init__(self, folder: Path, etcd: EtcdCluster, prefix: str) -> None:
        self._folder = folder
        self._etcd = etcd
        self._prefix = prefix
        self.daemons: dict[str, Daemon] = {}

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

    def close(self) -> None:
        for name, daemon in self.daemons.items():
            daemon.discard()
            print(f"--- stderr of {name}\n{daemon.stderr()}")


def good(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def up(nodes: Nodes, *names: str) -> None:
    """All of them are started, have joined and are connected."""
    first, *others = names
    good(nodes.init(first))
    nodes.start(first)
    for name in others:
        good(nodes.join(name, nodes.token(first)))
        nodes.start(name)
    for name in names:
        until(lambda name=name: nodes.connected(name) == set(names), name)  # type: ignore[misc]
