"""Settings that nodes share by the MetaStore: who keeps what, and what a bad row does."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pytest

from blockd.api.limit_types import VolumeLimits
from blockd.cluster.settings import SharedSettings
from blockd.limits import RateLimits
from tests.metastore_twin import DictMetaStore
from tests.peer_nodes import until
from tests.sim.store_rig import StoreRig
from volume.errors import NotPrimary, VolumeExists
from volume.metastore import Change, ClusterRecords, Lost, MetaStoreUnavailable, Outcome, Row
from volume.metastore_records import (
    CorruptRecord,
    GroupState,
    Mode,
    SettingsRecord,
    VolumeGroup,
)
from volume.store import Store

UUID = bytes(range(16))
FAST = VolumeLimits(iops=500)


class Etcd(DictMetaStore):
    """Loses the next `lost` races; silent while `down`."""

    lost = 0
    down = False

    def read(self, key: str) -> Row | None:
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().read(key)

    def commit(self, changes: Sequence[Change]) -> Outcome:
        if self.lost:
            self.lost -= 1
            return Lost((None,))
        return super().commit(changes)


class Node:
    """A store with the volume, which the MetaStore's row is about."""

    def __init__(self, records: ClusterRecords, seed: int) -> None:
        self.rig = StoreRig(seed=seed)
        self.rig.store.replicas.create(UUID, "vm1", 1 << 20, 512, 4096, 1)
        self.rig.store.create_volume("alone", 1 << 20)
        self.limits = RateLimits(self.store)
        self.shared = SharedSettings(records, self.store.replicas, self.store, 0.01)

    @property
    def store(self) -> Store:
        return self.rig.store

    def has(self) -> tuple[int, str, tuple[int, str] | None]:
        policy, schedule = self.store.versions.policy("vm1"), self.store.snapshots.schedule("vm1")
        kept = None if schedule is None else (schedule.every_s, schedule.keep)
        return self.limits.get("vm1").limits.iops, policy.keep, kept


@dataclass
class Nodes:
    etcd: Etcd = field(default_factory=Etcd)

    def __post_init__(self) -> None:
        self.records = ClusterRecords(self.etcd, lambda: os.urandom(16).hex())
        self.one, self.two = Node(self.records, 1), Node(self.records, 2)
        for node in (self.one, self.two):
            node.shared._limits = node.limits


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.one.shared.stop()
    made.two.shared.stop()


def test_what_one_node_is_told_the_others_keep(nodes: Nodes) -> None:
    one, two = nodes.one, nodes.two
    assert one.shared.share("vm1", lambda old: replace(old, limits=FAST, keep="7d"))
    assert one.shared.share("vm1", lambda old: replace(old, schedule_s=60, schedule_keep="24h"))
    assert one.has() == (500, "7d", (60, "24h"))
    two.shared.start(two.limits)
    until(lambda: two.has() == one.has(), "the other node has read it")
    assert two.shared.share("vm1", lambda old: replace(old, schedule_s=0, schedule_keep=""))
    one.shared._look()
    assert one.has() == (500, "7d", None)
    kept = RateLimits(two.store)  # as after a start without the MetaStore
    assert kept.get("vm1").limits == FAST


def test_the_first_row_begins_with_what_the_node_has(nodes: Nodes) -> None:
    nodes.one.store.versions.set_policy("vm1", keep="3w")
    nodes.one.shared.share("vm1", lambda old: replace(old, limits=FAST))
    nodes.two.shared._look()
    assert nodes.two.has() == (500, "3w", None)


def made(nodes: Nodes, volume: str, name: str) -> None:
    group = VolumeGroup(
        *(volume, name, 1, "1" * 32, ("1" * 32, "2" * 32), 2, 2, Mode.MIRROR),
        *(None, "main", GroupState.OPEN),
    )
    nodes.records.commit(nodes.records.create_volume(group))


def test_a_volume_gets_another_name_on_every_node(nodes: Nodes) -> None:
    one, two = nodes.one, nodes.two
    made(nodes, UUID.hex(), "vm1")
    made(nodes, "e" * 32, "taken")
    one.shared.share("vm1", lambda old: replace(old, limits=FAST))
    with pytest.raises(NotPrimary):
        one.shared.rename("vm1", "vm2")
    replica = one.store.replicas.get(UUID)
    assert replica is not None
    replica.begin(1, 0)
    replica.serve(1)
    for taken in ("taken", "alone"):  # by a volume of other nodes, and by one of this
        with pytest.raises(VolumeExists):
            one.shared.rename("vm1", taken)
    assert one.shared.rename("vm1", "vm2")
    assert not one.shared.rename("alone", "vm3")
    two.store.create_volume("vm2", 1 << 20)
    with pytest.raises(VolumeExists):
        two.shared._look()
    assert two.limits.get("vm1").limits == FAST  # the rest holds all the same
    two.store.delete_volume("vm2")
    for _ in range(2):
        two.shared._look()
        one.shared._look()
        for node in (one, two):
            assert sorted(node.store.names()) == ["alone", "vm2"]
            assert node.limits.get("vm2").limits == FAST
    assert nodes.records.volume_named("vm1") is None
    made(nodes, "f" * 32, "vm1")  # the name is free again
    assert two.shared.share("vm2", lambda old: replace(old, keep="1w"))
    one.shared._look()
    assert one.store.names() == ["alone", "vm2"]


def test_a_volume_of_one_node_has_no_row(nodes: Nodes) -> None:
    assert not nodes.one.shared.share("alone", lambda old: replace(old, limits=FAST))
    assert nodes.etcd.list(SettingsRecord.prefix) == []


def test_nothing_changes_while_the_metastore_cannot_be_told(nodes: Nodes) -> None:
    nodes.etcd.down = True
    with pytest.raises(MetaStoreUnavailable):
        nodes.one.shared.share("vm1", lambda old: replace(old, limits=FAST))
    nodes.etcd.down = False
    nodes.etcd.lost = 100
    with pytest.raises(MetaStoreUnavailable, match="try again"):
        nodes.one.shared.share("vm1", lambda old: replace(old, limits=FAST))
    assert nodes.one.has()[0] == 0


def test_a_change_beside_another_one_loses_neither(nodes: Nodes) -> None:
    nodes.one.shared.share("vm1", lambda old: replace(old, keep="1w"))
    nodes.etcd.lost = 1
    nodes.two.shared.share("vm1", lambda old: replace(old, limits=FAST))
    nodes.one.shared._look()
    assert nodes.one.has() == nodes.two.has() == (500, "1w", None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"limits": 5}', '{"limits": "{}", "x": 1}'])
def test_a_row_that_makes_no_sense_changes_nothing(nodes: Nodes, text: str) -> None:
    nodes.one.shared.share("vm1", lambda old: replace(old, limits=FAST))
    old = nodes.records.settings(UUID.hex())
    nodes.records.commit(nodes.records.put(old, SettingsRecord(UUID.hex(), text)))
    with pytest.raises(CorruptRecord, match="make no sense"):
        nodes.one.shared._look()
    assert nodes.one.has()[0] == 500


def test_a_row_that_makes_no_sense_stands_in_the_way_of_no_other(nodes: Nodes) -> None:
    first = bytes(16)
    nodes.one.store.replicas.create(first, "vm0", 1 << 20, 512, 4096, 1)
    nodes.two.shared.share("vm1", lambda old: replace(old, limits=FAST))
    nodes.records.commit(nodes.records.put(None, SettingsRecord(first.hex(), "{}")))
    with pytest.raises(CorruptRecord, match=first.hex()):
        nodes.one.shared._look()
    assert nodes.one.has()[0] == 500
