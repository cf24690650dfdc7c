"""Who is called to be a member of which volume, and what is forgotten; rows in memory."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import count

import pytest

from blockd.api.types import ClusterInfo
from blockd.cluster.domains import Domains
from blockd.cluster.draining import drained, draining
from blockd.cluster.replacing import (
    AT_ONCE,
    MAX_LEFT,
    PURGE_S,
    CannotReplace,
    Replacing,
    call,
    resolve,
)
from tests.fake_cluster import INFO, N1
from tests.metastore_twin import DictMetaStore
from transport.devicemap import Device, DeviceMap
from transport.errors import NodeNeeded
from transport.join import remove
from volume.metastore import ClusterRecords, Done, Stored, Transaction
from volume.metastore_records import AccessRecord, GroupState, Mode, NodeRecord, VolumeGroup

NODES = tuple(letter * 32 for letter in "abcde")
A, B, C, D, E = NODES
AFTER_S = 600.0


class Cluster:
    """Five nodes as A sees them, which serves the volumes."""

    def __init__(self, hosts: str = "12345") -> None:
        tokens = count(1)
        self.store = DictMetaStore()
        self.records = ClusterRecords(self.store, lambda: f"{next(tokens):032x}")
        self.connected = set(NODES)
        self.now = 1000.0
        self.parts: set[bytes] = set()
        self.devices = DeviceMap(0, {})
        self.step_of: dict[bytes, list[str]] = {}
        self.refused_at: dict[bytes, float] = {}
        self.given: Mapping[bytes, Stored[VolumeGroup]] = {}
        for node, host in zip(NODES, hosts, strict=True):
            self.done(
                self.records.add_node(
                    NodeRecord(node, f"n{node[0]}", (f"10.0.0.{host}:1",), node[0] * 64)
                )
            )
        self.replacing = self.at(A)

    def at(self, node: str) -> Replacing:
        around = (self.records, self, self.info, AFTER_S, lambda: self.devices)
        return Replacing(node, *around, lambda: self.now)

    def done(self, transaction: Transaction) -> None:
        assert isinstance(self.records.commit(transaction), Done)

    def info(self) -> ClusterInfo:
        peers = tuple(replace(N1, node=node, connected=node in self.connected) for node in NODES)
        return replace(INFO, nodes=peers)

    # Parts
    def noted(self, rows: Mapping[bytes, Stored[VolumeGroup]]) -> None:
        self.given = rows

    def has_part(self, volume: bytes) -> bool:
        return volume in self.parts

    def in_step(self) -> Mapping[bytes, Collection[str]]:
        return self.step_of

    def refused(self) -> Mapping[bytes, float]:
        return {volume: self.now - since for volume, since in self.refused_at.items()}

    # volumes
    def volume(self, number: int, *members: str) -> str:
        name, volume = f"vm{number}", bytes([number]) * 16
        group = VolumeGroup(
            *(volume.hex(), name, 2, members[0], members, len(members), 2, Mode.MIRROR),
            *(None, "main", GroupState.OPEN),
        )
        self.done(self.records.create_volume(group))
        self.parts.add(volume)
        self.step_of[volume] = list(members)
        return name

    def row(self, name: str) -> VolumeGroup:
        return self.stored(name).record

    def stored(self, name: str) -> Stored[VolumeGroup]:
        found = self.records.volume((bytes([int(name[2:])]) * 16).hex())
        assert found is not None
        return found

    def wait(self, seconds: float) -> None:
        self.replacing.step()
        self.now += seconds
        self.replacing.step()

    def change(self, name: str) -> None:
        """As the primary does when who comes has all."""
        self.done(self.records.change_members(self.stored(name)))


def test_a_node_that_cannot_be_reached_for_long_is_replaced_by_the_one_with_the_fewest() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    cluster.volume(2, E, D, C)
    cluster.volume(3, E, B, C)
    cluster.connected -= {C}
    cluster.wait(AFTER_S - 1)
    assert cluster.row("vm1").coming is None
    cluster.now += 1
    cluster.replacing.step()
    row = cluster.row("vm1")
    assert (row.coming, row.replaces) == (D, C)
    assert cluster.row("vm2").coming is None, "A does not serve it"
    assert set(cluster.given) == {bytes([number]) * 16 for number in (1, 2, 3)}


def test_a_node_that_came_back_in_time_is_not_replaced() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    cluster.connected -= {C}
    cluster.wait(AFTER_S - 1)
    cluster.connected |= {C}
    cluster.replacing.step()
    cluster.connected -= {C}
    cluster.wait(AFTER_S - 1)
    assert cluster.row("vm1").coming is None


def test_who_comes_is_on_another_machine_than_the_members_that_stay() -> None:
    cluster = Cluster(hosts="12321")  # D is where B is, E where A is
    cluster.volume(1, A, B, C)
    cluster.connected -= {B}
    cluster.wait(AFTER_S)
    assert cluster.row("vm1").coming == D


def stands(node: str, site: str, rack: str, host: str = "") -> Device:
    return Device(node, node, site, rack, host or f"h{node[0]}", 1 << 40)


@pytest.mark.parametrize(
    ("d", "e", "comes"),
    [
        (("s1", "r2"), ("s1", "r3"), E),  # another rack than all that stay
        (("s2", "r1"), ("s1", "r3"), D),  # another site, so another rack as well
        (("s1", "r1", "ha"), ("s1", "r1"), E),  # a machine counts more
        (("s1", "r1"), ("s1", "r1"), D),  # all the same: the fewest volumes
        (("s1", "r3"), ("s1", "r4"), D),  # the rack of the one that goes is free again
    ],
    ids=["rack", "site", "machine", "fewest", "who goes"],
)
def test_who_comes_stands_apart_from_the_members_that_stay(
    d: tuple[str, ...], e: tuple[str, ...], comes: str
) -> None:
    cluster = Cluster()
    places = {A: ("s1", "r1"), B: ("s1", "r2"), C: ("s1", "r3"), D: d, E: e}
    for node, place in places.items():
        cluster.devices = cluster.devices.add(stands(node, *place))
    cluster.volume(1, A, B, C)
    cluster.connected -= {C}
    cluster.wait(AFTER_S)
    assert cluster.row("vm1").coming == comes


def test_new_members_are_spread_over_racks() -> None:
    cluster = Cluster()
    for node, rack in zip(NODES, ("r1", "r1", "r1", "r2", "r3"), strict=True):
        cluster.devices = cluster.devices.add(stands(node, "s", rack))
    nodes = {each.record.node_id: each for each in cluster.records.nodes()}
    domains = Domains(nodes, cluster.devices)
    assert domains.spread(A, NODES, 3) == (A, D, E)
    assert domains.spread(A, NODES, 4) == (A, D, E, B)
    assert domains.spread(A, [B], 3) == (A, B)
    assert Domains(nodes, DeviceMap(0, {})).spread(C, NODES, 3) == (C, A, B)


def test_volumes_with_the_fewest_copies_come_first_and_only_so_many_at_once() -> None:
    cluster = Cluster()
    names = [cluster.volume(number, A, B, C) for number in range(1, 6)]
    cluster.step_of[bytes([4]) * 16] = [A]
    cluster.step_of[bytes([5]) * 16] = [A, B]
    cluster.connected -= {C}
    cluster.wait(AFTER_S)
    called = [name for name in names if cluster.row(name).coming is not None]
    assert called == ["vm4", "vm5"]
    assert len(called) == AT_ONCE
    cluster.change("vm4")
    cluster.replacing.step()
    assert sum(cluster.row(name).coming is not None for name in names) == AT_ONCE


def test_another_one_is_called_when_who_comes_is_lost_as_well() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    cluster.connected -= {C}
    cluster.wait(AFTER_S)
    assert cluster.row("vm1").coming == D
    cluster.connected -= {D}
    cluster.wait(AFTER_S)
    row = cluster.row("vm1")
    assert (row.coming, row.replaces, row.leaving) == (E, C, (D,))


def test_a_drained_node_is_replaced_and_can_be_removed_then() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    with pytest.raises(NodeNeeded, match="drain"):
        remove(cluster.records, "nb")
    left = drained(cluster.records, "nb", drain=True)
    assert (left.draining, left.member_of, left.under_way) == (True, ("vm1",), ())
    cluster.replacing.step()
    assert draining(cluster.records, "nb").under_way == ("vm1",)
    cluster.change("vm1")
    assert draining(cluster.records, "nb").letting_go == ("vm1",)
    cluster.parts.clear()
    cluster.at(B).step()  # it has let go
    left = draining(cluster.records, "nb")
    assert (left.member_of, left.letting_go) == ((), ())
    remove(cluster.records, "nb")
    assert drained(cluster.records, "nc", drain=False).draining is False


def test_a_lost_node_is_replaced_at_once_and_nobody_waits_for_it_to_let_go() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    remove(cluster.records, "nc", lost=True)
    cluster.replacing.step()
    assert cluster.row("vm1").replaces == C
    cluster.change("vm1")
    assert cluster.row("vm1").leaving == (C,)
    cluster.replacing.step()
    assert cluster.row("vm1").leaving == ()


def test_nobody_is_called_who_drains_is_away_or_has_not_let_go() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    drained(cluster.records, "nd", drain=True)
    cluster.connected -= {C, E}
    cluster.wait(AFTER_S)
    assert cluster.row("vm1").coming is None


def test_a_row_takes_only_so_many_that_have_not_let_go() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    found = cluster.stored("vm1")
    leaving = tuple(f"{number:032x}" for number in range(MAX_LEFT))
    full = replace(found, record=replace(found.record, leaving=leaving))
    with pytest.raises(CannotReplace, match="not let go"):
        call(cluster.records, full, D, C)


def test_a_row_that_takes_nobody_keeps_no_other_volume_from_a_new_member() -> None:
    cluster = Cluster()
    for number in (1, 2):
        cluster.volume(number, A, B, C)
    cluster.step_of[bytes([1]) * 16] = [A]
    full = cluster.stored("vm1")
    nobody = tuple(f"{number:032x}" for number in range(MAX_LEFT))
    cluster.done(cluster.records.put(full, replace(full.record, leaving=nobody)))
    cluster.replacing = cluster.at(A)
    for node in nobody:
        cluster.done(
            cluster.records.add_node(NodeRecord(node, f"n{node}", ("10.0.0.9:1",), node * 2))
        )
    cluster.connected -= {C}
    cluster.replacing.step()
    cluster.now += AFTER_S
    with pytest.raises(CannotReplace, match="vm1"):
        cluster.replacing.step()
    assert cluster.row("vm1").coming is None
    assert cluster.row("vm2").coming == D


def test_who_makes_no_part_holds_no_other_volume_up_and_is_replaced_in_the_end() -> None:
    cluster = Cluster()
    names = [cluster.volume(number, A, B, C) for number in range(1, AT_ONCE + 2)]
    drained(cluster.records, "nc", drain=True)
    cluster.replacing.step()
    before = {name: cluster.row(name).coming for name in names}
    assert before[names[-1]] is None
    for name in names[:AT_ONCE]:
        cluster.refused_at[bytes([int(name[2:])]) * 16] = cluster.now
    cluster.replacing.step()
    assert cluster.row(names[-1]).coming is not None
    assert all(cluster.row(name).coming == before[name] for name in names[:AT_ONCE])
    cluster.now += AFTER_S
    cluster.replacing.step()
    again, *later = (cluster.row(name) for name in names[:AT_ONCE])
    assert again.coming not in (before[again.name], None)
    assert again.leaving == (before[again.name],)
    assert all(row.coming == before[row.name] for row in later), "as two copies are under way"


def test_a_call_against_a_row_that_has_changed_is_refused() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    old = cluster.stored("vm1")
    call(cluster.records, old, D, C)
    with pytest.raises(CannotReplace, match="changed meanwhile"):
        call(cluster.records, old, E, C)
    call(cluster.records, cluster.stored("vm1"), D, C)  # again is no harm


def test_rows_of_a_deleted_volume_go_when_all_have_let_go_and_time_has_passed() -> None:
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    cluster.done(cluster.records.put_access(None, AccessRecord((bytes([1]) * 16).hex(), "{}")))
    cluster.done(cluster.records.delete_volume(cluster.stored("vm1")))
    cluster.step_of.clear()
    assert cluster.row("vm1").leaving == (A, B, C)
    cluster.wait(2 * PURGE_S)
    assert cluster.row("vm1").leaving == (A, B, C), "parts are there still"
    cluster.parts.clear()
    for node in (A, B, C):
        cluster.at(node).step()
    assert cluster.row("vm1").leaving == ()
    cluster.wait(PURGE_S - 1)
    assert cluster.row("vm1").state is GroupState.DELETED
    cluster.wait(1)
    assert list(cluster.records.volumes()) == []
    assert cluster.records.access((bytes([1]) * 16).hex()) is None


def test_a_tombstone_goes_when_the_last_node_that_may_have_a_part_is_removed() -> None:
    """Nobody is left of its members to take them off."""
    cluster = Cluster()
    cluster.volume(1, A, B, C)
    cluster.done(cluster.records.delete_volume(cluster.stored("vm1")))
    cluster.step_of.clear()
    other = cluster.at(D)
    for name in ("na", "nb"):
        remove(cluster.records, name, lost=True)
    other.step()
    assert cluster.row("vm1").leaving == (A, B, C), "C may come back, and has to see it"
    remove(cluster.records, "nc", lost=True)
    other.step()
    assert cluster.row("vm1").leaving == ()
    other.step()
    cluster.now += PURGE_S
    other.step()
    assert list(cluster.records.volumes()) == []


def test_a_node_that_nobody_knows_is_refused_by_name() -> None:
    with pytest.raises(CannotReplace, match="no node nx; nodes are na"):
        resolve([NodeRecord(A, "na", ("10.0.0.1:1",), "a" * 64)], "nx")
