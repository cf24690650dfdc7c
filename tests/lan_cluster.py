"""Three nodes and three members of etcd, each on a machine of its own (`tests.namespaces`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockd.iscsi.targets import IQN_PREFIX
from tests.cluster_daemons import Nodes, Place
from tests.etcd_cluster import EtcdCluster, EtcdPlace, etcd_cluster
from tests.failover_rig import NAMES, VOLUME, created
from tests.namespaces import Lan

ETCD = ("etcd1", "etcd2", "etcd3")
CLIENT = "client"
NBD_PORT, ISCSI_PORT, PEER_PORT = 10809, 3260, 10811
EXPOSED = "\n[nbd]\ninsecure = true\n\n[iscsi]\ninsecure = true\nauto_targets = true\n"


class LanCluster:
    """The volume `VOLUME` is served by n1 to begin with. Clients are where `CLIENT` is."""

    def __init__(self, lan: Lan, nodes: Nodes, etcd: EtcdCluster) -> None:
        self.lan = lan
        self.nodes = nodes
        self.etcd = etcd

    def isolate(self, name: str) -> None:
        """A node has its clients, and nobody else."""
        self.lan.cut(name, "peers", "store")

    def nbd_uri(self, name: str) -> str:
        return f"nbd://{self.lan.address(name, 'front')}:{NBD_PORT}/{VOLUME}"

    def iscsi_url(self, name: str) -> str:
        portal = f"{self.lan.address(name, 'front')}:{ISCSI_PORT}"
        return f"iscsi://{portal}/{IQN_PREFIX}{VOLUME}/0"


@contextmanager
def lan_cluster(etcd_program: str, folder: Path) -> Iterator[LanCluster]:
    """This thread, and what it starts, is where clients are as long as the context lasts."""
    (folder / "etcd").mkdir()
    (folder / "n").mkdir()
    with Lan((*NAMES, *ETCD, CLIENT)) as lan, lan.entered(CLIENT):
        members = [EtcdPlace(tuple(lan.prefix(each)), lan.address(each, "store")) for each in ETCD]
        with etcd_cluster(etcd_program, folder / "etcd", len(ETCD), members) as etcd:
            places = {name: _place(lan, name) for name in NAMES}
            nodes = Nodes(folder / "n", etcd, "lan", places)
            try:
                yield LanCluster(lan, created(nodes), etcd)
            finally:
                nodes.close()


def _place(lan: Lan, name: str) -> Place:
    front = lan.address(name, "front")
    return Place(
        prefix=tuple(lan.prefix(name)),
        peers=f"{lan.address(name, 'peers')}:{PEER_PORT}",
        listen=("--nbd", f"{front}:{NBD_PORT}", "--iscsi", f"{front}:{ISCSI_PORT}"),
        config=EXPOSED,
    )
