"""Access lists that nodes share by the MetaStore: who is told what, and what a bad row does."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from blockd.access import kept
from blockd.access.book import revision
from blockd.access.rules import AccessChanged, AccessList, Rule
from blockd.cluster.lists import SharedLists
from tests.metastore_twin import DictMetaStore
from tests.peer_nodes import until
from volume.metastore import (
    Change,
    ClusterRecords,
    Lost,
    MetaStoreUnavailable,
    Outcome,
    Row,
    Unknown,
)
from volume.metastore_records import AccessRecord

UUID, ALONE = bytes(range(16)), bytes(16)
ROOT = AccessList((Rule(uid=0),))


class Etcd(DictMetaStore):
    """Loses the next `unknown` answers, and the next `lost` races; silent while `down`."""

    unknown = lost = 0
    down = False

    def read(self, key: str) -> Row | None:
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().read(key)

    def list(self, prefix: str, after: str = "", limit: int = 128) -> Sequence[Row]:
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().list(prefix, after, limit)

    def commit(self, changes: Sequence[Change]) -> Outcome:
        if self.lost:
            self.lost -= 1
            return Lost((None,))
        outcome = super().commit(changes)
        if self.unknown:
            self.unknown -= 1
            return Unknown("the answer was lost")
        return outcome


@dataclass
class Volume:
    uuid: bytes
    name: str = "vm1"


class Replicas(dict[bytes, Volume]):
    def __iter__(self) -> Iterator[Volume]:  # type: ignore[override] # as volume.replica has it
        return iter(list(self.values()))


@dataclass
class Nodes:
    """Two nodes with one volume; what the second one was told."""

    etcd: Etcd = field(default_factory=Etcd)
    told: list[tuple[bytes, AccessList | None, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = ClusterRecords(self.etcd, lambda: os.urandom(16).hex())
        replicas = Replicas({UUID: Volume(UUID)})
        self.one = SharedLists(self.records, replicas)  # type: ignore[arg-type]
        self.two = SharedLists(self.records, replicas, 0.01)  # type: ignore[arg-type]

    def learned(self) -> AccessList | None:
        """What the second node is told of the newest row."""
        self.told.clear()
        self.two.start(lambda *found: self.told.append(found))
        try:
            until(lambda: bool(self.told))
        finally:
            self.two.stop()
        assert self.told[0][0] == UUID
        return self.told[0][1]


@pytest.fixture
def nodes() -> Nodes:
    return Nodes()


@pytest.mark.parametrize("access", [ROOT, AccessList(), None])
def test_other_nodes_learn_of_a_list(nodes: Nodes, access: AccessList | None) -> None:
    nodes.one.share(UUID, ROOT)
    number = nodes.one.share(UUID, access)
    assert nodes.learned() == access
    assert nodes.told[0][2] == number


def test_a_list_is_found_among_many_of_other_volumes(nodes: Nodes) -> None:
    for number in range(1, 40):
        row = AccessRecord(f"{number:032x}", "")
        nodes.records.commit(nodes.records.put_access(None, row))
    nodes.one.share(UUID, ROOT)
    assert nodes.learned() == ROOT


def test_a_volume_of_this_node_alone_is_told_to_nobody(nodes: Nodes) -> None:
    assert nodes.one.share(ALONE, ROOT) is None
    assert nodes.etcd.list("") == []


def test_lost_answers_and_races_are_gone_on_with(nodes: Nodes) -> None:
    nodes.etcd.unknown, nodes.etcd.lost = 2, 1
    assert nodes.one.share(UUID, ROOT)
    assert nodes.learned() == ROOT


def test_a_change_of_a_list_that_another_node_has_changed_is_refused(nodes: Nodes) -> None:
    nodes.one.share(UUID, ROOT, "none")  # no node has told of any list
    nodes.two.share(UUID, AccessList(), revision(ROOT))
    with pytest.raises(AccessChanged, match="volume vm1"):
        nodes.one.share(UUID, None, revision(ROOT))
    nodes.one.share(UUID, None, revision(AccessList()))
    nodes.two.share(UUID, ROOT)
    nodes.one.share(UUID, None)  # whatever it is
    assert nodes.learned() is None


def test_what_cannot_be_told_is_refused(nodes: Nodes) -> None:
    nodes.etcd.lost = 1000
    with pytest.raises(MetaStoreUnavailable, match="other nodes would not know"):
        nodes.one.share(UUID, ROOT)
    nodes.etcd.down = True
    with pytest.raises(MetaStoreUnavailable, match="nobody answers"):
        nodes.one.share(UUID, ROOT)


def test_a_row_that_cannot_be_read_lets_nobody_in(nodes: Nodes) -> None:
    key = AccessRecord.prefix + UUID.hex()
    nodes.etcd.commit((Change(key, None, b"blockd1 00000000 {}"),))
    assert nodes.learned() == kept.DAMAGED


def test_rules_that_are_not_understood_let_nobody_in(nodes: Nodes) -> None:
    made = nodes.records.put_access(None, AccessRecord(UUID.hex(), '{"version":9}'))
    nodes.records.commit(made)
    assert nodes.learned() == kept.DAMAGED


def test_an_etcd_that_is_silent_is_told_once_and_asked_again(
    nodes: Nodes, caplog: pytest.LogCaptureFixture
) -> None:
    nodes.one.share(UUID, ROOT)
    nodes.etcd.down = True
    nodes.two.start(lambda *found: nodes.told.append(found))
    until(lambda: "access lists of other nodes not read" in caplog.text)
    nodes.etcd.down = False
    until(lambda: bool(nodes.told))
    nodes.two.stop()
    assert caplog.text.count("access lists of other nodes not read") == 1
