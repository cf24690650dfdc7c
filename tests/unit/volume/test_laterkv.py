"""LaterKeyValue: items that are visible at once and durable in order."""

import pytest

from volume.errors import StoreSealed
from volume.kv import MemoryKeyValue
from volume.laterkv import LaterKeyValue


@pytest.fixture
def base() -> MemoryKeyValue:
    return MemoryKeyValue({b"a/1": b"old", b"a/3": b"three", b"b/1": b"other"})


@pytest.fixture
def kv(base: MemoryKeyValue) -> LaterKeyValue:
    made = LaterKeyValue(base)
    made.put_later({b"a/1": b"new", b"a/2": b"two"}, 7)
    return made


def test_items_are_seen_before_they_are_durable(kv: LaterKeyValue, base: MemoryKeyValue) -> None:
    assert kv.get(b"a/1") == b"new"
    assert kv.get_many([b"a/2", b"a/3", b"x"]) == [b"two", b"three", None]
    assert list(kv.items(b"a/")) == [(b"a/1", b"new"), (b"a/2", b"two"), (b"a/3", b"three")]
    assert kv.floor(b"a/", b"a/2x") == (b"a/2", b"two")
    assert kv.floor(b"a/", b"a/9") == (b"a/3", b"three")
    assert kv.floor(b"b/", b"b/0") is None
    assert base.get(b"a/2") is None


def test_an_update_takes_along_what_was_put_before_it(
    kv: LaterKeyValue, base: MemoryKeyValue
) -> None:
    synced = []

    def sync() -> bool:
        synced.append(base.get(b"a/2"))
        return True

    kv.sync_with(sync)
    kv.update({b"c": b"c"}, [b"a/1"])
    assert synced == [None]  # the journal first
    assert base.get(b"a/2") == b"two"
    assert kv.get(b"a/1") is None
    assert kv.points_lsn == 7
    assert not kv.pending


def test_nothing_follows_into_a_sealed_store(kv: LaterKeyValue, base: MemoryKeyValue) -> None:
    kv.sync_with(lambda: False)
    kv.update({b"sealed": b"why"})
    assert base.get(b"sealed") == b"why"
    assert base.get(b"a/2") is None
    assert kv.points_lsn == 0


def test_a_sync_that_fails_can_note_so_in_the_same_store(
    kv: LaterKeyValue, base: MemoryKeyValue
) -> None:
    sealed: list[bool] = []

    def sync() -> bool:
        if sealed:
            return False
        sealed.append(True)
        kv.update({b"sealed": b"why"})
        raise StoreSealed("why")

    kv.sync_with(sync)
    with pytest.raises(StoreSealed):
        kv.flush()
    assert base.get(b"sealed") == b"why"
    assert base.get(b"a/2") is None
