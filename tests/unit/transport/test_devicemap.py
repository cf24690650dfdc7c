"""The device map as a value, as a row, and as what two people change at once."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from native import crc32c
from tests.device_maps import TIB, device, device_id, even_map, map_of
from tests.metastore_twin import DictMetaStore
from transport.devicemap import (
    MAX_DEVICES,
    MAX_WEIGHT,
    Device,
    DeviceMap,
    DeviceState,
    Level,
    MapRecords,
    WrongMap,
)
from volume.metastore import ClusterRecords, Done, Lost
from volume.metastore_records import ClusterRecord, CorruptRecord, decode, encode

TOKEN = "f" * 32
LABELS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,5}", fullmatch=True)
IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)
DEVICES = st.builds(
    Device,
    IDS,
    IDS,
    LABELS,
    LABELS,
    LABELS,
    st.integers(1, MAX_WEIGHT),
    st.sampled_from(DeviceState),
)


def value_of(fields: Any) -> bytes:
    body = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return b"blockd1 %08x " % crc32c(body) + body


def fields_of(row: Any, device: str = "a" * 32) -> dict[str, Any]:
    return {"epoch": 1, "sites": {"s": {"r": {"h": {device: row}}}}, "token": TOKEN}


def read_back(value: bytes) -> DeviceMap:
    return decode(DeviceMap, "devices", value)


# -- canonical form


@given(
    st.integers(0, 1 << 62), st.lists(DEVICES, max_size=3, unique_by=lambda each: each.device_id)
)
@settings(max_examples=30)
def test_what_is_encoded_is_decoded(epoch: int, devices: list[Device]) -> None:
    made = DeviceMap(epoch, {each.device_id: each for each in devices}, TOKEN)
    assert read_back(encode(made)) == made


def test_the_canonical_form_is_this() -> None:
    old = Device("a" * 32, "c" * 32, "s", "r", "h", 7, DeviceState.FAILED)
    new = replace(device(1, 0), device_id="b" * 32, seat="a" * 32)
    made = DeviceMap(4, {"b" * 32: new, "a" * 32: old}, TOKEN)
    sites = {
        "s": {"r": {"h": {"a" * 32: ["c" * 32, "failed", 7]}}},
        "s0": {"r0": {"h0": {"b" * 32: [new.node_id, "in", TIB, "a" * 32]}}},
    }
    assert encode(made) == value_of({"epoch": 4, "sites": sites, "token": TOKEN})


def test_the_name_is_that_of_the_content_and_not_of_its_order() -> None:
    devices = [device(number, number) for number in range(3)]
    one, other = map_of(devices), map_of(devices[::-1])
    assert one.name == other.name == replace(one, token=TOKEN).name
    assert one.name.startswith("1-")
    assert one.name != one.drain(devices[0].device_id).name


@pytest.mark.parametrize(
    "row",
    [
        [],
        ["c" * 32, "in"],
        ["c" * 32, "in", 1, "d" * 32, 5],
        ["c" * 32, "in", 1, ""],
        ["c" * 32, "in", 1, "a" * 32],
        ["c" * 32, "in", 0],
        ["c" * 32, "in", -1],
        ["c" * 32, "in", MAX_WEIGHT + 1],
        ["c" * 32, "in", 1.0],
        ["c" * 32, "in", True],
        ["c" * 32, "In", 1],
        ["c" * 31, "in", 1],
        [7, "in", 1],
        "in",
        None,
    ],
    ids=repr,
)
def test_a_row_out_of_bounds_is_refused(row: Any) -> None:
    with pytest.raises(CorruptRecord):
        read_back(value_of(fields_of(row)))


GOOD = ["c" * 32, "in", 1]


@pytest.mark.parametrize(
    "fields",
    [
        fields_of(GOOD, "A" * 32),
        {**fields_of(GOOD), "epoch": -1},
        {**fields_of(GOOD), "more": 1},
        {**fields_of(GOOD), "sites": []},
        {**fields_of(GOOD), "sites": {"s": {}}},
        {**fields_of(GOOD), "sites": {"s": {"r": {"h": {}}}}},
        {**fields_of(GOOD), "sites": {"": {"r": {"h": {"a" * 32: GOOD}}}}},
        {**fields_of(GOOD), "sites": {"s": {"r": {h: {"a" * 32: GOOD} for h in "gh"}}}},
    ],
)
def test_a_map_out_of_bounds_is_refused(fields: Any) -> None:
    with pytest.raises(CorruptRecord):
        read_back(value_of(fields))


def test_as_many_devices_as_there_may_be_fit_into_a_row() -> None:
    full = even_map(MAX_DEVICES // 8, 8, MAX_WEIGHT)
    value = encode(replace(full, token=TOKEN))
    assert len(value) < 512 << 10
    assert read_back(value).name == full.name
    with pytest.raises(WrongMap, match=f"{MAX_DEVICES} are the most"):
        full.add(device(10**6, 0))


# -- changes


def test_a_device_is_added_drained_emptied_and_removed() -> None:
    before = even_map(2)
    first = device_id(0)
    drained = before.drain(first)
    assert drained.epoch == 2
    assert [each.device_id for each in drained.usable()] == [device_id(1)]
    assert drained.device(first).readable
    out = drained.emptied(first)
    assert out.device(first).state is DeviceState.OUT
    assert first not in out.remove(first).devices
    assert before.device(first).state is DeviceState.IN


def test_a_device_that_drains_can_be_used_again_and_one_that_failed_can_not() -> None:
    before = even_map(2)
    drained = before.drain(device_id(0))
    assert drained.back(device_id(0)).devices == before.devices
    failed = drained.fail(device_id(0))
    assert not failed.device(device_id(0)).readable
    with pytest.raises(WrongMap, match="is failed, and becomes in only from draining or out"):
        failed.back(device_id(0))


REFUSED: list[tuple[str, Callable[[DeviceMap], object]]] = [
    ("is in; drain it first", lambda m: m.remove(device_id(0))),
    ("is in, and becomes out only from", lambda m: m.emptied(device_id(0))),
    ("is in the map already", lambda m: m.add(device(0, 7))),
    ("is in the map already", lambda m: m.replace(device_id(0), device(1, 1))),
    ("is not in map 1", lambda m: m.drain(device_id(9))),
    ("weight 0 is not", lambda m: m.reweigh(device_id(0), 0)),
    ("host '' is not", lambda m: m.add(replace(device(5, 0), host=""))),
    ("id 'x' is not", lambda m: m.add(replace(device(5, 0), device_id="x"))),
    ("seat 'x' is not", lambda m: m.add(replace(device(5, 0), seat="x"))),
    ("which is in as well", lambda m: m.add(replace(device(5, 0), seat=device_id(0)))),
    (
        "is out, so there is nothing",
        lambda m: m.drain(device_id(0)).emptied(device_id(0)).replace(device_id(0), device(5, 0)),
    ),
]


@pytest.mark.parametrize(("why", "change"), REFUSED)
def test_a_change_that_cannot_be_is_refused(
    why: str, change: Callable[[DeviceMap], object]
) -> None:
    with pytest.raises(WrongMap, match=why):
        change(even_map(2))


def test_a_replacement_has_the_seat_and_the_weight_of_the_old_one() -> None:
    after = even_map(2).replace(device_id(0), device(7, 0, weight=1))
    assert after.device(device_id(0)).state is DeviceState.DRAINING
    assert after.device(device_id(7)).weight == TIB
    assert after.device(device_id(7)).place == device_id(0)
    third = after.replace(device_id(7), device(8, 0))
    assert third.device(device_id(8)).place == device_id(0)
    with pytest.raises(WrongMap, match="which is in as well"):
        third.back(device_id(7))


def test_domains_are_whole_paths() -> None:
    one, other = device(0, 0, rack=0), device(1, 0, rack=1)
    assert one.host == other.host
    assert one.domain(Level.HOST) != other.domain(Level.HOST)
    assert one.domain(Level.SITE) == other.domain(Level.SITE) == ("s0",)
    assert one.domain(Level.RACK) == ("s0", "r0")
    assert one.domain(Level.DEVICE)[-1] == one.device_id


# -- in the MetaStore


def records_with(store: DictMetaStore) -> ClusterRecords:
    tokens = count(1)
    return ClusterRecords(store, lambda: f"{next(tokens):032x}")


def test_of_two_who_change_a_map_one_is_told_that_it_lost() -> None:
    records = records_with(DictMetaStore())
    maps = MapRecords(records)
    records.commit(records.found(ClusterRecord("a" * 32, 0)))
    assert maps.read() is None

    def change(make: Callable[[DeviceMap], DeviceMap]) -> Any:
        cluster, old = records.cluster(), maps.read()
        assert cluster is not None
        return maps.change(cluster, old, make)

    assert isinstance(records.commit(change(lambda m: m.add(device(0, 0)))), Done)
    one = change(lambda m: m.add(device(1, 1)))
    other = change(lambda m: m.drain(device_id(0)))
    assert isinstance(records.commit(one), Done)
    assert isinstance(records.commit(other), Lost)
    assert isinstance(records.commit(one), Done)  # the same one again, as after a lost answer
    stored, cluster = maps.read(), records.cluster()
    assert stored is not None
    assert cluster is not None
    assert set(stored.record.devices) == {device_id(0), device_id(1)}
    assert stored.record.device(device_id(0)).state is DeviceState.IN
    assert stored.record.epoch == cluster.record.map_epoch == 2


def test_a_map_of_another_epoch_than_the_cluster_is_not_changed() -> None:
    records = records_with(DictMetaStore())
    maps = MapRecords(records)
    records.commit(records.found(ClusterRecord("a" * 32, 0)))
    first = records.cluster()
    assert first is not None
    records.commit(maps.change(first, None, lambda m: m.add(device(0, 0))))
    with pytest.raises(WrongMap, match="epoch 1, but the cluster is at 0"):
        maps.change(first, maps.read(), lambda m: m.drain(device_id(0)))
