"""The kernel's clients of a volume on three nodes: the node that serves it dies, I/O goes on."""

from collections.abc import Iterator

import pytest

from blockd.iscsi.targets import IQN_PREFIX
from tests.clients import find_tool, unavailable
from tests.cluster_daemons import Nodes, Place, up
from tests.daemon import Daemon
from tests.etcd_cluster import etcd_cluster
from tests.failover_rig import NAMES
from tests.kernel.conftest import undone
from tests.kernel.machine import Machine
from tests.kernel.multipath import CLUSTER, multipath, until_checked
from tests.kernel.rig import FIO, FIO_S, MiB, Rig, portals_of
from tests.libiscsi import RESERVATION_CONFLICT, Session
from tests.peer_nodes import until
from tests.ports import free_ports

PACED = "--rw=randwrite --bs=4k --iodepth=16 --size=6m --rate_iops=150 --verify_backlog=256"
BEFORE = 200  # of its 1536 writes
SLOW_S = 120.0
WRITE_10 = bytes.fromhex("2a000000000000000100")
# Numbered blocks, each synced before its number is noted: what is noted has to be there later.
WRITER = """
    number=0
    while [ ! -e /tmp/enough ]; do
        number=$((number + 1))
        echo $number | dd of=/mnt/disk/block$number bs=4096 conv=sync,fsync status=none
        echo $number >>/tmp/noted
    done
"""
ALL_THERE = """
    test -s /tmp/noted
    for number in $(cat /tmp/noted); do
        test "$(tr -d '\\000 ' </mnt/disk/block$number)" = $number || echo lost $number
    done
"""


