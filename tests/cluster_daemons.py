"""Daemons as nodes of a cluster, with a real etcd, for tests."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blockd.api.types import ClusterInfo
from tests.daemon import PROGRAM, STORE, Daemon, run_blockd
from tests.etcd_cluster import EtcdCluster
from tests.peer_nodes import until
from tests.ports import free_port

CONFIG = """\
[store]
{store}
[cluster]
etcd = [{etcd}]
prefix = "{prefix}/"
listen = ["{peers}"]
{cluster}"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs: this machine, unless it says otherwise."""

    prefix: tuple[str, ...] = ()
    """Before each command, that it runs there."""
    peers: str = ""
    """HOST:PORT for other nodes; "" is a free port of 127.0.0.1."""
    listen: tuple[str, ...] = ("--nbd", "127.0.0.1:0")
    config: str = ""
    """More of its blockd.toml."""


HERE = Place()


class Nodes:
    """Data directories, each with its configuration, and their daemons."""

    def __init__(
        self,
        folder: Path,
        etcd: EtcdCluster,
        prefix: str,
        places: Mapping[str, Place] | None = None,
        *,
        store: str = STORE,
        cluster: str = "",
        options: Sequence[str] = (),
        program: Sequence[str] = PROGRAM,
    ) -> None:
        """`store`, `cluster`: lines of these sections; `options`: of each daemon; `program` is
        blockd itself."""
        self._program = program
        self._options = options
        self._settings = {"store": store, "cluster": cluster}
        self._folder = folder
        self._etcd = etcd
        self.prefix = prefix
        self._places = places or {}
        self.daemons: dict[str, Daemon] = {}

    def place(self, name: str) -> Place:
        return self._places.get(name, HERE)

    def data(self, name: str) -> Path:
        """A data directory with its configuration."""
        data = self._folder / name
        if not data.exists():
            place = self.place(name)
            data.mkdir(mode=0o700)
            etcd = ", ".join(f'"{each}"' for each in self._etcd.endpoints)
            peers = place.peers or f"127.0.0.1:{free_port()}"
            where = {"etcd": etcd, "prefix": self.prefix, "peers": peers}
            text = CONFIG.format(**where, **self._settings)
            (data / "blockd.toml").write_text(text + place.config)
        return data

    def run(
        self, *arguments: str, given: str = "", at: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        """Run blockd, where a node is or here."""
        program = (*self.place(at).prefix, *self._program)
        done = run_blockd(arguments, given.encode(), program)
        out, err = done.stdout.decode(), done.stderr.decode()
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    def init(self, name: str) -> "subprocess.CompletedProcess[str]":
        return self.run("cluster", "init", name, "--data", str(self.data(name)), at=name)

    def token(self, at: str) -> str:
        return self.daemons[at].run("cluster", "token").decode()

    def join(self, name: str, token: str) -> "subprocess.CompletedProcess[str]":
        data = str(self.data(name))
        return self.run(
            *("cluster", "join", "-", "--name", name, "--data", data), given=token, at=name
        )

    def start(self, name: str) -> Daemon:
        place = self.place(name)
        self.daemons[name] = Daemon(
            *(self.data(name), self._options),
            listen=place.listen,
            prefix=place.prefix,
            program=self._program,
        )
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
