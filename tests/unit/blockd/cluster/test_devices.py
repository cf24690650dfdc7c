"""A node's device enters itself in the map, and people change what it is used for."""

import itertools

import pytest

from blockd.cluster.devices import ID_FILE, CorruptDevice, Devices, own_id
from blockd.config.cluster import ClusterConfig
from tests.metastore_twin import DictMetaStore
from tests.sim.crash import CrashPlanner
from tests.sim.simdisk import SimDisk
from transport.devicemap import DeviceState, WrongMap
from transport.stripestate import DeviceUse, StripeState
from volume.metastore import TRIES, ClusterRecords, MetaStoreUnavailable
from volume.metastore_records import ClusterRecord

NAMES = {f"{number:032x}": f"n{number}" for number in range(1, 5)}
TIB = 1 << 40


class Rig:
    def __init__(self) -> None:
        self.store = DictMetaStore()
        tokens = itertools.count(1)
        self.records = ClusterRecords(self.store, lambda: f"{next(tokens):032x}")
        self.records.commit(self.records.found(ClusterRecord("c" * 32, 0)))
        self.state = StripeState()

    def node(self, number: int, config: ClusterConfig | None = None) -> Devices:
        """Its device has the id of the node with an f in front."""
        return Devices(
            config or ClusterConfig(),
            (f"{number:032x}", f"n{number}"),
            device(number),
            TIB,
            self.records,
            lambda: NAMES,
            lambda: self.state,
        )

    def three(self) -> Devices:
        nodes = [self.node(number) for number in (1, 2, 3)]
        for node in nodes:
            node.enter()
        nodes[0].read()
        return nodes[0]


def device(number: int) -> str:
    return f"f{number:031x}"


def test_a_device_enters_itself_once_and_follows_its_configuration() -> None:
    rig = Rig()
    rig.node(1).enter()
    rig.node(1).enter()
    assert rig.node(1).read().epoch == 1
    (found,) = rig.node(1).read().devices.values()
    assert (found.site, found.rack, found.host, found.weight) == ("site", "rack", "n1", TIB)
    moved = ClusterConfig(rack="r2", host="h7", weight=5 * TIB)
    rig.node(1, moved).enter()
    (found,) = rig.node(1).read().devices.values()
    assert (found.rack, found.host, found.weight) == ("r2", "h7", 5 * TIB)


def test_what_people_have_said_of_it_stays() -> None:
    rig = Rig()
    node = rig.three()
    node.act("drain", "n2")
    node.act("fail", device(3))
    for number in (2, 3):
        rig.node(number, ClusterConfig(rack="r2")).enter()
    devices = node.read().devices
    assert devices[device(2)].state is DeviceState.DRAINING
    assert devices[device(3)].state is DeviceState.FAILED
    assert devices[device(2)].rack == "r2"


def test_two_that_enter_at_once_are_both_there() -> None:
    rig = Rig()
    first = rig.node(1)
    second = rig.node(2)
    commit = rig.store.commit

    def late(changes: object) -> object:
        rig.store.commit = commit  # type: ignore[method-assign]
        second.enter()
        return commit(changes)  # type: ignore[arg-type]

    rig.store.commit = late  # type: ignore[method-assign, assignment]
    first.enter()
    assert set(first.read().devices) == {device(1), device(2)}


def test_a_map_that_changes_all_the_time_is_given_up() -> None:
    rig = Rig()
    node = rig.three()
    commit = rig.store.commit
    others = itertools.cycle(["drain", "return"])

    def busy(changes: object) -> object:
        rig.store.commit = commit  # type: ignore[method-assign]
        rig.node(2).act(next(others), "n2")
        rig.store.commit = busy  # type: ignore[method-assign, assignment]
        return commit(changes)  # type: ignore[arg-type]

    rig.store.commit = busy  # type: ignore[method-assign, assignment]
    with pytest.raises(MetaStoreUnavailable, match=f"{TRIES} times"):
        node.act("drain", "n3")


