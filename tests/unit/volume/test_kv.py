import errno
import random
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from volume.errors import CorruptData, OutOfSpace
from volume.kv import KeyValue, LmdbKeyValue, MemoryKeyValue

Make = Callable[[], KeyValue]


@pytest.fixture(params=["lmdb", "memory"])
def kv(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KeyValue]:
    made: KeyValue
    if request.param == "lmdb":
        made = LmdbKeyValue(tmp_path / "kv", synced=False, map_size=1 << 20)
    else:
        made = MemoryKeyValue()
    yield made
    made.close()


def test_get_finds_what_update_put(kv: KeyValue) -> None:
    kv.update({b"a": b"1", b"b": b"2"})
    assert kv.get(b"a") == b"1"
    assert kv.get(b"c") is None
    assert kv.get_many([b"b", b"x", b"a"]) == [b"2", None, b"1"]
    assert kv.count() == 2


def test_update_deletes_and_tolerates_absent_keys(kv: KeyValue) -> None:
    kv.update({b"a": b"1", b"b": b"2"})
    kv.update({b"c": b"3"}, [b"a", b"never"])
    assert list(kv.items()) == [(b"b", b"2"), (b"c", b"3")]


def test_items_are_those_of_the_prefix_in_order(kv: KeyValue) -> None:
    kv.update({b"b%04d" % n: b"x" for n in range(1300)} | {b"a": b"1", b"c": b"2"})
    keys = [key for key, _ in kv.items(b"b")]
    assert keys == [b"b%04d" % n for n in range(1300)]


def test_items_may_be_changed_while_they_are_read(kv: KeyValue) -> None:
    kv.update({b"%04d" % n: b"x" for n in range(1300)})
    for key, _ in kv.items():
        kv.update({}, [key])
    assert kv.count() == 0


def test_map_grows_when_it_is_full(tmp_path: Path) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=False, map_size=1 << 16)
    before = kv.map_size
    kv.update({b"%08d" % n: bytes(1000) for n in range(2000)})
    assert kv.map_size > before
    assert kv.get(b"%08d" % 1999) == bytes(1000)
    kv.close()


def test_map_grows_beside_readers(tmp_path: Path) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=False, map_size=1 << 16)
    kv.update({b"seen": b"yes"})
    stop, found = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            found.append(kv.get(b"seen"))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for batch in range(20):
        kv.update({b"%04d-%04d" % (batch, n): bytes(500) for n in range(200)})
    stop.set()
    for reader in readers:
        reader.join()
    assert set(found) == {b"yes"}
    assert kv.count() == 4001
    kv.close()


def test_floor_is_the_last_item_of_the_prefix_not_after_the_key(kv: KeyValue) -> None:
    kv.update({b"a1": b"1", b"a3": b"3", b"b1": b"x"})
    assert kv.floor(b"a", b"a3") == (b"a3", b"3")
    assert kv.floor(b"a", b"a2") == (b"a1", b"1")
    assert kv.floor(b"a", b"a9") == (b"a3", b"3")
    assert kv.floor(b"a", b"a0") is None
    assert kv.floor(b"b", b"b9") == (b"b1", b"x")
    assert kv.floor(b"c", b"c9") is None


def test_memory_is_released_beside_readers(tmp_path: Path) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=False, map_size=1 << 24)
    keys = [b"%08d" % n for n in range(2000)]
    kv.update({key: key * 100 for key in keys})
    wrong: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            wrong.extend(key for key in keys if kv.get(key) != key * 100)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for _ in range(50):
        kv.release_memory()
        kv.update({b"other": b"x"})
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong
    assert kv.map_size == 1 << 24
    kv.close()


def test_a_reopened_environment_holds_what_it_held(tmp_path: Path) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=True, map_size=1 << 20)
    kv.update({b"k": b"v"})
    kv.close()
    again = LmdbKeyValue(tmp_path / "kv", synced=True, map_size=1 << 20)
    assert again.get(b"k") == b"v"
    again.close()


