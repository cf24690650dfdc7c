"""Volumes of a cluster for tests of the API and the CLI; satisfies blockd.api.node.Volumes."""

from dataclasses import replace

from blockd.api.cluster_types import (
    ClusterNodeInfo,
    ClusterStatus,
    ClusterVolume,
    CopyInfo,
    LocalVolume,
    MovedVolume,
    ReplacedMember,
    StripesInfo,
)
from volume.metastore_records import Mode

NODES = tuple((name, letter * 32) for name, letter in (("n1", "a"), ("n2", "b"), ("n3", "c")))


def copy(number: int, behind: int = 0) -> CopyInfo:
    """Of a volume with 120 records of epoch 4, which n1 serves."""
    name, node = NODES[number]
    have = 120 - behind
    in_step = behind == 0
    made = CopyInfo(node, name, True, "", 4, 4, have, 100, behind, 0.2, number == 0, in_step)
    return replace(made, behind_bytes=0, behind_s=0.0, left_s=0.0) if in_step else made


def silent(number: int, why: str) -> CopyInfo:
    name, node = NODES[number]
    return CopyInfo(node, name, False, why, *(None,) * 8)


VOLUME = ClusterVolume(
    name="vm1",
    volume="7" * 32,
    epoch=4,
    state="open",
    primary="n1",
    mode="mirror",
    copies=3,
    wanted=3,
    write_quorum=2,
    members=(copy(0), copy(1), copy(2)),
    doing="serving",
    problem="",
)


class FakeVolumes:
    def __init__(self) -> None:
        self.shown = (VOLUME,)
        self.metastore = ""
        self.stripes: StripesInfo | None = None
        self.made: tuple[object, ...] = ()
        self.moved: tuple[str, str] | None = None
        self.error: Exception | None = None
        self.local = [LocalVolume("vm1", True, 2, 3, (("n2", 0), ("n3", 7)))]

    def here(self) -> list[LocalVolume]:
        return self.local

    def status(self) -> ClusterStatus:
        nodes = tuple(
            ClusterNodeInfo(node, name, name != "n3", 61.0, "" if name != "n3" else "silent")
            for name, node in NODES
        )
        return ClusterStatus("n1", self.metastore, 0.01, nodes, self.shown, self.stripes)

    def create(
        self, name: str, sizes: tuple[int, int, int], replicas: int, quorum: int, mode: Mode
    ) -> ClusterVolume:
        if self.error is not None:
            raise self.error
        self.made = (name, sizes, replicas, quorum, mode)
        return replace(VOLUME, name=name, members=VOLUME.members[:replicas])

    def move(self, name: str, node: str) -> MovedVolume:
        if self.error is not None:
            raise self.error
        self.moved = (name, node)
        return MovedVolume(name, node, 0.071)

    def create_like(self, source: str, name: str, sizes: tuple[int, int, int]) -> bool:
        return False

    def replace_member(self, name: str, old: str, new: str | None) -> ReplacedMember:
        if self.error is not None:
            raise self.error
        return ReplacedMember(name, old, new or "n4")

    def delete(self, name: str, *, force: bool) -> bool:
        if self.error is not None:
            raise self.error
        if name not in [each.name for each in self.local]:
            return False
        self.local = [each for each in self.local if each.name != name]
        return True
