"""One contract for all MetaStores: the dict twin, the simulated etcd, LMDB, and a real etcd."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.clients import FindTool
from tests.etcd_cluster import EtcdCluster, etcd_cluster
from tests.metastore_twin import DictMetaStore
from tests.sim.cluster.metastore import SimMetaStore
from tests.sim.cluster.timeline import Timeline
from transport.etcd.client import EtcdMetaStore, EtcdSettings
from volume.kv import LmdbKeyValue
from volume.metastore import (
    Change,
    ClusterRecords,
    Done,
    EpochGoesBack,
    Lost,
    MetaStore,
    Outcome,
    Row,
    Stored,
    Unavailable,
    Unknown,
)
from volume.metastore_embedded import EmbeddedMetaStore
from volume.metastore_records import (
    ClusterRecord,
    CorruptRecord,
    GroupState,
    Mode,
    NodeRecord,
    ReservationsRecord,
    SettingsRecord,
    VolumeGroup,
)

A, B, C = "a" * 32, "b" * 32, "c" * 32
VOLUME = "7" * 32
OTHER_VOLUME = "8" * 32
_prefixes = count()


@pytest.fixture(scope="module")
def etcd(client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd_cluster(client_tool("etcd"), tmp_path_factory.mktemp("etcd"), 3) as cluster:
        yield cluster


@pytest.fixture(params=["dict", "simulated", "lmdb", "etcd"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MetaStore]:
    if request.param == "dict":
        yield DictMetaStore()
    elif request.param == "simulated":
        yield SimMetaStore(Timeline(), "contract").view(A)
    elif request.param == "lmdb":
        kv = LmdbKeyValue(tmp_path / "meta", synced=True, map_size=1 << 20)
        yield EmbeddedMetaStore(kv)
        kv.close()
    else:
        cluster: EtcdCluster = request.getfixturevalue("etcd")
        settings = EtcdSettings(cluster.endpoints, prefix=f"t{next(_prefixes)}/")
        made = EtcdMetaStore(settings)
        yield made
        made.close()


@pytest.fixture
def records(store: MetaStore) -> ClusterRecords:
    return ClusterRecords(store, new_token)


def new_token() -> str:
    return os.urandom(16).hex()


def group(name: str = "vm1", volume_id: str = VOLUME) -> VolumeGroup:
    return VolumeGroup(
        volume_id=volume_id,
        name=name,
        epoch=1,
        primary=A,
        members=(A, B, C),
        replicas=3,
        write_quorum=2,
        mode=Mode.MIRROR,
        head="ab" * 32,
        branch="main",
        state=GroupState.OPEN,
    )


def put(store: MetaStore, key: str, value: bytes) -> Row:
    outcome = store.commit([Change(key, store.read(key), value)])
    assert isinstance(outcome, Done)
    assert outcome.rows[0] is not None
    return outcome.rows[0]


def created(records: ClusterRecords, made: VolumeGroup) -> Stored[VolumeGroup]:
    assert isinstance(records.commit(records.create_volume(made)), Done)
    found = records.volume(made.volume_id)
    assert found is not None
    return found


# -- rows


def test_an_absent_row_reads_as_none(store: MetaStore) -> None:
    assert store.read("a") is None
    assert list(store.list("")) == []


def test_a_committed_row_is_read_as_the_outcome_said(store: MetaStore) -> None:
    row = put(store, "a", b"\0\xff")
    assert row.value == b"\0\xff"
    assert store.read("a") == row


def test_create_loses_to_a_row_that_is_there(store: MetaStore) -> None:
    row = put(store, "a", b"1")
    assert store.commit([Change("a", None, b"2")]) == Lost((row,))
    assert store.read("a") == row


def test_a_swap_loses_when_the_row_has_changed(store: MetaStore) -> None:
    old = put(store, "a", b"1")
    new = put(store, "a", b"2")
    assert new.revision > old.revision
    assert store.commit([Change("a", old, b"3")]) == Lost((new,))


def test_a_row_made_again_is_another_one(store: MetaStore) -> None:
    old = put(store, "a", b"1")
    assert store.commit([Change("a", old, None)]) == Done((None,))
    again = put(store, "a", b"1")
    assert again.revision > old.revision
    assert store.commit([Change("a", old, b"2")]) == Lost((again,))


def test_an_equal_revision_with_other_bytes_is_another_row(store: MetaStore) -> None:
    row = put(store, "a", b"1")
    forged = replace(row, value=b"0")
    assert store.commit([Change("a", forged, b"2")]) == Lost((row,))


def test_a_delete_loses_when_the_row_has_changed(store: MetaStore) -> None:
    old = put(store, "a", b"1")
    new = put(store, "a", b"2")
    assert store.commit([Change("a", old, None)]) == Lost((new,))


def test_the_same_transaction_again_is_done_not_lost(store: MetaStore) -> None:
    old = put(store, "a", b"1")
    changes = [Change("a", old, b"token-1"), Change("b", None, b"token-2")]
    first = store.commit(changes)
    assert isinstance(first, Done)
    assert store.commit(changes) == first


def test_a_transaction_changes_all_rows_or_none(store: MetaStore) -> None:
    a, b = put(store, "a", b"1"), put(store, "b", b"1")
    newer = put(store, "b", b"2")
    changes = [Change("a", a, b"3"), Change("b", b, None), Change("c", None, b"3")]
    assert store.commit(changes) == Lost((a, newer, None))
    changes[1] = Change("b", newer, None)
    assert isinstance(store.commit(changes), Done)
    assert [row.key for row in store.list("")] == ["a", "c"]


def test_pages_cover_the_prefix_in_order_and_nothing_else(store: MetaStore) -> None:
    for number in range(7):
        put(store, f"b/{number}", b"x")
    put(store, "a", b"x")
    put(store, "b0", b"x")  # "0" is the character after "/"
    pages, after = [], ""
    while page := store.list("b/", after, 3):
        pages.append([row.key for row in page])
        after = page[-1].key
    assert pages == [["b/0", "b/1", "b/2"], ["b/3", "b/4", "b/5"], ["b/6"]]


def test_a_hint_is_a_row(store: MetaStore) -> None:
    assert store.hint("beat/a", b"1", 60)
    assert store.hint("beat/a", b"2", 60)
    found = store.read("beat/a")
    assert found is not None
    assert found.value == b"2"


def test_of_several_writers_exactly_one_wins_each_epoch(store: MetaStore) -> None:
    records = ClusterRecords(store, new_token)
    created(records, group())
    wins: list[tuple[int, str]] = []

    def take_over(node: str) -> None:
        for _ in range(5):
            found = records.volume(VOLUME)
            assert found is not None
            new = replace(found.record, epoch=found.record.epoch + 1, primary=node)
            if isinstance(records.commit(records.change_volume(found, new)), Done):
                wins.append((new.epoch, node))

    threads = [threading.Thread(target=take_over, args=(node,)) for node in (A, B, C)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = records.volume(VOLUME)
    assert last is not None
    assert sorted(epoch for epoch, _ in wins) == list(range(2, last.record.epoch + 1))
    assert max(wins) == (last.record.epoch, last.record.primary)


# -- records


def test_a_volume_is_found_by_id_and_by_name(records: ClusterRecords) -> None:
    made = created(records, group())
    assert replace(made.record, token="") == group()
    assert records.volume_named("vm1") == made
    assert list(records.volumes()) == [made]


def test_a_name_is_given_once(records: ClusterRecords) -> None:
    created(records, group())
    other = records.create_volume(group(volume_id=OTHER_VOLUME))
    assert isinstance(records.commit(other), Lost)
    assert records.volume(OTHER_VOLUME) is None


def test_an_epoch_never_goes_back(records: ClusterRecords) -> None:
    made = created(records, replace(group(), epoch=5))
    with pytest.raises(EpochGoesBack, match="5 -> 4"):
        records.change_volume(made, replace(made.record, epoch=4))


@pytest.mark.parametrize("change", [{"primary": B}, {"primary": None}, {"members": (A, B)}])
def test_another_primary_or_member_needs_a_new_epoch(
    records: ClusterRecords, change: dict[str, object]
) -> None:
    made = created(records, group())
    new = replace(made.record, **change)  # type: ignore[arg-type]
    with pytest.raises(EpochGoesBack, match="new epoch"):
        records.change_volume(made, new)


def test_renaming_frees_the_old_name(records: ClusterRecords) -> None:
    made = created(records, group())
    assert isinstance(records.commit(records.rename_volume(made, "vm2")), Done)
    assert records.volume_named("vm1") is None
    found = records.volume_named("vm2")
    assert found is not None
    created(records, group("vm1", OTHER_VOLUME))


def test_deleting_a_volume_frees_its_name_in_a_new_epoch(records: ClusterRecords) -> None:
    made = created(records, group())
    assert isinstance(records.commit(records.delete_volume(made)), Done)
    assert records.volume_named("vm1") is None
    (gone,) = records.volumes()
    assert (gone.record.state, gone.record.epoch) == (GroupState.DELETED, made.record.epoch + 1)
    created(records, group(volume_id=OTHER_VOLUME))


def test_a_creation_that_comes_late_does_not_bring_a_deleted_volume_back(
    records: ClusterRecords,
) -> None:
    creation = records.create_volume(group())
    assert isinstance(records.commit(creation), Done)
    made = records.volume(VOLUME)
    assert made is not None
    assert isinstance(records.commit(records.delete_volume(made)), Done)
    assert isinstance(records.commit(creation), Lost)
    assert records.volume_named("vm1") is None


def test_a_tombstone_can_be_purged(records: ClusterRecords) -> None:
    made = created(records, group())
    records.commit(records.put(None, SettingsRecord(VOLUME, "{}")))
    records.commit(records.put(None, ReservationsRecord(VOLUME, 1, "")))
    records.store.commit([Change(f"access/{VOLUME}", None, b"no record")])
    records.commit(records.delete_volume(made))
    (gone,) = records.volumes()
    assert isinstance(records.commit(records.purge_volume(gone)), Done)
    assert list(records.volumes()) == []
    assert not records.store.list("")


def test_a_cluster_is_founded_once_and_its_map_epoch_grows(records: ClusterRecords) -> None:
    assert isinstance(records.commit(records.found(ClusterRecord(A, 0))), Done)
    assert isinstance(records.commit(records.found(ClusterRecord(B, 0))), Lost)
    found = records.cluster()
    assert found is not None
    assert found.record.cluster_id == A
    assert isinstance(records.commit(records.raise_map(found)), Done)
    assert isinstance(records.commit(records.raise_map(found)), Lost)
    raised = records.cluster()
    assert raised is not None
    assert raised.record.map_epoch == 1


def test_nodes_are_listed_past_one_page(records: ClusterRecords) -> None:
    for number in range(130):
        node = NodeRecord(f"{number:032x}", f"n{number}", ("10.0.0.1:7000",), "cd" * 32)
        assert isinstance(records.commit(records.add_node(node)), Done)
    found = [stored.record.name for stored in records.nodes()]
    assert found == [f"n{number}" for number in range(130)]


def test_a_heartbeat_is_listed_until_it_is_said_anew(records: ClusterRecords) -> None:
    assert records.beat(A, 1, 60)
    assert records.beat(A, 2, 60)
    assert [stored.record.time_ns for stored in records.heartbeats()] == [2]


def test_a_value_that_is_no_record_is_refused_by_its_key(records: ClusterRecords) -> None:
    put(records.store, f"volume/{VOLUME}", b"blockd1 00000000 {}")
    with pytest.raises(CorruptRecord, match=rf"volume/{VOLUME}.*Restore"):
        records.volume(VOLUME)


def test_embedded_rows_survive_reopening_and_revisions_go_on(tmp_path: Path) -> None:
    kv = LmdbKeyValue(tmp_path / "meta", synced=True, map_size=1 << 20)
    row = put(EmbeddedMetaStore(kv), "a", b"1")
    kv.close()
    kv = LmdbKeyValue(tmp_path / "meta", synced=True, map_size=1 << 20)
    reopened = EmbeddedMetaStore(kv)
    assert reopened.read("a") == row
    assert put(reopened, "a", b"2").revision > row.revision
    kv.close()


def test_an_answer_that_was_lost_is_not_taken_for_a_request_that_was_not_sent() -> None:
    class Leaving(DictMetaStore):
        """Loses its first answer, and is gone then."""

        answers: Iterator[Outcome] = iter((Unknown("lost"), *[Unavailable("gone")] * 2))

        def commit(self, changes: Sequence[Change]) -> Outcome:
            return next(self.answers)

    records = ClusterRecords(Leaving(), lambda: "0" * 32)
    change = records.put(None, ReservationsRecord(VOLUME, 1, ""))
    assert records.settle(change, 3) == Unknown("lost")
