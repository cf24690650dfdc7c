"""A pack that kill -9 left unsealed, and that has rotted: only what is damaged is lost."""

import errno

import pytest

from native import crc32c_pages
from tests.sim.faults import Fail, Fault
from tests.sim.simdisk import SimDisk
from tests.unit.volume.rig import PACK_BYTES, STORE_UUID, Rig, chunk
from tests.unit.volume.test_gc import assert_whole, gc, tree
from tests.unit.volume.test_scrub import Yard
from volume.chunks import chunk_id_of
from volume.codecs import CODEC_NONE
from volume.errors import CorruptChunk
from volume.gc import Root
from volume.index import ChunkIndex, Place
from volume.kv import MemoryKeyValue
from volume.layout import KIND_DATA
from volume.packfile import ENTRY_HEADER_LENGTH, HEADER_LENGTH, encode_entry_header
from volume.packs import Packs

COUNT = 8
WHERE = {
    "header": 20,
    "page-table": ENTRY_HEADER_LENGTH + 1,
    "data": ENTRY_HEADER_LENGTH + 4 + 2000,
}
any_part = pytest.mark.parametrize("part", WHERE)


def place_of(rig: Rig, number: int) -> Place:
    found = rig.index.get(chunk_id_of(chunk(number)))
    assert found is not None
    return found


def flip(rig: Rig, place: Place, part: str = "data") -> None:
    rig.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + WHERE[part])


def assert_agrees(rig: Rig) -> None:
    """What the index says of each entry is what the footers say."""
    named = dict(rig.index.group(b""))
    listed = {
        chunk_id: place
        for number in rig.packs.sealed()
        for chunk_id, place in rig.packs.footer(number)
        if chunk_id in named
    }
    assert listed == named


@any_part
@pytest.mark.parametrize("victim", [0, 3, COUNT - 1])
def test_only_the_damaged_chunk_is_reported(victim: int, part: str) -> None:
    rig = Rig()
    ids = rig.put_synced(*range(COUNT))
    flip(rig, place_of(rig, victim), part)
    yard = Yard(rig.killed())
    assert [damage.chunk_id for damage in yard.run()] == [ids[victim]]
    assert_agrees(yard.rig)
    for number in range(COUNT):
        if number != victim:
            assert yard.rig.store.get(ids[number], verify=True) == chunk(number)
    with pytest.raises(CorruptChunk):
        yard.rig.store.get(ids[victim])


@any_part
def test_neighbours_that_are_damaged_hide_nobody(part: str) -> None:
    rig = Rig()
    ids = rig.put_synced(*range(COUNT))
    for victim in (2, 3, 4):
        flip(rig, place_of(rig, victim), part)
    yard = Yard(rig.killed())
    assert [damage.chunk_id for damage in yard.run()] == ids[2:5]
    assert_agrees(yard.rig)


@any_part
def test_gc_removes_the_damaged_chunk_with_its_pack(part: str) -> None:
    rig = Rig()
    whole = tree(rig, range(COUNT))
    smaller = Root(rig.manifests.update(whole.root, 2, {}, [(0, 6)]), 2)
    rig.store.sync()
    flip(rig, place_of(rig, 0), part)
    after = rig.killed()
    report = gc(after, smaller)
    assert report.packs_copied == 1
    assert_whole(after, smaller, range(6, COUNT))
    assert after.index.get(chunk_id_of(chunk(0))) is None


@any_part
def test_gc_keeps_a_damaged_chunk_that_is_in_use(part: str) -> None:
    rig = Rig()
    whole = tree(rig, range(COUNT))
    flip(rig, place_of(rig, 0), part)
    after = rig.killed()
    report = gc(after, whole)
    assert report.chunks_live == rig.index.count()
    assert report.chunks_removed == 0
    assert len(Yard(after).run()) == 1


def test_pages_of_the_damaged_chunk_can_be_salvaged() -> None:
    rig = Rig()
    [chunk_id] = rig.put_synced(0, length=16384)  # the last of the pack: it was cut off once
    flip(rig, rig.index.get(chunk_id) or pytest.fail("not stored"))
    data, lost = rig.killed().store.salvage(chunk_id, 16384)
    assert lost == [0]
    assert data[4096:] == chunk(0, 16384)[4096:]


def test_the_same_data_put_again_heals_it_at_once() -> None:
    rig = Rig()
    [chunk_id] = rig.put_synced(0)
    flip(rig, place_of(rig, 0))
    after = rig.killed()
    assert after.put_synced(0) == [chunk_id]
    assert after.store.get(chunk_id, verify=True) == chunk(0)


