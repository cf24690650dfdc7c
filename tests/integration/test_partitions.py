"""A cluster whose machines are cut off from each other, in one direction or both, under clients.

One cluster lives through all of it (`tests.lan_cluster`): each test begins when all three copies
are complete, and heals what it broke.
"""

import os
import signal
import struct
import time
from collections.abc import Iterator

import pytest

from tests.clients import FindTool
from tests.failover_rig import (
    BLOCK,
    BLOCKS,
    LOST,
    NAMES,
    SLOW_S,
    VOLUME,
    Writer,
    attached,
    serving,
    volume,
)
from tests.integration.qemu import io
from tests.lan_cluster import LanCluster, lan_cluster
from tests.namespaces import missing
from tests.nbd_client import NbdClient
from tests.peer_nodes import until

CMD_READ, CMD_WRITE = 0, 1
RUN = 16  # blocks of one large write


@pytest.fixture(scope="module")
def made(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LanCluster]:
    if why := missing():
        pytest.skip(why)
    with lan_cluster(client_tool("etcd"), tmp_path_factory.mktemp("l")) as cluster:
        yield cluster


@pytest.fixture
def cluster(made: LanCluster) -> Iterator[LanCluster]:
    """All is well: three copies, of nothing but zeros, and n1 is the primary."""
    complete(made)
    name, client = serving(made.nodes, *NAMES)
    with client:
        client.write(0, bytes(BLOCKS * BLOCK))
    if name != "n1":
        made.nodes.daemons[name].run("volume", "move", VOLUME, "n1")
    try:
        yield made
    finally:
        made.lan.heal()


def complete(cluster: LanCluster) -> None:
    def whole() -> bool:
        return any(volume(cluster.nodes, name)["copies"] == len(NAMES) for name in NAMES)

    until(whole, "all copies are complete", SLOW_S)


