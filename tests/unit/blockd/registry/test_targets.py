"""Names -> targets: automatic ones, past versions, configured ones while sessions use them."""

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from blockd.iscsi.limits import Limits
from blockd.iscsi.node import Node
from blockd.iscsi.targets import IQN_PREFIX, Access, Credentials, Portal, Target
from blockd.registry import stored
from blockd.registry.errors import (
    LunTaken,
    NoSuchLun,
    NoSuchTarget,
    TargetExists,
)
from blockd.registry.targets import TargetRegistry
from blockd.scsi import sense
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import Sense
from tests import aio
from tests.fake_store import FakeStore
from tests.fakes import MemoryDevice
from tests.scsi_rig import nexus
from volume.errors import NoSuchVersion, NoSuchVolume, OutOfSpace

MiB = 1 << 20
DB = IQN_PREFIX + "db"


def at_once(call: Callable[[], Any], done: Callable[[Any, Exception | None], None]) -> None:
    done(call(), None)


def served(store: FakeStore, **options: Any) -> TargetRegistry:
    registry = TargetRegistry(store, **options)
    registry.serve(Node(registry, Limits()), at_once)
    registry.listening([Portal("127.0.0.1", 3260, 1)])
    return registry


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    for name in ("vm1", "vm2"):
        store.create_volume(name, MiB)
    return store


def device(store: FakeStore, name: str = "vm1") -> MemoryDevice:
    found = store.get(name)
    assert found is not None
    return found


def units(target: Target) -> dict[int, str]:
    """LUN -> name of the device."""
    return {lun: unit.device.name for lun, unit in target.device.units.items()}


def found(registry: TargetRegistry, name: str) -> Target:
    target = registry.get(name)
    assert target is not None
    return target


def run(*steps: Coroutine[Any, Any, Any]) -> None:
    async def one_by_one() -> None:
        for step in steps:
            await step

    aio.run(one_by_one())


def login(target: Target, number: int = 1) -> Nexus:
    made = nexus(number)
    target.device.attach(made)
    return made


def told(target: Target, lun: int, to: Nexus) -> list[Sense]:
    """The unit attentions that wait for a nexus."""
    unit = target.device.units[lun]
    waiting = []
    while (what := unit.next_attention(to)) is not None:
        waiting.append(what)
    return waiting


# --- automatic targets --------------------------------------------------------------------------


def test_every_volume_is_unit_0_of_a_target(store: FakeStore) -> None:
    registry = served(store)
    assert [target.name for target in registry.all()] == [IQN_PREFIX + "vm1", IQN_PREFIX + "vm2"]
    target = found(registry, IQN_PREFIX + "vm1")
    assert units(target) == {0: "vm1"}
    assert registry.get(IQN_PREFIX + "vm1") is target
    assert target.device.name == target.name


@pytest.mark.parametrize("name", ["vm1", IQN_PREFIX, IQN_PREFIX + "vm3", IQN_PREFIX + "vm1@x"])
def test_other_names_are_nobodys(store: FakeStore, name: str) -> None:
    assert served(store).get(name) is None


def test_names_are_found_in_any_case(store: FakeStore) -> None:
    store.create_volume("Big", MiB)
    registry = served(store)
    assert units(found(registry, (IQN_PREFIX + "VM1").upper())) == {0: "vm1"}
    assert units(found(registry, IQN_PREFIX + "big")) == {0: "Big"}


def test_a_volume_with_another_name_is_the_same_unit(store: FakeStore) -> None:
    registry = served(store)
    unit = found(registry, IQN_PREFIX + "vm1").device.units[0]
    store.rename_volume("vm1", "vm9")
    assert registry.get(IQN_PREFIX + "vm1") is None
    assert found(registry, IQN_PREFIX + "vm9").device.units[0] is unit


def test_a_volume_that_was_put_back_is_another_unit_for_new_sessions(store: FakeStore) -> None:
    registry = served(store)
    before = found(registry, IQN_PREFIX + "vm1")
    store.put_back("vm1")
    after = found(registry, IQN_PREFIX + "vm1")
    assert after is not before
    assert after.device.units[0] is not before.device.units[0]
    assert after.device.units[0].device is device(store)


def test_there_are_none_unless_they_may_be(store: FakeStore) -> None:
    registry = served(store, auto=False)
    assert registry.all() == []
    assert registry.get(IQN_PREFIX + "vm1") is None
    with pytest.raises(NoSuchVolume):
        registry.open_past(IQN_PREFIX + "vm1@seq:1")


def test_access_is_the_servers(store: FakeStore) -> None:
    defaults = Access(chap=(Credentials("host1", b"correct horse"),))
    registry = served(store, defaults=defaults)
    assert registry.discovery is defaults
    assert found(registry, IQN_PREFIX + "vm1").access is defaults


