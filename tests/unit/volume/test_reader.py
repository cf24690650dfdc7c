"""Reads and BLOCK_STATUS while what they look at moves, and at the edges of what they may say."""

import errno
from dataclasses import replace

import pytest

from native import OP_READ, Request
from tests.sim.faults import Fault, Stall
from tests.sim.store_rig import KIB, SMALL, StoreRig
from volume.chunks import chunk_id_of

DATA, HOLE = 0, 3  # STATE_HOLE | STATE_ZERO


def opened(**changes: object) -> StoreRig:
    rig = StoreRig(options=replace(SMALL, **changes))  # type: ignore[arg-type]
    rig.store.create_volume("v", 128 * KIB, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    return rig


def test_extents_of_an_unaligned_request_end_with_it() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 100)
    assert rig.extents("v", 0, 200) == [(200, DATA)]
    assert rig.extents("v", 10, 1000) == [(502, DATA), (498, HOLE)]


def test_block_that_holds_data_in_part_is_data() -> None:
    rig = opened()
    rig.write("v", 1000, b"x" * 100)
    assert rig.extents("v", 0, 2048) == [(512, HOLE), (1024, DATA), (512, HOLE)]


def test_extents_are_the_same_before_and_after_destaging_for_whole_chunks() -> None:
    rig = opened()
    rig.write("v", 8 * KIB, b"x" * 4096)
    rig.write("v", 20 * KIB, b"x" * 4096)
    rig.zero("v", 24 * KIB, 4096)
    before = rig.extents("v", 0, 128 * KIB)
    assert before == [(8192, HOLE), (4096, DATA), (8192, HOLE), (4096, DATA), (106496, HOLE)]
    rig.settle()
    assert rig.extents("v", 0, 128 * KIB) == before


def test_range_past_the_end_is_refused() -> None:
    rig = opened()
    assert rig.read_error("v", 128 * KIB - 512, 1024) == errno.EINVAL
    assert rig.write("v", 128 * KIB - 512, b"x" * 1024) == errno.ENOSPC
    assert rig.read("v", 128 * KIB - 512, 512) == bytes(512)


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_read_that_began_before_a_round_and_gc_sees_the_data(compression: str) -> None:
    """The chunk that the read is about to fetch is replaced, and its pack removed, meanwhile."""
    rig = opened(compression=compression)
    for version in (b"1", b"2"):
        rig.write("v", 0, version * 4096)
        rig.write("v", 8 * KIB, version * 4096)
        rig.settle()
    rig = rig.rebooted()
    rig.tend()

    def move_on() -> None:
        rig.write("v", 0, b"3" * 4096)
        rig.settle()

    rig.disk.faults.add(Fault("pread", Stall(move_on), path="packs/*"))
    assert rig.read("v", 0, 4096) in (b"2" * 4096, b"3" * 4096)
    assert rig.disk.faults.fired
    assert rig.read("v", 0, 4096) == b"3" * 4096
    assert rig.read("v", 8 * KIB, 4096) == b"2" * 4096


def test_slow_read_of_a_deleted_volume_does_not_touch_what_the_journal_gave_away() -> None:
    rig = opened()
    rig.store.create_volume("w", 64 * KIB, block_size=512)
    rig.write("v", 4096, b"c" * 4096)
    rig.settle()
    rig = rig.rebooted()  # the read cache is empty: a read of that chunk has to wait
    rig.tend()
    rig.write("v", 0, b"v" * 4096)
    volume = rig.volume("v")
    request = Request(OP_READ, 0, 8192)
    _, waiting, _, _ = volume.core.submit([request], rig.clock.now_ns())
    assert waiting == [request]
    rig.store.delete_volume("v")
    rig.fill("w", 0, b"w" * 12 * KIB)
    rig.store.destage()
    done: list[Request] = []
    rig.store._reader.submit(volume.target(), waiting, done.extend)
    assert done == [request]
    assert (request.error, request.data) == (errno.ESHUTDOWN, None)


def warmed(rig: StoreRig) -> int:
    """How many chunks of "v" are in the place table when it has been warmed."""
    rig.store.upkeep.warm(rig.volume("v"))
    return rig.store._table.stats()[0]


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_warming_caches_every_chunk_that_is_stored(compression: str) -> None:
    rig = opened(compression=compression)
    for chunk in (0, 1, 5, 31):
        rig.write("v", chunk * 4 * KIB, bytes([chunk + 1]) * 4096)
    rig.settle()
    rig = rig.rebooted()
    assert warmed(rig) == 4
    assert rig.volume("v").core.missing(0, 128 * KIB) == [*range(2, 5), *range(6, 31)]
    assert rig.read("v", 5 * 4 * KIB, 4096) == bytes([6]) * 4096


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_an_entry_that_is_damaged_is_told_of_when_its_chunk_is_read(compression: str) -> None:
    rig = opened(compression=compression)
    for chunk in range(4):
        rig.write("v", chunk * 4 * KIB, bytes([chunk + 1]) * 4096)
    rig.settle()
    place = rig.store._chunks.place(chunk_id_of(bytes([3]) * 4096))
    assert place is not None
    rig = rig.rebooted()
    path = f"packs/{place.pack:08x}.pack"
    flipped = bytes([rig.disk.open(path).pread(1, place.offset + 24)[0] ^ 1])
    rig.disk.open(path).pwrite(flipped, place.offset + 24)  # in the id that the entry says
    assert warmed(rig) == 4
    assert rig.read_error("v", 2 * 4 * KIB, 4096) == errno.EIO
    assert rig.read("v", KIB, 4096) == bytes([1]) * 3 * KIB + bytes([2]) * KIB
    assert rig.read("v", 3 * 4 * KIB, 4096) == bytes([4]) * 4096


def test_warming_stops_when_it_is_told_to() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 4096)
    rig.settle()
    rig = rig.rebooted()
    volume, resolver = rig.volume("v"), rig.store.upkeep._parts.resolver
    head = volume.head()
    resolver.warm(volume.target(), head, resolver.stored_chunks(head), go_on=lambda: False)
    assert rig.store._table.stats()[0] == 0


def test_the_first_client_of_a_volume_is_told_of_and_no_other() -> None:
    rig = opened()
    told: list[str] = []
    rig.store.upkeep._parts.catalog.attached = lambda: told.append("v")
    volume = rig.volume("v")
    volume.attach("a")
    volume.attach("b")
    assert told == ["v"]
    for client in ("a", "b"):
        volume.detach(client)
    volume.attach("c")
    assert told == ["v", "v"]