def stamp(side: str, number: int) -> bytes:
    return (side.encode() + struct.pack("<Q", number)[:7]) * (BLOCK // 8)


def everything(client: NbdClient) -> bytes:
    return client.read(0, BLOCK * BLOCKS)


def test_split_brain_keeps_both_or_refuses_and_never_merges_blocks(cluster: LanCluster) -> None:
    """A volume whose primary is cut off with its clients: both sides are written to. Only the side
    with the quorum acknowledges, and the volume is that side's afterwards, to the last block."""
    nodes = cluster.nodes
    with attached(nodes, "n1") as client:
        before = [stamp("0", block) for block in range(BLOCKS)]
        for block, data in enumerate(before):
            client.write(block * BLOCK, data)
    ours = attached(nodes, "n1", timeout_s=SLOW_S)
    island = attached(nodes, "n1", timeout_s=SLOW_S)
    cluster.isolate("n1")
    cut = time.monotonic()
    for block in range(0, BLOCKS, 2):  # single blocks, then runs of them, over all of the volume
        island.send_request(CMD_WRITE, block * BLOCK, BLOCK, payload=stamp("a", block))
    for block in range(0, BLOCKS, RUN):
        data = b"".join(stamp("A", block + each) for each in range(RUN))
        island.send_request(CMD_WRITE, block * BLOCK, RUN * BLOCK, payload=data)

    name, client = serving(nodes, "n2", "n3")
    print(f"the other side serves after {time.monotonic() - cut:.2f} s")
    expected = list(before)
    with client:
        assert everything(client) == b"".join(before)
        for block in range(0, BLOCKS, 3):
            client.write(block * BLOCK, stamp("b", block))
            expected[block] = stamp("b", block)
        for block in range(RUN // 2, BLOCKS, 4 * RUN):  # across the island's runs
            run = [stamp("B", block + each) for each in range(RUN)]
            client.write(block * BLOCK, b"".join(run))
            expected[block : block + RUN] = run
        client.flush()
    # The island, as long as it is one: nobody is told that anything was written, nor what is read.
    ours.send_request(CMD_READ, 0, BLOCK)
    cluster.lan.heal()
    for each in (island, ours):
        assert not any(done_well(each)), "the side without the quorum has answered"
    complete(cluster)
    assert volume(nodes, name)["primary"] == name

    # One history, on each of the three.
    for target in sorted(NAMES, key=lambda each: each != name):
        if target != name:
            serves = volume(nodes, target)["primary"]
            nodes.daemons[serves].run("volume", "move", VOLUME, target)
        with attached(nodes, target) as client:
            found = everything(client)
        wrong = [n for n in range(BLOCKS) if found[n * BLOCK : (n + 1) * BLOCK] != expected[n]]
        assert not wrong, f"{target}: blocks {wrong} are not of the side that had the quorum"


def done_well(client: NbdClient) -> Iterator[bool]:
    """Whether each reply, until the connection ends, says that all is well."""
    with client:
        try:
            while True:
                yield client.read_reply().error == 0
        except LOST:
            return


def test_a_primary_that_hears_and_is_not_heard_is_followed(
    cluster: LanCluster, client_tool: FindTool
) -> None:
    """What it sends is lost, what is sent to it arrives; its clients reach it all the time, over
    iSCSI as well."""
    qemu_io = client_tool("qemu-io")
    with Writer(cluster.nodes) as writer:
        writer.wait_for_more()
        for other in ("n2", "n3"):
            cluster.lan.lose("n1", other, "peers")
        lost = time.monotonic()
        until(lambda: writer.at != "n1", "another node is found", SLOW_S)
        writer.wait_for_more()
        print(f"until the first acknowledged write: {writer.gaps[-1][1] - lost:.2f} s")
        serves = writer.at
    with attached(cluster.nodes, serves) as client:
        writer.check(client)
    io(qemu_io, cluster.iscsi_url(serves), "write -P 0x5a 0 64k", "flush", "read -P 0x5a 0 64k")
    cluster.lan.heal()
    complete(cluster)
    io(qemu_io, cluster.nbd_uri(serves), "read -P 0x5a 0 64k")


def test_io_goes_on_without_etcd_and_with_two_members_of_it(cluster: LanCluster) -> None:
    nodes = cluster.nodes
    with Writer(nodes) as writer:
        writer.wait_for_more()
        epoch = volume(nodes, "n1")["epoch"]
        cluster.etcd.kill(0)  # its leader or not: two are left, and agree on another
        writer.wait_for_more(200)
        until(lambda: moved(cluster, "n2"), "a volume moves with two members of etcd", SLOW_S)
        until(lambda: writer.at == "n2", "the client follows", SLOW_S)
        assert volume(nodes, "n2")["epoch"] > epoch
        cluster.etcd.start(0)
        for name in NAMES:
            cluster.lan.cut(name, "store")
        before, gaps = writer.last, len(writer.gaps)
        cut = time.monotonic()
        while time.monotonic() < cut + 3.0:
            writer.wait_for_more()
        print(f"{writer.last - before} writes in 3 s without etcd")
        cluster.lan.heal()
        assert (writer.at, len(writer.gaps)) == ("n2", gaps), "the client had to attach anew"
    with attached(nodes, "n2") as client:
        writer.check(client)


def moved(cluster: LanCluster, to: str) -> bool:
    """It may take a moment, until etcd has a leader."""
    serves = volume(cluster.nodes, "n3")["primary"]
    if serves == to:
        return True
    return cluster.nodes.daemons[serves].finish("volume", "move", VOLUME, to).returncode == 0


def test_a_primary_that_was_paused_beyond_its_lease_shows_nothing_old(
    cluster: LanCluster, client_tool: FindTool
) -> None:
    nodes, qemu_io = cluster.nodes, client_tool("qemu-io")
    old = attached(nodes, "n1", timeout_s=SLOW_S)
    io(qemu_io, cluster.iscsi_url("n1"), "write -P 0x61 0 4k", "flush")
    assert old.read(0, BLOCK) == b"a" * BLOCK
    idle = attached(nodes, "n1", timeout_s=SLOW_S)
    assert idle.read(0, BLOCK) == b"a" * BLOCK
    pid = nodes.daemons["n1"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        paused = time.monotonic()
        name, client = serving(nodes, "n2", "n3")
        client.close()
        print(f"paused primary followed after {time.monotonic() - paused:.2f} s")
        url = cluster.iscsi_url(name)
        io(qemu_io, url, "read -P 0x61 0 4k", "write -P 0x62 0 4k", "flush")
        old.send_request(CMD_READ, 0, BLOCK)  # waits in its socket
    finally:
        os.kill(pid, signal.SIGCONT)
    assert not any(done_well(old)), "a read is answered by who is not the primary any more"
    with pytest.raises(LOST), idle:
        idle.read(0, BLOCK)
    complete(cluster)
    io(qemu_io, cluster.nbd_uri(name), "read -P 0x62 0 4k")
