"""Who serves a volume and where, as one of its nodes knows it; whether its attach token holds."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from blockd.cluster.exports import (
    ExportsRecord,
    NoNumberLeft,
    advertised,
    read_exports,
    write_exports,
)
from blockd.cluster.paths import VolumePaths
from blockd.config.addresses import PortalAddress, TcpAddress
from blockd.config.cluster import ClusterConfig
from blockd.paths import MAX_NODES, told_where
from tests.metastore_twin import DictMetaStore
from tests.peer_nodes import until
from volume.metastore import ClusterRecords, MetaStoreUnavailable, Row
from volume.metastore_records import (
    CorruptRecord,
    GroupState,
    Mode,
    NodeRecord,
    VolumeGroup,
    decode,
    encode,
)

VOLUME = bytes(range(16))
N1, N2, N3 = (f"{number:032x}" for number in (0xA1, 0xA2, 0xA3))
NAMES = {N1: "n1", N2: "n2", N3: "n3"}


class Etcd(DictMetaStore):
    """`down`: nobody answers; `answers` cleared: not before it is set."""

    down = False

    def __init__(self) -> None:
        super().__init__()
        self.answers = threading.Event()
        self.answers.set()
        self.reads = 0

    def read(self, key: str) -> Row | None:
        self.reads += 1
        assert self.answers.wait(20.0)
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().read(key)

    def list(self, prefix: str, after: str = "", limit: int = 128) -> Sequence[Row]:
        if self.down:
            raise MetaStoreUnavailable("etcd: nobody answers")
        return super().list(prefix, after, limit)


@dataclass
class FakeVolume:
    opened: bool = False
    leads: bool = False

    @property
    def elsewhere(self) -> str | None:
        return None if self.leads else "volume vm1: not served here"


@dataclass
class FakeReplica:
    uuid: bytes = VOLUME
    name: str = "vm1"
    promised: int = 4
    volume: FakeVolume = field(default_factory=FakeVolume)


class Replicas(dict[bytes, FakeReplica]):
    def __iter__(self) -> Iterator[FakeReplica]:  # type: ignore[override] # as volume.replica has it
        return iter(list(self.values()))


class World:
    """Three nodes with a volume that n1 serves in epoch 4, as n2 sees them."""

    def __init__(self, kept: "Kept | None" = None) -> None:
        self.etcd = Etcd()
        self.records = ClusterRecords(self.etcd, lambda: os.urandom(16).hex())
        for number, (node, name) in enumerate(NAMES.items(), 1):
            record = NodeRecord(node, name, (f"10.0.0.{number}:10811",), "ab" * 32)
            self.records.commit(self.records.add_node(record))
            write_exports(
                *(self.records, node),
                *((f"10.0.0.{number}:10809",), (f"10.0.0.{number}:3260,1",)),
            )
        self.row(4, N1, GroupState.OPEN)
        self.replica = FakeReplica()
        self.now = 100.0
        self.changes = 0
        self.paths = VolumePaths(
            self.records,
            Replicas({VOLUME: self.replica}),  # type: ignore[arg-type] # what it uses of one
            N2,
            lambda: NAMES,
            lambda: self.now,
            prove_s=0.2,
            kept=kept,
        )
        self.paths.watch(self._changed)
        for node in (N1, N3):
            self.paths.reached(node, up=True)

    def _changed(self) -> None:
        self.changes += 1

    def row(self, epoch: int, primary: str | None, state: GroupState) -> None:
        found = self.records.volume(VOLUME.hex())
        group = VolumeGroup(
            *(VOLUME.hex(), "vm1", epoch, primary, (N1, N2, N3), 3, 2),
            *(Mode.MIRROR, None, "main", state),
        )
        made = (
            self.records.create_volume(group)
            if found is None
            else self.records.change_volume(found, group)
        )
        self.records.commit(made)

    def look(self) -> None:
        """What the thread does when it is woken."""
        self.paths.look(VOLUME)
        self.paths._look()

    def states(self) -> list[str]:
        return [way.state.value for way in self.paths.ways(VOLUME)]

    def serve(self, epoch: int) -> None:
        """n2 takes the volume over."""
        self.replica.promised = epoch
        self.replica.volume.opened = self.replica.volume.leads = True
        self.row(epoch, N2, GroupState.OPEN)
        self.paths.opened(VOLUME, epoch)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.look()
    yield made
    made.paths.stop()


def test_all_ways_are_told_with_numbers_that_stay(world: World) -> None:
    ways = world.paths.ways(VOLUME)
    assert [(way.node, way.number, way.here) for way in ways] == [
        ("n1", 1, False),
        ("n2", 2, True),
        ("n3", 3, False),
    ]
    assert world.states() == ["serving", "standby", "standby"]
    assert ways[1].iscsi == ("10.0.0.2:3260,513",)
    assert ways[1].tags == (0x201,)
    assert told_where("vm1", ways) == "volume vm1 is served by n1 at 10.0.0.1:10809"


def test_front_ends_have_seen_to_changes_before_a_volume_is_served(world: World) -> None:
    seen: list[int] = []
    world.paths.watch(lambda: None, lambda: seen.append(world.changes))
    world.paths.closed(VOLUME)
    world.paths.settle()
    assert seen == [world.changes]


def test_a_takeover_is_seen_step_by_step(world: World) -> None:
    world.replica.promised = 5  # n3 seals; the row was not read yet
    assert world.states() == ["changing", "standby", "standby"]
    world.row(5, N3, GroupState.SEALING)
    world.look()
    assert world.states() == ["standby", "standby", "changing"]
    assert told_where("vm1", world.paths.ways(VOLUME)) == (
        "volume vm1 is being taken over by n3; try again"
    )
    world.row(5, N3, GroupState.OPEN)
    world.now += 0.3  # it is looked at again soon, by itself
    world.paths._look()
    assert world.states() == ["standby", "standby", "serving"]


def test_a_node_that_is_cut_off_is_no_way(world: World) -> None:
    world.paths.reached(N1, up=False)
    assert world.states() == ["unreachable", "standby", "standby"]
    assert told_where("vm1", world.paths.ways(VOLUME)) is None
    world.row(4, N1, GroupState.CLOSED)
    world.paths.reached(N1, up=True)
    world.look()
    assert world.states() == ["standby"] * 3


def test_the_own_part_counts_more_than_a_row(world: World) -> None:
    world.serve(5)
    assert world.states() == ["standby", "serving", "standby"]  # before it has read the row
    world.replica.volume.leads = False  # it heard nothing from the others
    world.look()
    assert world.states() == ["standby", "changing", "standby"]
    world.replica.volume.opened = False
    world.paths.closed(VOLUME)
    assert world.states()[1] == "standby"


def test_whoever_watches_is_told(world: World) -> None:
    before = world.changes
    world.paths.reached(N1, up=True)  # nothing new
    assert world.changes == before
    world.paths.reached(N1, up=False)
    world.serve(5)
    assert world.changes >= before + 2


def test_a_thread_reads_what_it_is_told_to(world: World) -> None:
    world.paths.start()
    world.row(5, N3, GroupState.OPEN)
    world.paths.look(VOLUME)
    until(lambda: world.states()[2] == "serving")


def test_what_was_read_stays_while_the_metastore_is_silent(world: World) -> None:
    world.etcd.down = True
    with pytest.raises(MetaStoreUnavailable):
        world.look()
    assert world.states() == ["serving", "standby", "standby"]


def test_a_volume_that_is_not_here_has_no_ways(world: World) -> None:
    assert world.paths.ways(bytes(16)) == ()


class Kept(dict[str, bytes]):
    def kept(self, prefix: str) -> dict[str, bytes]:
        return {name: value for name, value in self.items() if name.startswith(prefix)}

    def keep(self, name: str, value: bytes | None) -> None:
        assert value is not None
        self[name] = value


def test_a_node_keeps_its_number_over_a_start_without_the_metastore() -> None:
    store = Kept()
    first = World(store)
    assert first.paths.number == 0
    first.look()
    assert first.paths.number == 2
    again = World(store)
    again.etcd.down = True
    assert again.paths.number == 2
    assert [way.number for way in again.paths.ways(VOLUME)] == [2]  # who else has it is not known
    store["cluster/exports"] = store["cluster/exports"][:-1]
    with pytest.raises(CorruptRecord):
        World(store)
    for world in (first, again):
        world.paths.stop()


# -- attach tokens


def test_the_token_of_the_primary_holds(world: World) -> None:
    world.serve(5)
    assert world.paths.refusal(VOLUME) is None


def test_who_is_not_the_primary_has_none(world: World) -> None:
    assert world.paths.refusal(VOLUME) == "volume vm1 is served by n1 at 10.0.0.1:10809"


def test_a_ghost_whose_lease_has_run_out_asks_nobody(world: World) -> None:
    world.serve(5)
    world.replica.volume.leads = False
    reads = world.etcd.reads
    assert world.paths.refusal(VOLUME) == "volume vm1: not served here"
    assert world.etcd.reads == reads


@pytest.mark.parametrize(
    ("epoch", "primary", "state"),
    [
        (6, N3, GroupState.OPEN),
        (6, N3, GroupState.SEALING),
        (6, N2, GroupState.SEALING),
        (6, None, GroupState.DELETED),
    ],
)
def test_a_later_epoch_voids_it_whatever_the_lease_says(
    world: World, epoch: int, primary: str | None, state: GroupState
) -> None:
    world.serve(5)
    world.row(epoch, primary, state)
    why = world.paths.refusal(VOLUME)
    assert why is not None
    assert f"the cluster is in epoch {epoch}" in why


def test_without_the_metastore_the_lease_decides(world: World) -> None:
    world.serve(5)
    world.etcd.down = True
    assert world.paths.refusal(VOLUME) is None
    reads = world.etcd.reads
    assert world.paths.refusal(VOLUME) is None
    assert world.etcd.reads == reads, "asked again at once"
    world.replica.volume.leads = False
    assert world.paths.refusal(VOLUME) is not None
    world.replica.volume.leads, world.etcd.down = True, False
    world.now += 10.0
    world.row(6, N3, GroupState.OPEN)
    assert world.paths.refusal(VOLUME) is not None, "it answers again"


def test_a_metastore_that_takes_too_long_is_not_waited_for(world: World) -> None:
    world.serve(5)
    world.etcd.answers.clear()
    try:
        assert world.paths.refusal(VOLUME) is None
    finally:
        world.etcd.answers.set()


def test_a_lease_that_runs_out_while_it_is_asked_counts(world: World) -> None:
    world.serve(5)
    world.etcd.answers.clear()
    found: list[str | None] = []
    asking = threading.Thread(target=lambda: found.append(world.paths.refusal(VOLUME)))
    asking.start()
    world.replica.volume.leads = False
    world.etcd.answers.set()
    asking.join()
    assert found[0] is not None


# -- where nodes export


def test_numbers_are_given_once_as_long_as_there_are_others() -> None:
    record = ExportsRecord()
    known = [f"{number:032x}" for number in range(1, MAX_NODES + 2)]
    for number, node in enumerate(known[:MAX_NODES], 1):
        record = record.with_node(node, (), (), known)
        assert record.nodes[node].number == number
    with pytest.raises(NoNumberLeft):
        record.with_node(known[MAX_NODES], (), (), known)
    left = known[:4] + known[5:]
    record = record.with_node(known[MAX_NODES], (), (), left)
    assert record.nodes[known[MAX_NODES]].number == 5
    assert known[4] not in record.nodes
    assert record.with_node(known[0], ("10.0.0.9:10809",), (), left).nodes[known[0]].number == 1


def test_two_nodes_that_say_it_at_once_get_different_numbers() -> None:
    world = World()
    fresh = [f"{number:032x}" for number in range(0xB1, 0xB9)]
    threads = [
        threading.Thread(target=write_exports, args=(world.records, node, (), ())) for node in fresh
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = read_exports(world.records)
    assert found is not None
    assert len({each.number for each in found.record.nodes.values()}) == len(found.record.nodes)


@pytest.mark.parametrize(
    "damage",
    [
        (b'"number":2', b'"number":1'),
        (b'"number":2', b'"number":255'),
        (b"3260,1", b"3260,0"),
        (b"10.0.0.1:10809", b"10.0.0.1 10809"),
        (b'"next":4', b'"next":0'),
    ],
)
def test_a_row_that_makes_no_sense_is_refused(damage: tuple[bytes, bytes]) -> None:
    found = read_exports(World().records)
    assert found is not None
    value = encode(found.record)
    assert decode(ExportsRecord, "exports", value) == found.record
    assert damage[0] in value
    with pytest.raises(CorruptRecord):
        decode(ExportsRecord, "exports", _resealed(value.replace(*damage)))


def _resealed(value: bytes) -> bytes:
    from native import crc32c

    body = value[17:]
    return value[:8] + b"%08x " % crc32c(body) + body


def config(*listen: str, **more: tuple[object, ...]) -> ClusterConfig:
    addresses = tuple(TcpAddress(host, 10811) for host in listen)
    return ClusterConfig(("http://e:1",), listen=addresses, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("own", "bound", "told"),
    [
        ("10.0.0.1", "10.0.0.1:10809", ("10.0.0.1:10809",)),
        ("10.0.0.1", "0.0.0.0:10809", ("10.0.0.1:10809",)),
        ("fd00::1", "[::]:10809", ("[fd00::1]:10809",)),
        ("10.0.0.1", "127.0.0.1:10809", ()),  # of no use to others
        ("127.0.0.1", "127.0.0.1:10809", ("127.0.0.1:10809",)),
        ("10.0.0.1", "/run/blockd/nbd.sock", ()),
    ],
)
def test_addresses_are_told_as_others_reach_them(
    own: str, bound: str, told: tuple[str, ...]
) -> None:
    assert advertised(config(own), [bound], [])[0] == told
    assert advertised(config(own), [], [(bound, 2)])[1] == tuple(f"{each},2" for each in told)


def test_the_configuration_may_name_others() -> None:
    named = config(
        "10.0.0.1",
        nbd=(TcpAddress("192.0.2.1", 10809),),
        iscsi=(PortalAddress(TcpAddress("192.0.2.1", 3260), 2),),
    )
    assert advertised(named, ["10.0.0.1:1"], [("10.0.0.1:2", 1)]) == (
        ("192.0.2.1:10809",),
        ("192.0.2.1:3260,2",),
    )
