"""What an administrator has done to a volume of three real daemons is there after its primary dies,
and on a member that was away meanwhile, when that one becomes the primary."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from blockd.api.limit_types import VolumeLimits
from tests.clients import FindTool
from tests.cluster_daemons import Nodes
from tests.etcd_cluster import etcd_cluster
from tests.failover_rig import BLOCK, LOST, SLOW_S, VOLUME, attached, created, serving
from tests.nbd_client import NbdClient
from tests.peer_nodes import until

SIZE = 4 << 20
CLONE = "copy"


@pytest.fixture
def nodes(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("n")
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 1) as etcd:
        made = Nodes(folder, etcd, folder.name)
        try:
            yield created(made)
        finally:
            made.close()


def names(nodes: Nodes, at: str) -> list[str]:
    with nodes.daemons[at].control() as control:
        return [each.name for each in control.snapshots(VOLUME)]


def copies(nodes: Nodes, at: str) -> int | None:
    with nodes.daemons[at].control() as control:
        volumes = control.cluster_status().volumes
        return next(each.copies for each in volumes if each.name == VOLUME)


@contextmanager
def opened(nodes: Nodes, at: str, export: str) -> Iterator[NbdClient]:
    host, _, port = nodes.daemons[at].ready["nbd"][0].rpartition(":")
    with NbdClient((host, int(port)), timeout_s=SLOW_S) as client:
        client.greet()
        client.go(export)
        yield client


def first_block(nodes: Nodes, at: str, export: str) -> bytes:
    with opened(nodes, at, export) as client:
        return client.read(0, BLOCK)[:1]


def clone_is_there(nodes: Nodes, *at: str) -> bool:
    """At one of these, with what it began as and what was written to it."""
    for name in at:
        with suppress(*LOST), opened(nodes, name, CLONE) as client:
            return client.read(0, 2 * BLOCK) == b"a" * BLOCK + b"e" * BLOCK
    return False


def check(nodes: Nodes, at: str) -> None:
    """All that was ordered, at the node that serves the volume now."""
    assert names(nodes, at) == ["before", "after"]
    assert first_block(nodes, at, f"{VOLUME}@before") == b"a"
    assert first_block(nodes, at, f"{VOLUME}@after") == b"b"
    assert first_block(nodes, at, VOLUME) == b"b"  # it went back there
    with nodes.daemons[at].control() as control:
        assert control.volume(VOLUME).size == SIZE

        def kept() -> bool:
            schedule = control.schedule(VOLUME)
            every_s = None if schedule is None else schedule.every_s
            return (control.limits(VOLUME).limits.iops, every_s) == (5000, 3600)

        until(kept, f"{at} has limits and schedule")


def test_orders_survive_their_primary_and_reach_who_was_away(nodes: Nodes) -> None:
    nodes.daemons["n3"].kill()
    with (
        nodes.daemons["n1"].control() as control,
        attached(nodes, "n1", timeout_s=SLOW_S) as client,
    ):
        client.write(0, b"a" * BLOCK)
        control.create_snapshot("before", [VOLUME], pinned=True)
        client.write(0, b"b" * BLOCK)
        control.create_snapshot("gone", [VOLUME])
        control.create_snapshot("after", [VOLUME])
        client.write(0, b"d" * BLOCK)
        again = ("volume", "restore", VOLUME, "--to", "after", "--yes")
        assert b"attached by 1 client" in nodes.daemons["n1"].finish(*again).stderr
        back = nodes.daemons["n1"].finish(*again, "--force")
        assert back.returncode == 0, back.stderr
        with pytest.raises((OSError, EOFError)):  # it was cut off: it knows what is not so any more
            client.read(0, BLOCK)
        kept = names(nodes, "n1")[-1]
        assert f"--to {kept}".encode() in back.stdout
        assert first_block(nodes, "n1", f"{VOLUME}@{kept}") == b"d"
        control.delete_snapshot(VOLUME, kept)
        control.resize_volume(VOLUME, SIZE)
        control.delete_snapshot(VOLUME, "gone")
        control.set_limits(VOLUME, VolumeLimits(iops=5000))
        control.set_schedule(VOLUME, 3600, "24h")
    with attached(nodes, "n1", timeout_s=SLOW_S) as client:
        client.write(SIZE - BLOCK, b"c" * BLOCK)
    check(nodes, "n1")
    refused = nodes.daemons["n2"].finish("snapshot", "create", f"{VOLUME}@other")
    assert refused.returncode == 5
    assert b"not its primary" in refused.stderr

    nodes.start("n3")
    until(lambda: copies(nodes, "n1") == 3, "n3 has all", SLOW_S)
    made = nodes.daemons["n1"].finish("volume", "clone", f"{VOLUME}@before", CLONE)
    assert made.returncode == 0, made.stderr
    with opened(nodes, "n1", CLONE) as client:
        assert client.read(0, BLOCK) == b"a" * BLOCK
        client.write(BLOCK, b"e" * BLOCK)
    nodes.daemons["n1"].kill()
    name, client = serving(nodes, "n2", "n3")
    client.close()
    check(nodes, name)
    until(lambda: clone_is_there(nodes, "n2", "n3"), "the clone is served", SLOW_S)
    if name != "n3":
        until(lambda: copies(nodes, name) == 2, "n3 is in step", SLOW_S)
        with nodes.daemons[name].control() as control:
            control.move_volume(VOLUME, "n3")
    _, client = serving(nodes, "n3")
    with client:
        assert client.read(SIZE - BLOCK, BLOCK) == b"c" * BLOCK
    check(nodes, "n3")
    with nodes.daemons["n3"].control() as control:
        control.delete_snapshot(VOLUME, "before", force=True)
        assert names(nodes, "n3") == ["after"]
        assert control.rename_volume(VOLUME, "vm9").name == "vm9"
    with nodes.daemons["n2"].control() as control:
        until(
            lambda: {"vm9", VOLUME} & {each.name for each in control.volumes()} == {"vm9"},
            "n2 knows the name, and the old one no more",
        )