def test_a_device_is_named_by_its_id_a_part_of_it_or_its_node() -> None:
    rig = Rig()
    node = rig.three()
    node.act("drain", device(1))
    node.act("return", "n1")
    for text, count in (
        ("f", "3 devices are"),
        ("", "3 devices are"),
        ("n9", "none is"),
        ("zz", "none is"),
    ):
        with pytest.raises(WrongMap, match=f"{count} called so; `blockd cluster devices`"):
            node.act("drain", text)


def test_a_device_is_removed_only_when_nothing_is_placed_on_it() -> None:
    rig = Rig()
    node = rig.three()
    with pytest.raises(WrongMap, match="drain it first"):
        node.act("remove", "n3")
    node.act("fail", "n3")
    with pytest.raises(WrongMap, match="has not looked yet"):
        node.act("remove", "n3")  # before the first round: unknown, it would never count as lost
    rig.state = StripeState(devices={device(3): DeviceUse(4, 4096, 4, 4096)})
    with pytest.raises(WrongMap, match="4 shards are placed"):
        node.act("remove", "n3")
    rig.state = StripeState(devices={device(3): DeviceUse(0, 0, 0, 0)})
    node.act("remove", "n3")
    assert device(3) not in node.read().devices


def test_a_new_device_takes_the_seat_of_an_old_one() -> None:
    rig = Rig()
    node = rig.three()
    rig.node(4).enter()
    node.act("fail", "n3")
    node.act("replace", "n3", "n4")
    found = node.read().devices[device(4)]
    assert (found.seat, found.state) == (device(3), DeviceState.IN)
    with pytest.raises(WrongMap, match="cannot replace itself"):
        node.act("replace", "n2", "n2")
    rig.state = StripeState(devices={device(4): DeviceUse(1, 1, 0, 0)})
    with pytest.raises(WrongMap, match="has shards already"):
        node.act("replace", "n2", "n4")


def test_a_drain_ends_once_and_an_old_one_ends_nothing() -> None:
    rig = Rig()
    node = rig.three()
    node.act("drain", "n2")
    node.emptied(device(2))
    epoch = node.read().epoch
    node.emptied(device(2))
    assert node.read().epoch == epoch
    assert node.read().devices[device(2)].state is DeviceState.OUT


def test_the_list_tells_what_the_last_round_has_seen() -> None:
    rig = Rig()
    node = rig.three()
    rig.state = StripeState(
        *(9, 1, 2, 2048),
        devices={device(2): DeviceUse(9, 9216, 2, 2048)},
        problems={"x": "is in the way"},
    )
    found = node.list()
    assert (found.stripes, found.unreadable, found.moves, found.move_bytes) == (9, 1, 2, 2048)
    assert found.problems == ("x: is in the way",)
    first, second, _ = found.devices
    assert (first.node, first.here, first.shards) == ("n1", True, 0)
    assert (second.node, second.shard_bytes, second.leaving) == ("n2", 9216, 2)


def test_while_etcd_does_not_answer_the_last_map_is_shown() -> None:
    rig = Rig()
    node = rig.three()

    def down(key: str) -> None:
        raise MetaStoreUnavailable("etcd: nobody answers")

    rig.store.read = down  # type: ignore[method-assign]
    found = node.list()
    assert found.problem == "etcd: nobody answers"
    assert len(found.devices) == 3


# -- the id


def test_the_id_is_made_once() -> None:
    disk = SimDisk()
    made = own_id(disk)
    assert own_id(disk) == made
    assert own_id(SimDisk()) != made


def test_a_power_cut_leaves_an_id_or_none() -> None:
    disk = SimDisk()
    made = own_id(disk)
    ops = len(disk.trace.ops)
    found = set()
    for image in CrashPlanner(disk.trace).images(range(ops + 1)):
        after = SimDisk(image)
        again = own_id(after)
        assert own_id(after) == again
        found.add(again == made)
    assert found == {True, False}


def test_an_id_that_cannot_be_is_refused() -> None:
    disk = SimDisk()
    made = own_id(disk)
    file = disk.open(ID_FILE)
    file.pwrite(b"G", 0)
    with pytest.raises(CorruptDevice, match="is no id of a device"):
        own_id(disk)
    file.pwrite(made[:1].encode(), 0)
    assert own_id(disk) == made