class Cluster:
    """Three nodes that have the same addresses after each start."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self._count = 0

    def daemon(self, name: str) -> Daemon:
        return self.nodes.daemons[name]

    def volume(self, size: int) -> str:
        """A new one, that n1 serves and all of them have, with the ways to it known."""
        self._count += 1
        name = f"shared{self._count}"
        self.daemon("n1").run("cluster", "create", name, str(size))
        until(lambda: self.server(name) == "n1", f"n1 serves {name}", SLOW_S)
        until(lambda: self._ways(name, "n1") == 3, "all ways are known", SLOW_S)
        return name

    def _ways(self, volume: str, at: str) -> int:
        with self.daemon(at).control() as client:
            return len(client.ways(volume).ways)

    def server(self, volume: str) -> str:
        """The node that serves it, as a node that runs says; "" where none does."""
        for name in NAMES:
            if not self.daemon(name).running:
                continue
            with self.daemon(name).control() as client:
                found = next(each for each in client.ways(volume).ways if each.here)
            if found.state == "serving":
                return name
        return ""

    def moved(self, volume: str, old: str) -> str:
        until(lambda: self.server(volume) not in ("", old), "another node serves it", SLOW_S)
        return self.server(volume)

    def whole(self) -> None:
        """All nodes run, and all volumes have three copies."""
        for name in NAMES:
            if not self.daemon(name).running:
                self.daemon(name).discard()
                self.nodes.start(name)

        def complete() -> bool:
            with self.daemon("n1").control() as client:
                volumes = client.cluster_status().volumes
            return all(each.copies == 3 for each in volumes)

        until(complete, "all copies are complete", SLOW_S)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    program = find_tool("etcd")
    if program is None:
        unavailable("etcd")
    ports = free_ports(6)
    places = {
        name: Place(
            listen=("--nbd", f"127.0.0.1:{ports[at]}", "--iscsi", f"127.0.0.1:{ports[at + 3]}")
        )
        for at, name in enumerate(NAMES)
    }
    with etcd_cluster(program, tmp_path_factory.mktemp("etcd"), 1) as etcd:
        nodes = Nodes(tmp_path_factory.mktemp("n"), etcd, "kernel", places)
        try:
            up(nodes, *NAMES)
            yield Cluster(nodes)
        finally:
            nodes.close()


@pytest.fixture
def cluster(machine: Machine, shared: Cluster) -> Iterator[Cluster]:
    with undone(machine):
        shared.whole()
        yield shared


@pytest.fixture
def rig(machine: Machine, cluster: Cluster) -> Rig:
    return Rig(machine, cluster.daemon("n1"))


def multipath_to(rig: Rig, cluster: Cluster, volume: str) -> str:
    """The device of a volume with a path to each node: one is good, two are standby."""
    portals = [portals_of(cluster.daemon(name))[0] for name in NAMES]
    device, paths = multipath(rig, volume, portals, CLUSTER)
    assert len(set(paths.values())) == 3
    until_checked(rig, "ready", 1)
    until_checked(rig, "ghost", 2)
    return device


def test_multipath_follows_a_file_system_to_another_node_when_its_node_is_killed(
    rig: Rig, cluster: Cluster
) -> None:
    volume = cluster.volume(256 * MiB)
    device = multipath_to(rig, cluster, volume)
    rig.run(f"""
        mkfs.ext4 -q {device}
        mkdir -p /mnt/disk
        mount -t ext4 {device} /mnt/disk
        rm -f /tmp/noted /tmp/enough
    """)
    logged = len(rig.machine.kernel_log())
    writer = rig.begin(WRITER, FIO_S)
    fio = rig.begin(f"{FIO} --name=job --filename=/mnt/disk/fio {PACED}", FIO_S)
    mapped = rig.run(f"realpath {device}").strip()
    rig.until_written(mapped, BEFORE)
    cluster.daemon("n1").kill()
    noted = int(rig.run("wc -l </tmp/noted"))
    heir = cluster.moved(volume, "n1")
    rig.run(f"until [ $(wc -l </tmp/noted) -gt {noted + 1} ]; do sleep 0.1; done")
    assert writer.running
    fio.wait()
    until_checked(rig, "ready", 1)
    until_checked(rig, "faulty", 1)

    cluster.whole()
    until_checked(rig, "ghost", 2)
    cluster.daemon(heir).run("volume", "move", volume, "n1")
    noted = int(rig.run("wc -l </tmp/noted"))
    rig.run(f"until [ $(wc -l </tmp/noted) -gt {noted + 5} ]; do sleep 0.1; done")
    rig.run("touch /tmp/enough")
    writer.wait()
    assert cluster.server(volume) == "n1"
    rig.run(f"""
        umount /mnt/disk
        e2fsck -fn {device}
        mount -t ext4 {device} /mnt/disk
    """)
    assert rig.run(ALL_THERE) == ""
    rig.run("umount /mnt/disk")
    said = rig.machine.kernel_log()[logged:].splitlines()
    upper = [line for line in said if "EXT4" in line or "JBD2" in line or "dm-0" in line]
    assert not [line for line in upper if "error" in line.lower()], upper


def test_a_reservation_of_all_paths_holds_on_the_node_that_takes_over(
    rig: Rig, cluster: Cluster
) -> None:
    """As Pacemaker's fence_mpath uses them; a host without a registration stays out."""
    volume = cluster.volume(64 * MiB)
    rig.put("/etc/multipath/conf.d/key.conf", "defaults {\n    reservation_key 0xb10c\n}\n")
    device = multipath_to(rig, cluster, volume)
    rig.run(f"""
        mpathpersist --out --register --param-sark=0xb10c {device}
        mpathpersist --out --reserve --param-rk=0xb10c --prout-type=5 {device}
    """)
    keys = f"mpathpersist --in --read-keys {device}"
    assert rig.run(keys).count("0xb10c") == 3
    write = f"dd if=/dev/zero of={device} bs=4k count=1 oflag=direct status=none"
    rig.run(write)
    cluster.daemon("n1").kill()
    heir = cluster.moved(volume, "n1")
    rig.run(write)
    assert "Write Exclusive, registrants only" in rig.run(
        f"mpathpersist --in --read-reserv {device}"
    )
    portal = cluster.daemon(heir).iscsi_address
    with Session(portal, f"{IQN_PREFIX}{volume}") as stranger:
        assert stranger.told(WRITE_10, data=bytes(512)).status == RESERVATION_CONFLICT
    rig.run(f"""
        mpathpersist --out --release --param-rk=0xb10c --prout-type=5 {device}
        mpathpersist --out --clear --param-rk=0xb10c {device}
    """)


def test_an_nbd_device_follows_to_another_node_when_its_node_is_killed(
    rig: Rig, cluster: Cluster
) -> None:
    volume = cluster.volume(128 * MiB)
    device = rig.nbd(volume, "-timeout 5")
    rig.reconnecting(volume, cluster.daemon("n2"), cluster.daemon("n3"))
    job = rig.begin(f"{FIO} --name=job --filename={device} {PACED}", FIO_S)
    rig.until_written(device, BEFORE)
    cluster.daemon("n1").kill()
    assert job.running
    ended = rig.written(device)
    cluster.moved(volume, "n1")
    rig.until_written(device, ended + 1)
    job.wait()
    assert "to server" in rig.run("cat /tmp/reconnect0")
