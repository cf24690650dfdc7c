"""Volumes of real daemons whose primary is killed, paused, moved or stopped, under a client.

One cluster lives through all of it, as three daemons take long to start: each test begins with all
of them running, three copies of nothing but zeros, and n1 as the primary.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.clients import FindTool
from tests.cluster_daemons import Nodes
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.failover_rig import (
    BLOCK,
    BLOCKS,
    LOST,
    NAMES,
    SLOW_S,
    VOLUME,
    SharedNodes,
    Writer,
    attached,
    serving,
    volume,
)
from tests.followers import Follower, QemuWriter
from tests.nbd_client import OptionError
from tests.peer_nodes import until
from transport.group.lease import LEASE_S


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, etcd: EtcdCluster) -> Iterator[SharedNodes]:
    def made() -> Nodes:
        folder = tmp_path_factory.mktemp("n")
        return Nodes(folder, etcd, folder.name)

    shared = SharedNodes(made)
    yield shared
    shared.drop()


@pytest.fixture
def nodes(shared: SharedNodes, failed: Callable[[], bool]) -> Iterator[Nodes]:
    """Three of them, with a volume that n1 serves."""
    try:
        yield shared.ready()
    finally:
        if failed():
            shared.drop()  # what a test has broken is not the next one's


@contextmanager
def without(etcd: EtcdCluster) -> Iterator[None]:
    etcd.kill(0)
    try:
        yield
    finally:
        etcd.start(0)


def test_a_primary_that_is_killed_under_load_is_followed_and_nothing_is_lost(nodes: Nodes) -> None:
    epoch = volume(nodes, "n1")["epoch"]
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
    assert shown["epoch"] >= epoch + 2
    assert "not known" in shown["problem"]


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
        assert b"etcd says that n2 serves it: ask that one" in refused.stderr
    name, client = serving(nodes, "n2")
    with client:
        writer.check(client)
    assert name == "n2"


def test_a_rolling_restart_is_no_error_for_any_client(nodes: Nodes, client_tool: FindTool) -> None:
    """One node after the other is stopped and started again, as for a new version."""
    follower = Follower(nodes)
    try:
        with (
            QemuWriter(client_tool("qemu-io"), follower.address, 4) as qemu,
            Writer(nodes, range(BLOCKS // 2, BLOCKS)) as writer,
        ):
            for name in NAMES:
                writer.wait_for_more()
                until(lambda: volume(nodes, writer.at)["copies"] == 3, "all in sync", SLOW_S)
                served = writer.at == name
                before = len(nodes.daemons[name].stderr())
                assert nodes.daemons[name].stop() == 0
                if served:
                    until(lambda name=name: writer.at != name, "clients follow", SLOW_S)  # type: ignore[misc]
                    writer.wait_for_more()
                    begin, end = writer.gaps[-1]
                    print(f"{name} is stopped: {end - begin:.3f} s without an answer")
                    assert "handed over volumes=1" in nodes.daemons[name].stderr()[before:]
                nodes.start(name)
                qemu.wait_for_more()
            until(lambda: volume(nodes, writer.at)["copies"] == 3, "all in sync", SLOW_S)
        print(f"{writer.last} writes, {qemu.count} of qemu, {qemu.longest_s:.2f} s for the longest")
        assert writer.refused == []
    finally:
        follower.close()
    _, client = serving(nodes, *NAMES)
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
    nodes: Nodes, etcd: EtcdCluster
) -> None:
    with attached(nodes, "n1", timeout_s=SLOW_S) as client, without(etcd):
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
    _, client = serving(nodes, "n2", "n3")
    with client:
        assert client.read(0, BLOCK) == b"x" * BLOCK


def test_a_volume_is_there_again_after_all_nodes_were_killed_at_once(nodes: Nodes) -> None:
    with Writer(nodes) as writer:
        writer.wait_for_more()
        killed = time.monotonic()
        for name in NAMES:
            nodes.daemons[name].kill()
        for name in NAMES:
            nodes.start(name)
        writer.wait_for_more()
        print(f"from kill to the first acknowledged write: {writer.gaps[-1][1] - killed:.2f} s")
    name, client = serving(nodes, *NAMES)
    with client:
        writer.check(client)
    until(lambda: volume(nodes, name)["copies"] == 3, "all have all again", SLOW_S)


def test_who_takes_over_may_be_killed_in_the_middle_of_it(nodes: Nodes) -> None:
    until(lambda: volume(nodes, "n1")["copies"] == 3, "all in sync", SLOW_S)
    with Writer(nodes) as writer:
        writer.wait_for_more()
        before = {name: len(nodes.daemons[name].stderr()) for name in NAMES}
        nodes.daemons["n1"].kill()
        logs = {name: nodes.daemons[name] for name in ("n2", "n3")}

        def begun() -> list[str]:
            return [
                name for name in logs if "takeover begins" in logs[name].stderr()[before[name] :]
            ]

        until(lambda: bool(begun()), "somebody begins", SLOW_S)
        name = begun()[0]
        nodes.daemons[name].kill()  # it waits for the lease of n1, most of the time
        for each in ("n1", name):
            nodes.start(each)
        writer.wait_for_more()
    name, client = serving(nodes, *NAMES)
    with client:
        writer.check(client)
    until(lambda: volume(nodes, name)["copies"] == 3, "all have all again", SLOW_S)


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
