"""Volumes of real daemons whose primary is killed, paused, moved or stopped, under a client."""

import json
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clients import FindTool
from tests.cluster_daemons import Nodes, up
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.nbd_client import NbdClient, OptionError, ProtocolError, RequestError
from tests.peer_nodes import until
from transport.group.lease import LEASE_S

VOLUME = "vm1"
BLOCK = 4096
BLOCKS = 256
NAMES = ("n1", "n2", "n3")
SLOW_S = 60.0  # on a busy machine; what is measured is printed, not asserted


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture
def nodes(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[Nodes]:
    """Three of them, with a volume that n1 serves."""
    folder = tmp_path_factory.mktemp("n")
    made = Nodes(folder, etcd, folder.name)
    try:
        yield created(made)
    finally:
        made.close()


def created(nodes: Nodes) -> Nodes:
    up(nodes, *NAMES)
    nodes.daemons["n1"].run("cluster", "create", VOLUME, str(BLOCK * BLOCKS))
    until(lambda: volume(nodes, "n1")["primary"] == "n1", "n1 serves it")
    return nodes


def volume(nodes: Nodes, at: str) -> dict[str, Any]:
    """The volume as `blockd cluster status` shows it at a node."""
    done = nodes.daemons[at].finish("cluster", "status", "--json")
    (found,) = json.loads(done.stdout)["volumes"]
    assert isinstance(found, dict)
    return found


def attached(nodes: Nodes, name: str, timeout_s: float = 5.0) -> NbdClient:
    """A client of the volume at one node. OSError, OptionError: not there."""
    host, _, port = nodes.daemons[name].ready["nbd"][0].rpartition(":")
    client = NbdClient((host, int(port)), timeout_s=timeout_s)
    try:
        client.greet()
        client.go(VOLUME)
        client.read(0, BLOCK)  # where it is not served that fails
    except BaseException:
        client.close()
        raise
    return client


LOST = (OSError, EOFError, OptionError, ProtocolError, RequestError)


class Writer:
    """Writes numbered blocks, one after the other, to whichever node serves the volume."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.acked = [0] * BLOCKS
        """Number in each block that was acknowledged last."""
        self.tried = [0] * BLOCKS
        """Number that it was last asked to have: may be there, acknowledged or not."""
        self.last = 0
        self.at = ""
        self.gaps: list[tuple[float, float]] = []
        """(from the last acknowledged write before, until the first one after) each new attach."""

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for_more(self, count: int = 50) -> None:
        goal = self.last + count
        until(lambda: self.last >= goal, f"{count} more writes", SLOW_S)

    def _run(self) -> None:
        since = time.monotonic()
        while not self._stop.is_set():
            for name in NAMES:
                if not self._nodes.daemons[name].running:
                    continue
                try:
                    with attached(self._nodes, name) as client:
                        self.at = name
                        since = self._write(client, since)
                except LOST:
                    continue
            time.sleep(0.02)

    def _write(self, client: NbdClient, since: float) -> float:
        first = True
        try:
            while not self._stop.is_set():
                number = self.last + 1
                block = number % BLOCKS
                self.tried[block] = number
                client.write(block * BLOCK, struct.pack("<Q", number) * (BLOCK // 8))
                self.acked[block] = self.last = number
                if first:
                    self.gaps.append((since, time.monotonic()))
                    first = False
                since = time.monotonic()
        except LOST:
            self.last += 1  # that one may be there or not: never the same number again
        return since

    def check(self, client: NbdClient) -> None:
        """Every block has what was acknowledged last, or what came after that."""
        for block in range(BLOCKS):
            data = client.read(block * BLOCK, BLOCK)
            numbers = set(struct.unpack(f"<{BLOCK // 8}Q", data))
            assert len(numbers) == 1, f"block {block} is torn: {numbers}"
            (number,) = numbers
            assert self.acked[block] <= number <= self.tried[block], block


def serving(nodes: Nodes, *names: str) -> tuple[str, NbdClient]:
    """Whoever of these serves the volume, as soon as one does."""
    deadline = time.monotonic() + SLOW_S
    while time.monotonic() < deadline:
        for name in names:
            try:
                return name, attached(nodes, name)
            except LOST:
                time.sleep(0.05)
    raise AssertionError(f"none of {names} serves the volume")


def test_a_primary_that_is_killed_under_load_is_followed_and_nothing_is_lost(nodes: Nodes) -> None:
    with Writer(nodes) as writer:
        writer.wait_for_more()
        assert writer.at == "n1"
        killed = time.monotonic()
        nodes.daemons["n1"].kill()
        until(lambda: writer.at != "n1", "another node is found", SLOW_S)
        writer.wait_for_more()
        print(f"from kill to the first acknowledged write: {writer.gaps[-1][1] - killed:.2f} s")
        # It comes back, takes what it missed, and the next one that dies is not missed either.
        second = writer.at
        nodes.start("n1")
        until(lambda: volume(nodes, second)["copies"] == 3, "n1 has all again", SLOW_S)
        killed = time.monotonic()
        nodes.daemons[second].kill()
        until(lambda: writer.at != second, "another node is found", SLOW_S)
        writer.wait_for_more()
        print(f"once more: {writer.gaps[-1][1] - killed:.2f} s")
    name, client = serving(nodes, *(name for name in NAMES if name != second))
    with client:
        writer.check(client)
    shown = volume(nodes, name)
    assert shown["primary"] == name
    assert shown["epoch"] >= 4
    assert "not known" in shown["problem"]


def test_a_primary_that_was_paused_beyond_its_lease_shows_nothing_old(nodes: Nodes) -> None:
    old = attached(nodes, "n1", timeout_s=SLOW_S)
    old.write(0, b"a" * BLOCK)
    idle = attached(nodes, "n1", timeout_s=SLOW_S)
    assert idle.read(0, BLOCK) == b"a" * BLOCK
    pid = nodes.daemons["n1"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        paused = time.monotonic()
        name, client = serving(nodes, "n2", "n3")
        with client:
            assert client.read(0, BLOCK) == b"a" * BLOCK
            client.write(0, b"b" * BLOCK)
            print(f"paused primary followed after {time.monotonic() - paused:.2f} s")
            old.send_request(0, 0, BLOCK)  # NBD_CMD_READ, waits in its socket
    finally:
        os.kill(pid, signal.SIGCONT)
    with old:
        try:
            reply = old.read_reply()
        except LOST:
            pass
        else:
            assert reply.error, "a read is answered by who is not the primary any more"
    with pytest.raises(LOST), idle:
        idle.read(0, BLOCK)
    until(lambda: volume(nodes, name)["copies"] == 3, "n1 follows", SLOW_S)


def test_a_volume_moves_without_losing_a_write(nodes: Nodes) -> None:
    with Writer(nodes) as writer:
        writer.wait_for_more()
        until(lambda: volume(nodes, "n1")["copies"] == 3, "all in sync", SLOW_S)
        text = nodes.daemons["n1"].run("volume", "move", VOLUME, "n2").decode()
        print(text)
        assert text.startswith("volume vm1 is served by n2")
        until(lambda: writer.at == "n2", "the client follows", SLOW_S)
        writer.wait_for_more()
        begin, end = writer.gaps[-1]
        print(f"pause for the client: {end - begin:.3f} s")
        refused = nodes.daemons["n1"].finish("volume", "move", VOLUME, "n3")
        assert refused.returncode == 5
        assert b"this node is not its primary" in refused.stderr
    name, client = serving(nodes, "n2")
    with client:
        writer.check(client)
    assert name == "n2"


def test_a_node_that_is_stopped_hands_its_volumes_over(nodes: Nodes) -> None:
    with Writer(nodes) as writer:
        writer.wait_for_more()
        assert nodes.daemons["n1"].stop() == 0
        stopped = time.monotonic()
        until(lambda: writer.at != "n1", "the client follows", SLOW_S)
        writer.wait_for_more()
        took = writer.gaps[-1][1] - stopped
        print(f"from the end of the process to the first acknowledged write: {took:.2f} s")
        assert took < LEASE_S  # nobody waits for the lease of who has said good-bye
        nodes.start("n1")
        at = writer.at
        until(lambda: volume(nodes, at)["copies"] == 3, "n1 follows", SLOW_S)
    _, client = serving(nodes, writer.at)
    with client:
        writer.check(client)


def test_a_returning_primary_serves_nothing_before_it_has_asked(nodes: Nodes) -> None:
    nodes.daemons["n1"].kill()
    name, client = serving(nodes, "n2", "n3")
    with client:
        client.write(0, b"new" + bytes(BLOCK - 3))
    nodes.start("n1")
    with pytest.raises(LOST):
        attached(nodes, "n1").close()
    until(lambda: volume(nodes, name)["copies"] == 3, "n1 follows", SLOW_S)
    with pytest.raises(LOST):
        attached(nodes, "n1").close()
    assert volume(nodes, "n1")["primary"] == name


def test_status_says_what_is_not_known(nodes: Nodes) -> None:
    until(lambda: volume(nodes, "n2")["copies"] == 3, "all in sync", SLOW_S)
    done = nodes.daemons["n2"].finish("cluster", "status", "--copies")
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert "serving" in text
    assert "in sync" in text
    nodes.daemons["n3"].kill()
    until(lambda: volume(nodes, "n2")["copies"] == 2, "n3 is missed", SLOW_S)
    shown = volume(nodes, "n2")
    (copy,) = (each for each in shown["members"] if each["name"] == "n3")
    assert (copy["answered"], copy["received"], copy["in_sync"]) == (False, None, None)
    assert copy["why"]
    assert shown["problem"] == "not known: n3"
    assert nodes.daemons["n2"].finish("cluster", "status").returncode == 1


def test_volumes_are_served_without_etcd_but_not_taken_over(
    client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("n")
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as etcd:
        nodes = Nodes(folder, etcd, "b")
        try:
            created(nodes)
            with attached(nodes, "n1", timeout_s=SLOW_S) as client:
                etcd.kill(0)
                client.write(0, b"x" * BLOCK)
                deadline = time.monotonic() + 2 * LEASE_S
                while time.monotonic() < deadline:  # longer than any lease
                    assert client.read(0, BLOCK) == b"x" * BLOCK
                    time.sleep(0.2)
                client.flush()
            nodes.daemons["n1"].kill()
            time.sleep(2.0)
            for name in ("n2", "n3"):
                with pytest.raises(LOST):
                    attached(nodes, name).close()
            etcd.start(0)
            _, client = serving(nodes, "n2", "n3")
            with client:
                assert client.read(0, BLOCK) == b"x" * BLOCK
        finally:
            nodes.close()


def test_an_access_list_holds_on_every_node(nodes: Nodes) -> None:
    def rules(name: str) -> list[Any] | None:
        found: list[Any] | None = nodes.daemons[name].run_json("volume", "access", "show", VOLUME)[
            "rules"
        ]
        return found

    with attached(nodes, "n1") as client:
        nodes.daemons["n1"].run("volume", "access", "allow", VOLUME, "--uid", "0")
        assert client.at_eof()
    until(lambda: rules("n2") is not None, "n2 knows of it", SLOW_S)
    for name in ("n1", "n2"):
        with pytest.raises(OptionError):
            attached(nodes, name)
    nodes.daemons["n1"].run("volume", "move", VOLUME, "n2")
    until(lambda: volume(nodes, "n2")["primary"] == "n2", "n2 serves it")
    with pytest.raises(OptionError):
        attached(nodes, "n2")
    nodes.daemons["n2"].run("volume", "access", "clear", VOLUME)
    attached(nodes, "n2").close()
    until(lambda: rules("n1") is None, "n1 knows of it", SLOW_S)
