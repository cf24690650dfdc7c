"""The lists of all volumes: durable before they hold, closed when damaged, of clones as well."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from blockd.access import kept
from blockd.access.book import AccessBook, revision
from blockd.access.rules import AccessChanged, AccessList, Client, Grant, InvalidRule, Rule
from tests import aio
from tests.fake_store import FakeStore
from tests.fakes import MemoryDevice
from tests.sim.store_rig import SMALL, StoreRig
from volume.errors import InvalidName, OutOfSpace, VolumeError, VolumeExists
from volume.layout import META_PREFIX_STATE
from volume.model import VolumeInfo

MiB = 1 << 20
ROOT = Rule(uid=0)
ONE, OTHER = Client(uid=0), Client(uid=1)


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


def closed(store: FakeStore) -> AccessBook:
    """vm1 is for ROOT."""
    book = AccessBook(store)
    aio.run(book.change(device(store), (ROOT,)))
    return book


def grants(book: AccessBook, volume: MemoryDevice) -> tuple[Grant, Grant]:
    return book.grant(volume, ONE), book.grant(volume, OTHER)


OPEN, CLOSED, SHUT = (
    (Grant.WRITE, Grant.WRITE),
    (Grant.WRITE, Grant.NOTHING),
    (Grant.NOTHING, Grant.NOTHING),
)


def test_a_volume_without_a_list_is_open(store: FakeStore) -> None:
    assert grants(AccessBook(store), device(store)) == OPEN


def test_a_list_holds_for_its_volume_and_after_a_restart(store: FakeStore) -> None:
    for book in (closed(store), AccessBook(store)):
        assert grants(book, device(store)) == CLOSED
        assert grants(book, device(store, "vm2")) == OPEN


def test_a_list_stays_with_its_volume(store: FakeStore) -> None:
    book = closed(store)
    store.rename_volume("vm1", "vm9")
    store.rename_volume("vm2", "vm1")
    assert grants(book, device(store, "vm9")) == CLOSED
    assert grants(book, device(store, "vm1")) == OPEN


def test_past_versions_have_the_list_of_their_volume(store: FakeStore) -> None:
    book = closed(store)
    assert grants(book, store.open_version("vm1@seq:1")) == CLOSED


def test_an_open_volume_is_so_again_when_the_list_goes(store: FakeStore) -> None:
    book = closed(store)
    aio.run(book.change(device(store), None))
    assert grants(book, device(store)) == OPEN
    assert store.states == {}


def test_a_change_that_cannot_be_kept_changes_nothing(store: FakeStore) -> None:
    book = closed(store)
    store.fail_with = OutOfSpace("the disk is full")
    with pytest.raises(OutOfSpace):
        aio.run(book.change(device(store), None))
    assert grants(book, device(store)) == CLOSED


def test_a_bad_rule_changes_nothing(store: FakeStore) -> None:
    book = closed(store)
    with pytest.raises(InvalidRule):
        aio.run(book.change(device(store), (ROOT, Rule(address="x"))))
    assert grants(book, device(store)) == CLOSED


def test_a_change_of_another_list_than_was_looked_at_is_refused(store: FakeStore) -> None:
    book = AccessBook(store)
    seen = revision(book.list_of(device(store)))
    aio.run(book.change(device(store), (ROOT,), seen))
    with pytest.raises(AccessChanged, match="volume vm1"):
        aio.run(book.change(device(store), (), seen))
    assert grants(book, device(store)) == CLOSED
    aio.run(book.change(device(store), (), revision(book.list_of(device(store)))))
    assert grants(book, device(store)) == SHUT


def test_watchers_are_told_after_the_change_holds(store: FakeStore) -> None:
    book = AccessBook(store)
    seen = []

    async def watch() -> list[str]:
        seen.append(grants(book, device(store)))
        return ["nbd-1"]

    book.watch(watch)
    assert aio.run(book.change(device(store), (ROOT,))) == ["nbd-1"]
    assert seen == [CLOSED]


@pytest.mark.parametrize("value", [b"damaged", b"{}", b"\xff"])
def test_a_damaged_list_lets_nobody_in_until_it_is_made_anew(
    store: FakeStore, caplog: pytest.LogCaptureFixture, value: bytes
) -> None:
    store.states[kept.volume_key(device(store).volume_uuid)] = value
    book = AccessBook(store)
    assert "access list damaged, nobody is let in" in caplog.text
    assert grants(book, device(store)) == SHUT
    assert grants(book, device(store, "vm2")) == OPEN
    aio.run(book.change(device(store), (ROOT,), revision(book.list_of(device(store)))))
    assert grants(AccessBook(store), device(store)) == CLOSED


def test_a_list_is_durable_in_a_real_store() -> None:
    rig = StoreRig(options=SMALL)
    rig.store.create_volume("vm1", MiB)
    aio.run(AccessBook(rig.store).change(rig.volume("vm1"), (ROOT,)))
    rig = rig.rebooted()
    book = AccessBook(rig.store)
    assert (book.grant(rig.volume("vm1"), ONE), book.grant(rig.volume("vm1"), OTHER)) == CLOSED
    key = META_PREFIX_STATE + kept.volume_key(rig.volume("vm1").uuid).encode()
    value = rig.store._history._kv.get(key)
    assert value is not None
    rig.store._history._kv.update({key: value[:-1] + bytes((value[-1] ^ 1,))})
    book = AccessBook(rig.store)
    assert (book.grant(rig.volume("vm1"), ONE), book.grant(rig.volume("vm1"), OTHER)) == SHUT


def test_a_list_under_the_key_of_another_closes_the_volume_that_it_names(store: FakeStore) -> None:
    closed(store)
    ((key, value),) = store.states.items()
    store.states = {key[:-1] + "f": value}
    assert grants(AccessBook(store), device(store)) == SHUT


def test_a_deleted_volume_leaves_no_list(store: FakeStore) -> None:
    book = closed(store)
    volume = device(store)
    store.delete_volume("vm1")
    aio.run(book.forget(volume))
    assert store.states == {}


# --- clones -------------------------------------------------------------------------------------


def clone(
    store: FakeStore, book: AccessBook, make: Callable[[], VolumeInfo] | None = None
) -> VolumeInfo:
    make = make or partial(store.create_volume, "copy", MiB)
    return aio.run(book.clone(device(store), "copy", make))


def test_a_clone_has_the_list_of_its_source(store: FakeStore) -> None:
    book = closed(store)
    clone(store, book)
    for each in (book, AccessBook(store)):
        assert grants(each, device(store, "copy")) == CLOSED
    assert len(store.states) == 2, "what was kept for its name is forgotten"
    aio.run(book.change(device(store), None))
    assert grants(book, device(store, "copy")) == CLOSED


def test_a_clone_of_an_open_volume_is_open(store: FakeStore) -> None:
    book = AccessBook(store)
    clone(store, book)
    assert grants(book, device(store, "copy")) == OPEN
    assert store.states == {}


def test_a_clone_of_a_damaged_list_has_one(store: FakeStore) -> None:
    store.states[kept.volume_key(device(store).volume_uuid)] = b"damaged"
    book = AccessBook(store)
    clone(store, book)
    for each in (book, AccessBook(store)):
        assert grants(each, device(store, "copy")) == SHUT


def test_a_clone_is_closed_from_its_first_moment(store: FakeStore) -> None:
    book = closed(store)

    def make() -> VolumeInfo:
        made = store.create_volume("copy", MiB)
        assert grants(book, device(store, "copy")) == CLOSED
        # The server dies right here.
        assert grants(AccessBook(store), device(store, "copy")) == CLOSED
        return made

    clone(store, book, make)


def test_a_clone_that_was_not_made_leaves_nothing(store: FakeStore) -> None:
    book = closed(store)
    before = dict(store.states)

    def make() -> VolumeInfo:
        raise OutOfSpace("the disk is full")

    with pytest.raises(OutOfSpace):
        clone(store, book, make)
    assert store.states == before
    store.create_volume("copy", MiB)
    assert grants(book, device(store, "copy")) == OPEN


def test_a_clone_that_died_before_it_was_made_leaves_nothing(store: FakeStore) -> None:
    key = kept.coming_key("copy")
    store.states[key] = kept.encode(key, AccessList((ROOT,)))
    AccessBook(store)
    store.create_volume("copy", MiB)
    assert grants(AccessBook(store), device(store, "copy")) == OPEN


def test_a_name_that_is_taken_keeps_its_list(store: FakeStore) -> None:
    book = closed(store)
    before = dict(store.states)

    def make() -> VolumeInfo:
        assert store.states == before
        raise VolumeExists("vm2")

    with pytest.raises(VolumeExists):
        aio.run(book.clone(device(store), "vm2", make))
    assert grants(book, device(store, "vm2")) == OPEN


@pytest.mark.parametrize("name", ["", "a/b", "x" * 129, "@", "\0"])
def test_a_name_that_no_volume_can_have_is_kept_nowhere(store: FakeStore, name: str) -> None:
    book = closed(store)
    before = dict(store.states)
    with pytest.raises(InvalidName):
        aio.run(book.clone(device(store), name, partial(store.create_volume, name, MiB)))
    assert store.states == before


def test_a_list_that_cannot_be_kept_makes_no_clone(store: FakeStore) -> None:
    book = closed(store)
    store.fail_with = OutOfSpace("the disk is full")
    with pytest.raises(OutOfSpace):
        clone(store, book)
    assert store.get("copy") is None
    assert grants(book, device(store)) == CLOSED


def test_a_clone_whose_list_could_not_be_kept_is_closed_all_the_same(store: FakeStore) -> None:
    book = closed(store)

    def make() -> VolumeInfo:
        made = store.create_volume("copy", MiB)
        store.fail_with = VolumeError("sealed")
        return made

    with pytest.raises(VolumeError, match="sealed"):
        clone(store, book, make)
    for each in (book, AccessBook(store)):
        assert grants(each, device(store, "copy")) == CLOSED
    aio.run(book.change(device(store, "copy"), None))
    for each in (book, AccessBook(store)):
        assert grants(each, device(store, "copy")) == OPEN


def test_a_volume_that_is_created_closed_is_so_from_its_first_moment(store: FakeStore) -> None:
    book = AccessBook(store)

    def make() -> VolumeInfo:
        made = store.create_volume("vm3", MiB)
        for each in (book, AccessBook(store)):
            assert grants(each, device(store, "vm3")) == SHUT
        return made

    aio.run(book.create_closed("vm3", make))
    for each in (book, AccessBook(store)):
        assert grants(each, device(store, "vm3")) == SHUT


def test_changes_wait_for_each_other(store: FakeStore) -> None:
    book = AccessBook(store)

    async def both() -> None:
        await asyncio.gather(
            book.change(device(store), (ROOT,)), book.change(device(store), None, "none")
        )

    with pytest.raises(AccessChanged):
        aio.run(both())
    assert grants(book, device(store)) == CLOSED


# --- other nodes --------------------------------------------------------------------------------


def test_a_change_is_told_to_other_nodes_before_it_is_kept(store: FakeStore) -> None:
    book = AccessBook(store)
    told = []

    def share(volume: bytes, access: AccessList | None, expected: str | None) -> int:
        told.append((volume, access, dict(store.states)))
        return 7

    book.share_by(share)
    aio.run(book.change(device(store), (ROOT,)))
    assert told == [(device(store).volume_uuid, AccessList((ROOT,)), {})]


def test_a_change_that_other_nodes_are_not_told_of_is_none(store: FakeStore) -> None:
    book = AccessBook(store)

    def share(volume: bytes, access: AccessList | None, expected: str | None) -> int:
        raise VolumeError("etcd: nobody answers")

    book.share_by(share)
    with pytest.raises(VolumeError, match="nobody answers"):
        aio.run(book.change(device(store), (ROOT,)))
    assert grants(book, device(store)) == OPEN
    assert store.states == {}


def test_a_list_of_another_node_holds_and_cuts_and_is_kept(store: FakeStore) -> None:
    book, cuts = AccessBook(store), []

    async def watch() -> list[str]:
        cuts.append(grants(book, device(store)))
        return []

    book.watch(watch)
    uuid = device(store).volume_uuid
    aio.run(book.take(uuid, AccessList((ROOT,)), 5))
    assert cuts == [CLOSED]
    for each in (book, AccessBook(store)):
        assert grants(each, device(store)) == CLOSED
    aio.run(book.take(uuid, None, 6))
    for each in (book, AccessBook(store)):
        assert grants(each, device(store)) == OPEN


def test_an_older_list_of_another_node_is_passed_over(store: FakeStore) -> None:
    book = AccessBook(store)
    book.share_by(lambda volume, access, expected: 9)
    aio.run(book.change(device(store), (ROOT,)))
    for older in (8, 9):
        aio.run(book.take(device(store).volume_uuid, None, older))
    assert grants(book, device(store)) == CLOSED