def test_a_file_that_is_not_lmdb_is_corrupt_data_naming_the_path(tmp_path: Path) -> None:
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / "data.mdb").write_bytes(b"not a database" * 1000)
    with pytest.raises(CorruptData, match=str(tmp_path / "kv")):
        LmdbKeyValue(tmp_path / "kv", synced=True, map_size=1 << 20)


class FailingEnvironment:
    """An LMDB environment that can no longer begin a transaction."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self._begin = begin

    def begin(self, write: bool = False) -> None:
        self._begin()

    def stat(self) -> dict[str, int]:
        return {"psize": 4096, "depth": 1, "branch_pages": 0, "leaf_pages": 1}

    def info(self) -> dict[str, int]:
        return {"last_pgno": 2}


@pytest.mark.parametrize(("code", "expected"), [(errno.ENOSPC, OutOfSpace), (errno.EIO, OSError)])
def test_lmdb_errnos_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=True, map_size=1 << 20)
    error = lmdb.Error("mdb_txn_commit")
    vars(error)["code"] = code  # as the binding sets it

    def refuse() -> None:
        raise error

    monkeypatch.setattr(kv, "_env", FailingEnvironment(refuse))
    with pytest.raises(expected, match=str(tmp_path)):
        kv.update({b"k": b"v"})
    with pytest.raises(expected, match=str(tmp_path)):
        kv.get(b"k")


def test_memory_snapshot_and_restore() -> None:
    kv = MemoryKeyValue({b"a": b"1"})
    before = kv.snapshot()
    kv.update({b"b": b"2"}, [b"a"])
    kv.restore(before)
    assert list(kv.items()) == [(b"a", b"1")]


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Files cannot grow past `size`: what a full disk is to LMDB, without one. A write across it is
    cut short, and what LMDB says to that is EIO."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def random_items(seed: int, count: int) -> dict[bytes, bytes]:
    source = random.Random(seed)
    return {source.randbytes(33): source.randbytes(26) for _ in range(count)}


@pytest.mark.parametrize("synced", [True, False])
def test_a_full_disk_is_out_of_space_and_passes(tmp_path: Path, synced: bool) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=synced, map_size=1 << 24)
    kept = random_items(1, 1000)
    kv.update(kept)
    more = random_items(2, 20000)
    size = (tmp_path / "kv" / "data.mdb").stat().st_size
    for beyond in range(512, 40 * 4096, 4096):  # in the middle of a page
        with files_end_at(size + beyond), pytest.raises(OutOfSpace, match=str(tmp_path)):
            kv.update(more, [next(iter(kept))])
        assert kv.count() == 1000
    kv.update(more)
    kv.close()
    again = LmdbKeyValue(tmp_path / "kv", synced=synced, map_size=1 << 24)
    assert dict(again.items()) == kept | more
    again.close()


def test_what_was_deleted_makes_room_on_a_full_disk(tmp_path: Path) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=False, map_size=1 << 24)
    first = random_items(1, 5000)
    kv.update(first)
    with files_end_at((tmp_path / "kv" / "data.mdb").stat().st_size):
        gone = list(first)
        for at in range(0, len(gone), 100):
            kv.update({}, gone[at : at + 100])
        assert kv.count() == 0
        kv.update(random_items(3, 2000))
    assert kv.count() == 2000
    kv.close()


def test_an_error_of_the_disk_is_none_of_space_while_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kv = LmdbKeyValue(tmp_path / "kv", synced=True, map_size=1 << 20)
    error = lmdb.Error("mdb_txn_commit")
    vars(error)["code"] = errno.EIO

    def refuse() -> None:
        raise error

    monkeypatch.setattr(kv, "_env", FailingEnvironment(refuse))
    with files_end_at(8192), pytest.raises(OutOfSpace):
        kv.update({b"k": b"v"})
    with pytest.raises(OSError, match=str(tmp_path)):
        kv.update({b"k": b"v"})