def test_an_entry_that_was_never_synced_is_not_taken_for_a_damaged_one() -> None:
    rig = Rig()
    rig.put_synced(0)
    torn = rig.store.put(chunk(1))
    rig.packs.sync()  # the index has not heard of it
    place = rig.store.place(torn)
    assert place is not None
    flip(rig, place)
    after = rig.killed()
    assert [chunk_id for chunk_id, _ in after.packs.footer(0)] == [chunk_id_of(chunk(0))]
    after.put_synced(1)
    assert after.store.get(torn, verify=True) == chunk(1)
    assert Yard(after).run() == ()


@any_part
def test_a_sector_that_cannot_be_read_hits_what_is_in_it(part: str) -> None:
    rig = Rig()
    ids = rig.put_synced(*range(COUNT))
    disk, kv = SimDisk(rig.disk.image()), MemoryKeyValue(rig.kv.snapshot())
    place = place_of(rig, 3)
    disk.break_sector("packs/00000000.pack", place.offset + WHERE[part])
    index = ChunkIndex(kv, STORE_UUID)
    packs = Packs(disk, STORE_UUID, pack_bytes=PACK_BYTES, index=index)
    assert [chunk_id for chunk_id, _ in packs.footer(0)] == ids
    assert ids[3] in packs.rotten
    assert len(packs.rotten) <= 2  # the sector may have the end of the one before
    for number in set(range(COUNT)) - {ids.index(chunk_id) for chunk_id in packs.rotten}:
        assert packs.read(place_of(rig, number), ids[number]) == chunk(number)
    with pytest.raises(CorruptChunk):
        packs.read(place, ids[3])


def test_without_an_index_a_sector_that_cannot_be_read_takes_nothing_out() -> None:
    rig = Rig()
    ids = rig.put_synced(*range(COUNT))
    disk = SimDisk(rig.disk.image())
    disk.faults.add(
        Fault("pread", Fail(errno.EIO), "packs/*", covers=place_of(rig, 3).offset + WHERE["data"])
    )
    with pytest.raises(OSError, match="Input/output"):
        Packs(disk, STORE_UUID, pack_bytes=PACK_BYTES)
    again = Packs(disk, STORE_UUID, pack_bytes=PACK_BYTES)
    assert [chunk_id for chunk_id, _ in again.footer(0)] == ids


def renumbering(rig: Rig) -> None:
    """Chunk 0 is stored anew behind 1, and rots where it was at first: 1 and 0 move up."""
    [chunk_id, _] = rig.put_synced(0, 1)
    old = place_of(rig, 0)
    rig.store.note_damage(chunk_id)
    rig.put_synced(0, 2)
    assert [place_of(rig, number).ordinal for number in range(3)] == [2, 1, 3]
    flip(rig, old, "header")


def test_the_index_is_told_when_entries_get_other_numbers() -> None:
    rig = Rig()
    renumbering(rig)
    yard = Yard(rig.killed())
    assert [place_of(yard.rig, number).ordinal for number in range(3)] == [1, 0, 2]
    assert yard.run() == ()
    assert_agrees(yard.rig)


def test_killed_before_the_footer_the_entries_get_the_same_numbers_again() -> None:
    rig = Rig()
    renumbering(rig)
    disk, kv = SimDisk(rig.disk.image()), MemoryKeyValue(rig.kv.snapshot())
    disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=None))
    index = ChunkIndex(kv, STORE_UUID)
    assert Packs(disk, STORE_UUID, pack_bytes=PACK_BYTES, index=index).sealed() == []
    after = Rig(disk.image(), index=kv.snapshot())
    assert after.packs.sealed() == [0]
    assert [place_of(after, number).ordinal for number in range(3)] == [1, 0, 2]
    assert_agrees(after)


def test_an_entry_within_the_data_of_a_damaged_one_is_not_believed() -> None:
    data = chunk(9, 512)
    inner = Place(0, 192, 512, 512, 0, CODEC_NONE, KIND_DATA)
    table = crc32c_pages(data)
    entry = encode_entry_header(inner, chunk_id_of(chunk(8)), table) + table + data
    before = HEADER_LENGTH + ENTRY_HEADER_LENGTH + 4  # of the first chunk's data
    rig = Rig()
    outer = rig.store.put((bytes(inner.offset - before) + entry).ljust(4096, b"\1"))
    ids = [outer, *rig.put_synced(1, 2)]
    rig.disk.flip_bit("packs/00000000.pack", HEADER_LENGTH + 20)
    yard = Yard(rig.killed())
    assert [chunk_id for chunk_id, _ in yard.rig.packs.footer(0)] == ids
    assert [damage.chunk_id for damage in yard.run()] == [outer]
