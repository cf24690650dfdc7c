"""Damage below a write in part: it stays an error where it is, and holds up nothing else.

Volumes have chunks of four pages. What is damaged is a page of a chunk, all of it, or a record of
the journal; what is checked is every page, in the open store and in what a crash leaves of it.
"""

import errno
import logging
import random
from dataclasses import replace

import pytest

from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import SEGMENT_BYTES, SMALL, StoreRig
from tests.unit.volume.rig import chunk
from volume.destager import RETRY_MAX_S, RETRY_S
from volume.layout import KIND_DAMAGED, PAGE_SIZE, ChunkId

PAGES = 4
CHUNK = PAGES * PAGE_SIZE
ROOMY = replace(SMALL, journal_limit=32 * SEGMENT_BYTES)


class Life:
    """A store with volumes "a" and "b"; of "a" it is known what each page has to read as."""

    def __init__(self, compression: str = "none", chunks: int = 2) -> None:
        self.rig = StoreRig(options=ROOMY)
        for name in "ab":
            self.rig.store.create_volume(
                *(name, chunks * CHUNK), block_size=512, chunk_size=CHUNK, compression=compression
            )
        self.rig.tend()
        self.pages = [bytes(PAGE_SIZE)] * (chunks * PAGES)
        self.lost: set[int] = set()

    def write(self, page: int, data: bytes) -> None:
        """Whole pages of "a" from `page` on."""
        self.rig.fill("a", page * PAGE_SIZE, data)
        for number in range(len(data) // PAGE_SIZE):
            at = number * PAGE_SIZE
            self.pages[page + number] = data[at : at + PAGE_SIZE]
            self.lost.discard(page + number)

    def destage(self) -> None:
        assert self.rig.store.destage()
        self.rig.tend()
        status = self.rig.store.status()
        assert (status.state, status.hot_bytes) == ("ok", 0)

    def chunk_id(self, index: int) -> ChunkId:
        store = self.rig.store
        target = self.rig.volume("a").target()
        return store._reader._resolver.chunk_id(target.head(), index)

    def damage(self, page: int) -> None:
        """Flip a bit of what is stored of a page of "a", in a sealed pack: of another one, a crash
        leaves no damaged chunks."""
        place = self.rig.store._chunks.place(self.chunk_id(page // PAGES))
        assert place is not None
        if place.pack == self.rig.store._chunks.packs.unsealed():
            self.rig.store.upkeep.submit(self.rig.store._chunks.packs.seal)
        data = place.offset + 64 + 4 * PAGES
        path = f"packs/{place.pack:08x}.pack"
        self.rig.disk.flip_bit(path, data + page % PAGES * PAGE_SIZE + 100)
        self.lost.add(page)

    def check(self) -> None:
        """Every page is what was written, or an error where it is lost, now and after crashes."""
        for rig in (self.rig, self.rig.killed(), self.rig.rebooted()):
            for page, data in enumerate(self.pages):
                offset = page * PAGE_SIZE
                if page in self.lost:
                    for at in range(0, PAGE_SIZE, 512):
                        assert rig.read_error("a", offset + at, 512) == errno.EIO, page
                else:
                    assert rig.read("a", offset, PAGE_SIZE) == data, page

    def known_damage(self) -> set[tuple[str, int | None]]:
        """(volume, offset of the chunk) of all damage that the status tells of."""
        return {(location.name, location.offset) for location in self.rig.store.damage_locations()}


def test_a_write_over_a_part_of_a_damaged_chunk_is_kept_and_the_rest_stays_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    life = Life()
    life.write(0, chunk(1, 2 * CHUNK))
    life.destage()
    life.damage(2)
    life.write(0, chunk(2, PAGE_SIZE))
    assert life.rig.write("b", 0, chunk(3)) == 0
    with caplog.at_level(logging.ERROR):
        life.destage()
    life.check()
    assert life.rig.rebooted().read("b", 0, PAGE_SIZE) == chunk(3)
    lost = life.chunk_id(0).hex()
    assert f"volume=a offset=8192 length=4096 chunk={lost}" in caplog.text
    assert ("a", 0) in life.known_damage()
    assert life.rig.store.scrub_status().damage_count == 1
    life.rig = life.rig.closed()
    assert ("a", 0) in life.known_damage()


def test_what_is_written_as_a_whole_is_sound_again() -> None:
    life = Life()
    life.write(0, chunk(1, 2 * CHUNK))
    life.destage()
    life.damage(2)
    life.damage(3)
    life.write(1, chunk(2, PAGE_SIZE))
    life.destage()
    life.check()
    life.write(2, chunk(3, PAGE_SIZE))
    life.destage()
    assert life.lost == {3}
    life.check()
    assert life.rig.zero("a", 3 * PAGE_SIZE, PAGE_SIZE) == 0
    life.pages[3] = bytes(PAGE_SIZE)
    life.lost.clear()
    life.destage()
    life.check()


def test_a_write_over_all_damaged_pages_leaves_a_sound_chunk() -> None:
    life = Life()
    life.write(0, chunk(1, 2 * CHUNK))
    life.destage()
    life.damage(2)
    life.write(2, chunk(2, PAGE_SIZE))
    life.destage()
    place = life.rig.store._chunks.place(life.chunk_id(0))
    assert place is not None
    assert place.kind != KIND_DAMAGED
    life.check()


def test_a_page_that_is_lost_is_not_found_again_by_a_write_to_a_part_of_it() -> None:
    life = Life()
    life.write(0, chunk(1, CHUNK))
    life.destage()
    life.damage(1)
    assert life.rig.write("a", PAGE_SIZE + 512, b"x" * 512) == 0
    assert life.rig.read("a", PAGE_SIZE + 512, 512) == b"x" * 512  # from the journal
    life.destage()
    life.check()


def test_of_a_packed_chunk_nothing_is_left_but_what_is_written() -> None:
    life = Life("lz4")
    life.write(0, b"abcd" * (CHUNK // 4) + chunk(1, CHUNK))
    life.destage()
    place = life.rig.store._chunks.place(life.chunk_id(0))
    assert place is not None
    life.rig.disk.flip_bit(f"packs/{place.pack:08x}.pack", place.offset + 64 + 4 + 10)
    life.lost = set(range(PAGES))
    life.write(1, chunk(2, PAGE_SIZE))
    life.destage()
    life.check()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENODATA])
def test_sectors_that_the_disk_cannot_read_are_damage_of_their_page(error: int) -> None:
    life = Life()
    life.write(0, chunk(1, 2 * CHUNK))
    life.destage()
    place = life.rig.store._chunks.place(life.chunk_id(0))
    assert place is not None
    bad = place.offset + 64 + 4 * PAGES + 3 * PAGE_SIZE + 1000
    path = f"packs/{place.pack:08x}.pack"
    life.rig.disk.faults.add(Fault("pread", Fail(error), path, covers=bad, count=None))
    life.write(0, chunk(2, PAGE_SIZE))
    life.destage()
    life.rig.disk.faults.clear()
    life.lost = {3}
    life.check()


def test_a_damaged_record_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    life = Life()
    life.write(0, chunk(1, 2 * CHUNK))
    life.destage()
    assert life.rig.write("a", PAGE_SIZE, chunk(2, PAGE_SIZE)) == 0
    changed = [
        (path, at)
        for path in map("journal/{}".format, life.rig.disk.list("journal"))
        for at in [find(life.rig, path, chunk(2, PAGE_SIZE))]
        if at >= 0
    ]
    ((path, at),) = changed
    life.rig.disk.flip_bit(path, at + 17)
    life.lost.add(1)
    life.write(6, chunk(4, PAGE_SIZE))
    assert life.rig.write("b", 0, chunk(3)) == 0
    life.destage()
    life.check()
    assert "volume=a offset=4096 length=4096" in caplog.text
    assert path in caplog.text
    assert life.rig.read("b", 0, PAGE_SIZE) == chunk(3)


def find(rig: StoreRig, path: str, data: bytes) -> int:
    file = rig.disk.open(path, read_only=True)
    try:
        return file.pread(file.size(), 0).find(data)
    finally:
        file.close()


def test_gc_moves_a_damaged_chunk_as_damaged_as_it_is() -> None:
    life = Life(chunks=8)
    life.write(0, chunk(1, 8 * CHUNK))
    life.destage()
    life.damage(2)
    life.write(0, chunk(2, PAGE_SIZE))
    for index in range(1, 8):  # each gets a neighbour that goes soon
        life.write(index * PAGES, chunk(10 + index, CHUNK))
    life.destage()
    before = life.rig.store._chunks.place(life.chunk_id(0))
    for index in range(1, 8):
        life.write(index * PAGES, chunk(20 + index, CHUNK))
    life.destage()
    collector = life.rig.store.upkeep.collector
    life.rig.store.versions.set_policy("a", window_s=0, keep="")
    for _ in range(3):
        life.rig.clock.advance(1000.0)
        life.rig.tend()
        life.rig.store.upkeep.submit(lambda: collector.collect(thorough=True))
    after = life.rig.store._chunks.place(life.chunk_id(0))
    assert before is not None
    assert after is not None
    assert after.kind == KIND_DAMAGED
    assert after.pack != before.pack
    life.check()


def test_equal_bytes_of_a_sound_chunk_are_another_chunk() -> None:
    """What a damaged chunk has in its lost pages must never be found where it was not lost."""
    life = Life()
    life.write(0, chunk(1, CHUNK))
    life.destage()
    life.damage(1)
    life.write(0, chunk(2, PAGE_SIZE))
    life.destage()
    rest = chunk(1, CHUNK)[2 * PAGE_SIZE :]
    life.write(PAGES, chunk(2, PAGE_SIZE) + bytes(PAGE_SIZE) + rest)
    life.destage()
    life.check()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_written_over_whatever_is_damaged(seed: int) -> None:
    source = random.Random(seed)
    life = Life(chunks=4)
    life.write(0, chunk(1, 4 * CHUNK))
    life.destage()
    count = 100
    for _ in range(6):
        for page in source.sample(range(4 * PAGES), 3):
            if page not in life.lost:
                life.damage(page)
        for _ in range(source.randrange(1, 5)):
            count += 1
            page = source.randrange(4 * PAGES - 2)
            life.write(page, chunk(count, source.randrange(1, 3) * PAGE_SIZE))
        life.destage()
        life.check()


@pytest.mark.parametrize("way", ["restore", "delete"])
def test_a_damaged_node_holds_up_its_volume_until_that_is_restored_or_deleted(way: str) -> None:
    life = Life()
    life.write(0, chunk(1, CHUNK))
    life.destage()
    seq = life.rig.store.info("a").seq
    before = list(life.pages)
    life.write(PAGES, chunk(2, CHUNK))
    life.destage()
    rig = life.rig
    located = rig.store._chunks.locate(rig.volume("a").record.head.root)
    rig.disk.flip_bit(f"packs/{located.pack.number:08x}.pack", located.data_offset + 20)
    rig = life.rig = rig.killed()
    rig.tend()
    assert rig.write("a", 0, chunk(3)) == 0
    assert rig.write("b", 0, chunk(4)) == 0
    for _ in range(2):
        rig.store.destage()
        rig.clock.advance(RETRY_MAX_S)
    held_up = rig.store.status().destage_held_up
    assert held_up is not None
    assert held_up.startswith("volume a is not destaged: ")
    assert rig.volume("a").record.head.root.hex() in held_up
    if way == "restore":
        rig.store.versions.restore("a", f"seq:{seq}")
        life.pages = before
    else:
        rig.store.delete_volume("a")
    assert rig.store.destage()
    assert rig.store.status().destage_held_up is None
    assert rig.rebooted().read("b", 0, PAGE_SIZE) == chunk(4)
    if way == "restore":
        life.write(1, chunk(5))
        life.destage()
        life.check()


def test_what_can_be_read_again_is_not_lost() -> None:
    """A disk fails a few reads and then goes on: nothing is given up before it has been so for a
    while, and what was stored is still there."""
    patient = replace(ROOMY, damage_patience_s=30.0)
    rig = StoreRig(options=patient)
    rig.store.create_volume("a", CHUNK, block_size=512, chunk_size=CHUNK)
    old = chunk(1, CHUNK)
    rig.fill("a", 0, old)
    rig.settle()
    rig = rig.killed(patient)  # nothing of it is in memory
    new = chunk(2, 512)
    rig.fill("a", 0, new)
    rig.disk.faults.add(Fault("pread", Fail(errno.EIO), "packs/*", nth=2, count=3))
    assert not rig.store.destage()
    held_up = rig.store.status().destage_held_up
    assert held_up is not None
    assert "given up when that stays so for 30 s" in held_up
    rig.disk.faults.clear()
    rig.clock.advance(RETRY_S)
    assert rig.store.destage()
    assert rig.read("a", 0, CHUNK) == new + old[512:]
