import pytest

from tests.unit.volume.rig import STORE_UUID, Rig, chunk, hash_of
from volume.errors import CorruptData, UnknownFormat
from volume.index import ChunkIndex, Place
from volume.kv import MemoryKeyValue
from volume.layout import INDEX_PREFIX_CHUNK


def place(number: int) -> Place:
    return Place(number, 64 + number, 4096, 4096, number, 0, 1)


def test_places_come_back_as_they_were_put() -> None:
    index = ChunkIndex(MemoryKeyValue(), STORE_UUID)
    ids = [hash_of(b"%d" % n) for n in range(20_000)]
    index.put({chunk_id: place(n) for n, chunk_id in enumerate(ids)})
    assert index.get(ids[19_999]) == place(19_999)
    assert index.get_many([ids[3], b"?" * 32, ids[1]]) == [place(3), None, place(1)]
    assert index.count() == 20_000
    index.remove(ids[1:])
    assert index.count() == 1


def test_the_index_of_another_store_is_refused() -> None:
    kv = MemoryKeyValue()
    ChunkIndex(kv, STORE_UUID)
    with pytest.raises(UnknownFormat):
        ChunkIndex(kv, bytes(16))


def test_a_place_of_another_length_is_corrupt_data() -> None:
    kv = MemoryKeyValue()
    index = ChunkIndex(kv, STORE_UUID)
    kv.update({INDEX_PREFIX_CHUNK + bytes(32): b"short"})
    with pytest.raises(CorruptData, match="rebuilt"):
        index.get(bytes(32))


def test_rebuild_finds_every_synced_chunk_and_tells_its_progress() -> None:
    rig = Rig()
    ids = rig.put_synced(*range(40))
    assert rig.packs.pack_count > 3
    kv = MemoryKeyValue()
    told: list[tuple[int, int]] = []
    rebuilt = ChunkIndex(kv, STORE_UUID)
    rebuilt.rebuild(rig.packs, lambda done, total: told.append((done, total)))
    assert kv.snapshot() == rig.kv.snapshot()
    assert told == [(n + 1, len(told)) for n in range(len(told))]
    assert all(rig.store.get(chunk_id) == chunk(n) for n, chunk_id in enumerate(ids))
