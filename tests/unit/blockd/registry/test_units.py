"""Units of devices: one each, what they keep, what becomes of them with their volumes."""

import errno

import pytest

from blockd.iscsi.limits import Limits
from blockd.iscsi.node import Node
from blockd.registry.units import PREFIX, Units, _Pace
from blockd.scsi import modes
from blockd.scsi.vpd import naa
from tests.fake_store import FakeStore
from tests.fakes import MemoryDevice
from tests.iscsi_initiator import FakeTargets
from tests.scsi_rig import nexus
from volume.errors import StoreSealed

MiB = 1 << 20


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    store.create_volume("vm1", MiB)
    return store


def device(store: FakeStore, name: str = "vm1") -> MemoryDevice:
    found = store.get(name)
    assert found is not None
    return found


def test_a_device_has_one_unit(store: FakeStore) -> None:
    units = Units(store)
    unit = units.of(device(store))
    assert units.of(device(store)) is unit
    assert unit.identity.uuid == device(store).uuid


def test_a_unit_is_found_by_its_designator_before_anybody_logged_in(store: FakeStore) -> None:
    store.create_volume("vm2", MiB)
    units = Units(store)
    other = units.of(device(store)).surroundings.unit(naa(device(store, "vm2").uuid))
    assert other is units.of(device(store, "vm2"))
    assert units.find(naa(bytes(16))) is None


def test_a_version_that_is_in_use_is_found_as_well(store: FakeStore) -> None:
    units, version = Units(store), store.open_version("vm1@seq:1")
    unit = units.of(version)
    assert units.find(naa(version.uuid)) is unit
    units.drop(version)
    assert units.find(naa(version.uuid)) is None


def test_a_unit_that_cannot_look_around_keeps_no_other_from_it(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.create_volume("vm2", MiB)
    units, looked = Units(store), []
    for name in ("vm1", "vm2"):
        unit = units.of(device(store, name))
        monkeypatch.setattr(unit.surroundings, "port_groups", lambda: object())

        def look(name: str = name) -> None:
            looked.append(name)
            raise ValueError(name)

        monkeypatch.setattr(unit, "look_around", look)
    with pytest.raises(ValueError, match="vm1"):
        units.paths_changed()
    assert looked == ["vm1", "vm2"]


def test_what_a_unit_keeps_is_there_after_a_restart(store: FakeStore) -> None:
    Units(store).of(device(store)).surroundings.save("k", b"v")
    surroundings = Units(store).of(device(store)).surroundings
    assert surroundings.load("k") == b"v"
    surroundings.save("k", None)
    assert Units(store).of(device(store)).surroundings.load("k") is None


def test_a_version_keeps_apart_from_its_volume(store: FakeStore) -> None:
    units = Units(store)
    units.of(device(store)).surroundings.save(modes.KEY, b"{}")
    version = units.of(store.open_version("vm1@seq:1"))
    assert version.surroundings.load(modes.KEY) is None
    version.surroundings.save("k", b"v")
    assert len(store.kept(f"{PREFIX}{device(store).uuid.hex()}/")) == 2


def test_a_volume_that_was_put_back_has_another_unit_with_what_was_kept(store: FakeStore) -> None:
    units = Units(store)
    before = units.of(device(store))
    before.surroundings.save("k", b"v")
    store.put_back("vm1")
    assert units.retired(before)
    assert units.drop_retired()
    assert not units.drop_retired()
    after = units.of(device(store))
    assert after is not before
    assert after.surroundings.load("k") == b"v"
    with pytest.raises(OSError, match="shutdown") as error:  # it would undo what its successor kept
        before.surroundings.save("k", b"old")
    assert error.value.errno == errno.ESHUTDOWN


def test_sessions_of_a_volume_that_went_back_as_the_same_device_end(store: FakeStore) -> None:
    """As one does that other nodes have as well: this node does not serve it, and whoever is logged
    in here would go on with what it has cached once it does."""
    ended = []

    class Sessions:
        def watch(self, units: object) -> None:
            pass

        def end_sessions_of(self, unit: object, reason: str) -> None:
            ended.append((unit, reason))

    units = Units(store)
    units.serve(Sessions(), lambda *_: None)  # type: ignore[arg-type]
    volume = device(store)
    unit = units.of(volume)
    assert not units.drop_retired()
    assert not ended
    volume.went_back = 1  # type: ignore[attr-defined]
    for _ in range(2):
        assert not units.drop_retired()
        assert ended == [(unit, "the volume went back to an earlier state")]
    assert units.of(volume) is unit, "what it keeps is the volume's"


def test_what_belongs_to_no_volume_is_forgotten_at_the_start(store: FakeStore) -> None:
    store.keep(f"{PREFIX}{'99' * 16}/{'99' * 16}/modes", b"{}")
    kept = Units(store).of(device(store)).surroundings
    kept.save("k", b"v")
    Units(store)
    assert list(store.kept(PREFIX).values()) == [b"v"]


def test_a_store_that_keeps_nothing_more_is_an_error_of_the_disk(store: FakeStore) -> None:
    surroundings = Units(store).of(device(store)).surroundings
    store.fail_with = StoreSealed("a sync failed")
    with pytest.raises(OSError, match="sync failed"):
        surroundings.save("k", b"v")
    assert surroundings.load("k") is None


def test_space_is_looked_at_from_time_to_time(store: FakeStore) -> None:
    units = Units(store)
    looks: list[object] = []

    def work(call: object, done: object) -> None:
        looks.append(call)

    units.serve(Node(FakeTargets(), Limits()), work)
    units.tick(0.0)
    assert not looks  # nobody is interested
    units.of(device(store))
    for now_s in (0.0, 1.0, 4.0, 6.0):
        units.tick(now_s)
    assert len(looks) == 2


def test_space_is_short_below_a_tenth_of_the_disk(store: FakeStore) -> None:
    units = Units(store)
    status = store.status()
    facts = units.space()
    assert facts.available_bytes == status.space_left_bytes
    assert facts.threshold_bytes == status.space_short_bytes
    assert facts.short == (facts.available_bytes < facts.threshold_bytes)


def test_tasks_are_aborted_on_units_that_come_later(store: FakeStore) -> None:
    units, node = Units(store), Node(FakeTargets(), Limits())
    units.serve(node, lambda call, done: None)
    unit = units.of(device(store))
    assert unit.aborting
    assert unit.abort([nexus(1)], lambda: None) == []


def test_writers_share_a_rate() -> None:
    now, slept = [100.0], list[float]()
    pace = _Pace(MiB, lambda: now[0], slept.append)
    for length in (MiB, MiB // 2, MiB):
        pace.wait(length)
    assert slept == [1.0, 1.5]
    now[0] += 60.0  # what was not used is not saved up
    pace.wait(MiB)
    pace.wait(MiB)
    assert slept == [1.0, 1.5, 1.0]