def test_what_a_deleted_volumes_unit_kept_is_forgotten(store: FakeStore) -> None:
    registry = served(store)
    found(registry, IQN_PREFIX + "vm1").device.units[0].surroundings.save("k", b"v")
    registry.tick(0.0)
    assert store.kept("iscsi/unit/")
    store.delete_volume("vm1")
    registry.tick(1.0)
    assert not store.kept("iscsi/unit/")


# --- past versions ------------------------------------------------------------------------------


def test_a_past_version_is_a_target_while_it_is_held(store: FakeStore) -> None:
    registry, name = served(store), IQN_PREFIX + "vm1@seq:5"
    version = registry.open_past(name)
    target = registry.hold(name, version)
    assert units(target) == {0: "vm1@seq:5"}
    assert target.device.units[0].read_only
    assert registry.hold(name, version) is target
    assert name not in [each.name for each in registry.all()]
    registry.release(target)
    assert version.clients == [name]  # type: ignore[attr-defined]
    registry.release(target)
    assert version.clients == []  # type: ignore[attr-defined]


def test_a_version_that_there_is_not_is_said_to_be_missing(store: FakeStore) -> None:
    with pytest.raises(NoSuchVersion):
        served(store).open_past(IQN_PREFIX + "vm1@monday")


# --- portals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listening", "arrived_at", "shown"),
    [
        (["127.0.0.1", "192.0.2.1"], "127.0.0.1", ["127.0.0.1", "192.0.2.1"]),
        (["127.0.0.1", "192.0.2.1"], "192.0.2.1", ["192.0.2.1"]),
        (["0.0.0.0"], "192.0.2.1", ["192.0.2.1"]),
        (["0.0.0.0", "::"], "2001:db8::1", ["2001:db8::1"]),
        (["::1", "2001:db8::1"], "::1", ["::1", "2001:db8::1"]),
    ],
)
def test_portals_are_shown_as_who_asks_can_reach_them(
    store: FakeStore, listening: list[str], arrived_at: str, shown: list[str]
) -> None:
    registry = served(store)
    registry.listening([Portal(host, 3260, group) for group, host in enumerate(listening, 1)])
    target = registry.get(IQN_PREFIX + "vm1")
    assert target is not None
    portals = registry.portals(Portal(arrived_at, 3260, 1), target)
    assert [portal.host for portal in portals] == shown


# --- configured targets -------------------------------------------------------------------------


def test_a_configured_target_is_there_after_a_restart(store: FakeStore) -> None:
    registry = served(store)
    run(
        registry.create(DB, alias="data base"),
        registry.add_lun(DB, "vm2"),
        registry.add_lun(DB, "vm1@seq:7", 4),
        registry.change(DB, partial(stored.with_entry, entry="192.0.2.0/24")),
    )
    for each in (registry, served(store)):
        target = found(each, DB)
        assert target.alias == "data base"
        assert units(target) == {0: "vm2", 4: "vm1@seq:7"}
        assert target.access.addresses == ("192.0.2.0/24",)


def test_a_target_is_kept_with_all_its_units_at_once(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[list[tuple[int, str]]] = []
    seen: list[Target | None] = []
    registry = served(store)

    def keep(key: str, value: bytes | None) -> None:
        assert value is not None
        kept.append([(lun.lun, lun.ref) for lun in stored.decode(key, value).luns])
        seen.append(registry.get(DB))  # not before it is durable
        FakeStore.keep(store, key, value)

    monkeypatch.setattr(store, "keep", keep)
    run(registry.create(DB, sources=["vm1", "vm2", "vm1@seq:7"]))
    assert kept == [[(0, ""), (1, ""), (2, "seq:7")]]
    assert seen == [None]
    assert units(found(registry, DB)) == {0: "vm1", 1: "vm2", 2: "vm1@seq:7"}
    assert units(found(served(store), DB)) == units(found(registry, DB))


@pytest.mark.parametrize("sources", [["vm1", "nothing"], ["vm1", "vm1@nothing"]])
def test_a_target_of_which_a_unit_is_missing_is_never_there(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, sources: list[str]
) -> None:
    monkeypatch.setattr(store, "keep", lambda *_: pytest.fail("something was kept"))
    registry = served(store)
    with pytest.raises((NoSuchVolume, NoSuchVersion)):
        run(registry.create(DB, sources=sources))
    assert registry.get(DB) is None


def test_units_go_with_their_volume_whatever_it_is_called(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1"))
    store.rename_volume("vm1", "vm9")
    assert units(found(registry, DB)) == {0: "vm9"}
    assert units(found(served(store), DB)) == {0: "vm9"}


def test_targets_of_a_volume_share_its_unit(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1", 3))
    own = found(registry, IQN_PREFIX + "vm1").device.units[0]
    assert found(registry, DB).device.units[3] is own


def test_a_configured_target_hides_the_automatic_one(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(IQN_PREFIX + "vm1"))
    assert units(found(registry, IQN_PREFIX + "vm1")) == {}
    assert [units(target) for target in registry.all()] == [{}, {0: "vm2"}]


def test_sessions_see_units_come_and_go(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1"))
    target = found(registry, DB)
    session = login(target)
    run(registry.add_lun(DB, "vm2"))
    assert units(target) == {0: "vm1", 1: "vm2"}
    assert told(target, 0, session) == [sense.LUNS_CHANGED]
    run(registry.change(DB, partial(stored.without_lun, lun=1)))
    assert units(target) == {0: "vm1"}
    assert told(target, 0, session) == [sense.LUNS_CHANGED]


def test_a_session_keeps_the_unit_of_a_volume_that_was_put_back(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1"), registry.add_lun(DB, "vm2"))
    target = found(registry, DB)
    session = login(target)
    old_device, old_unit = target.device, target.device.units[0]
    store.put_back("vm1")
    registry.tick(0.0)
    assert old_device.units[0] is old_unit
    assert session.target is old_device
    assert found(registry, DB) is target
    assert target.device is not old_device
    assert target.device.units[0].device is device(store)
    assert target.device.units[1] is old_device.units[1]
    # What is added by hand shows in both.
    run(registry.add_lun(DB, "vm2", 9))
    assert 9 in old_device.units
    assert 9 in target.device.units
    run(registry.change(DB, partial(stored.without_lun, lun=0)))
    assert list(old_device.units) == list(target.device.units) == [1, 9]


def test_without_sessions_a_deleted_volume_is_no_unit(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1"), registry.add_lun(DB, "vm2"))
    target = found(registry, DB)
    before = target.device
    store.delete_volume("vm1")
    registry.tick(0.0)
    assert target.device is before
    assert units(target) == {1: "vm2"}
    run(registry.change(DB, partial(stored.without_lun, lun=0)))


def test_a_version_stays_open_as_long_as_its_unit_is_there(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1@seq:7"))
    version: Any = found(registry, DB).device.units[0].device
    assert version.clients == [DB]
    run(registry.change(DB, partial(stored.without_lun, lun=0)))
    assert version.clients == []
    run(registry.add_lun(DB, "vm1@seq:8"))
    version = found(registry, DB).device.units[1].device
    run(registry.delete(DB))
    assert version.clients == []


def test_a_version_of_so_long_ago_stays_that_version(store: FakeStore) -> None:
    store.open_version = lambda name: device(store).copy(name, read_only=True)  # type: ignore[method-assign]
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1@-10m"))
    [lun] = registry.named(DB).stored.luns
    assert lun.ref == f"seq:{device(store).seq}"


def test_a_version_that_cannot_be_opened_is_left_out_at_a_start(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1@seq:7"), registry.add_lun(DB, "vm2"))

    def gone(name: str) -> MemoryDevice:
        raise NoSuchVersion("vm1", "seq:7")

    store.open_version = gone  # type: ignore[method-assign]
    assert units(found(served(store), DB)) == {1: "vm2"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda registry: registry.create(DB), TargetExists),
        (lambda registry: registry.delete(IQN_PREFIX + "x"), NoSuchTarget),
        (lambda registry: registry.add_lun(IQN_PREFIX + "vm1", "vm1"), NoSuchTarget),
        (lambda registry: registry.add_lun(DB, "vm3"), NoSuchVolume),
        (lambda registry: registry.add_lun(DB, ""), NoSuchVolume),
        (lambda registry: registry.add_lun(DB, "vm1@monday"), NoSuchVersion),
        (lambda registry: registry.add_lun(DB, "vm2", 0), LunTaken),
        (lambda registry: registry.change(DB, partial(stored.without_lun, lun=5)), NoSuchLun),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(
    store: FakeStore,
    change: Callable[[TargetRegistry], Coroutine[Any, Any, None]],
    error: type[Exception],
) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1"))
    before = dict(store.states)
    with pytest.raises(error):
        run(change(registry))
    assert store.states == before
    assert units(found(registry, DB)) == {0: "vm1"}


def test_a_change_that_is_not_kept_is_not_made(store: FakeStore) -> None:
    registry = served(store)
    run(registry.create(DB), registry.add_lun(DB, "vm1"))
    for change in (
        lambda: registry.add_lun(DB, "vm2"),
        lambda: registry.change(DB, partial(stored.without_lun, lun=0)),
        lambda: registry.delete(DB),
    ):
        store.fail_with = OutOfSpace("no room")
        with pytest.raises(OutOfSpace):
            run(change())
        assert units(found(registry, DB)) == {0: "vm1"}


def test_changes_at_once_are_made_one_after_the_other(store: FakeStore) -> None:
    registry = served(store)

    async def change() -> None:
        await registry.create(DB)
        luns = await asyncio.gather(*(registry.add_lun(DB, "vm1") for _ in range(5)))
        assert sorted(luns) == list(range(5))

    aio.run(change())
    assert len(registry.named(DB).stored.luns) == 5
