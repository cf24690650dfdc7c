import errno
import logging

import pytest

from native import crc32c, crc32c_pages
from tests.sim.crash import CrashPlanner
from tests.sim.faults import Fail, Fault, ShortWrite
from tests.sim.image import Image
from tests.sim.simdisk import SimDisk
from tests.unit.volume.rig import PACK_BYTES, STORE_UUID, Rig, chunk, hash_of
from volume import layout
from volume.errors import CorruptChunk, CorruptPack, OutOfSpace, StoreSealed, UnknownFormat
from volume.index import Place
from volume.layout import KIND_DATA
from volume.packs import Packs

Entry = tuple[bytes, Place]


def opened(disk: SimDisk, pack_bytes: int = PACK_BYTES) -> Packs:
    return Packs(disk, STORE_UUID, pack_bytes=pack_bytes)


def append(packs: Packs, number: int, length: int = 4096) -> Entry:
    data = chunk(number, length)
    return hash_of(data), packs.append(KIND_DATA, hash_of(data), data, length, 0)


def readable(packs: Packs, entry: Entry, number: int, length: int = 4096) -> bool:
    chunk_id, place = entry
    return packs.read(place, chunk_id) == chunk(number, length)


def reboot(disk: SimDisk) -> SimDisk:
    return SimDisk(disk.image())


# -- reading what was appended


def test_an_entry_is_readable_before_it_is_synced() -> None:
    packs = opened(SimDisk())
    assert readable(packs, append(packs, 1), 1)


@pytest.mark.parametrize("length", [512, 4096, 4608, 65536, 1024 * 1024])
def test_entries_of_any_length_come_back(length: int) -> None:
    packs = opened(SimDisk(), 8 << 20)
    entries = [append(packs, number, length) for number in range(5)]
    packs.sync()
    assert all(readable(packs, entry, number, length) for number, entry in enumerate(entries))
    assert all(entry[1].offset % layout.ENTRY_ALIGNMENT == 0 for entry in entries)


def test_many_appends_are_few_writes() -> None:
    disk = SimDisk()
    packs = opened(disk, 64 << 20)
    before = disk.op_count
    for number in range(64):
        append(packs, number, 65536)
    packs.sync()
    assert disk.op_count - before < 10


def test_append_copies_what_it_is_given() -> None:
    packs = opened(SimDisk())
    data = bytearray(chunk(1))
    place = packs.append(KIND_DATA, b"i" * 32, memoryview(data), 4096, 0)
    data[:] = bytes(4096)
    assert packs.read(place, b"i" * 32) == chunk(1)


def test_locate_names_the_stored_bytes_and_their_page_checksums() -> None:
    packs = opened(SimDisk(), 1 << 20)
    entries = [append(packs, number, 10240) for number in range(3)]
    packs.sync()
    chunk_id, place = entries[1]
    found = packs.locate(place, chunk_id)
    page = found.pack.file.pread(2048, found.data_offset + 8192)
    assert page == chunk(1, 10240)[8192:]
    assert found.table == crc32c_pages(chunk(1, 10240))
    assert found.table[8:12] == crc32c(page).to_bytes(4, "little")
    assert (found.stored_length, found.codec, found.pack.number) == (10240, 0, 0)


def test_an_open_pack_outlives_its_name() -> None:
    packs = opened(SimDisk())
    chunk_id, place = append(packs, 1)
    packs.seal()
    append(packs, 2)
    found = packs.locate(place, chunk_id)
    packs.unlink(0)
    assert found.pack.file.pread(4096, found.data_offset) == chunk(1)
    with pytest.raises(CorruptPack, match="00000000"):
        packs.read(place, chunk_id)


def test_few_packs_are_kept_open() -> None:
    disk = SimDisk()
    packs = Packs(disk, STORE_UUID, pack_bytes=8192, open_packs=2)
    entries = [append(packs, number) for number in range(6)]
    packs.sync()
    for _ in range(2):
        assert all(readable(packs, entry, number) for number, entry in enumerate(entries))
    assert sum(inode.open_count for inode in disk._names.values()) <= 3


# -- packs fill up


def test_a_full_pack_is_sealed_and_the_next_begun() -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries = [append(packs, number) for number in range(25)]
    packs.sync()
    assert packs.numbers() == [0, 1, 2]
    assert packs.sealed() == [0, 1]
    assert all(packs.size(number) <= PACK_BYTES for number in packs.sealed())
    assert all(readable(packs, entry, number) for number, entry in enumerate(entries))
    assert packs.total_bytes == sum(
        len(disk.image().read(f"packs/0000000{n}.pack")) for n in (0, 1, 2)
    )


def test_places_lists_the_synced_entries_of_every_pack() -> None:
    packs = opened(SimDisk())
    entries = [append(packs, number) for number in range(25)]
    packs.sync()
    append(packs, 99)
    assert [entry for n in packs.numbers() for entry in packs.places(n)] == entries


def test_close_seals_and_reopening_goes_on_in_a_new_pack() -> None:
    disk = SimDisk()
    packs = opened(disk)
    first = append(packs, 1)
    packs.close()
    again = opened(disk)
    assert again.sealed() == [0]
    second = append(again, 2)
    assert second[1].pack == 1
    assert readable(again, first, 1)


def test_opening_and_closing_an_idle_store_adds_no_packs() -> None:
    disk = SimDisk()
    for _ in range(3):
        opened(disk).close()
    assert disk.list("packs") == []


# -- crashes


def test_unsynced_entries_of_a_killed_process_are_found_sealed_and_durable() -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries = [append(packs, number) for number in range(5)]
    packs.sync()
    after = reboot(disk)
    again = opened(after)
    assert again.sealed() == [0]
    assert list(again.places(0)) == entries
    image = next(iter(CrashPlanner(after.trace).images([len(after.trace.ops)])))
    assert list(opened(SimDisk(image)).places(0)) == entries


def test_every_synced_entry_survives_every_crash() -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries: list[Entry] = []
    for round_number in range(4):
        for number in range(round_number * 6, round_number * 6 + 6):
            entries.append(append(packs, number))
        packs.sync()
        disk.mark(len(entries))
    packs.close()
    planner = CrashPlanner(disk.trace)
    for image in planner.images():
        synced = max([0, *(int(str(mark)) for mark in disk.trace.marks(image.point))])
        again = opened(SimDisk(image))
        for number, entry in enumerate(entries[:synced]):
            assert readable(again, entry, number), (image.point, image.why, number)
        listed = {entry for n in again.numbers() for entry in again.places(n)}
        assert set(entries[:synced]) <= listed, (image.point, image.why)
        assert all(again.read(place, chunk_id) for chunk_id, place in listed)
        assert readable(again, append(again, 100), 100)
    assert planner.distinct > 100


def test_no_crash_while_sealing_lists_entries_that_are_not_there() -> None:
    disk = SimDisk()
    packs = opened(disk)
    for number in range(25):
        append(packs, number)
    packs.close()
    planner = CrashPlanner(disk.trace)
    for image in planner.images():
        again = opened(SimDisk(image))
        for pack in again.numbers():
            for chunk_id, place in again.places(pack):
                assert hash_of(again.read(place, chunk_id)) == chunk_id, image.why
        for pack in again.sealed():
            assert list(again.footer(pack)) == list(again.places(pack)), image.why
    assert planner.distinct > 50


def test_a_crash_during_recovery_loses_nothing() -> None:
    first = SimDisk()
    packs = opened(first)
    entries = [append(packs, number) for number in range(4)]
    packs.sync()
    after = reboot(first)
    after.open("packs/00000000.pack").truncate(entries[3][1].offset + 3000)
    after.restart_trace()
    opened(after)
    planner = CrashPlanner(after.trace)
    for image in planner.images():
        again = opened(SimDisk(image))
        assert list(again.places(0)) == entries[:3], image.why
    assert planner.distinct > 2


def test_entries_behind_a_damaged_one_are_kept() -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries = [append(packs, number) for number in range(4)]
    packs.sync()
    disk.flip_bit("packs/00000000.pack", entries[1][1].offset + 500)
    again = opened(reboot(disk))
    kept = [chunk_id for chunk_id, _ in again.places(0)]
    assert kept == [entries[0][0], entries[2][0], entries[3][0]]


def test_a_file_that_a_crash_left_without_a_header_is_removed() -> None:
    disk = SimDisk()
    opened(disk)
    disk.open("packs/00000000.pack", create=True)
    packs = opened(disk)
    assert disk.list("packs") == []
    assert append(packs, 1)[1].pack == 1


def test_an_empty_pack_is_appended_to_again() -> None:
    disk = SimDisk()
    opened(disk).begin()
    again = opened(reboot(disk))
    assert append(again, 1)[1].pack == 0


def test_numbers_are_not_used_again_after_the_highest_is_removed() -> None:
    disk = SimDisk()
    packs = opened(disk)
    append(packs, 1)
    packs.seal()
    packs.unlink(0)
    packs.sync_folder()
    packs.close()
    assert append(opened(reboot(disk)), 1)[1].pack == 1


# -- what the disk refuses


def test_no_space_is_an_error_of_the_append_and_passes() -> None:
    disk = SimDisk(capacity=64 * 1024)
    packs = opened(disk)
    entries: list[Entry] = []
    synced = 0

    def fill() -> None:
        nonlocal synced
        while True:
            entries.append(append(packs, len(entries)))
            packs.sync()
            synced = len(entries)

    with pytest.raises(OutOfSpace, match="packs/0000000"):
        fill()
    assert 10 < synced < 16
    packs.abandon()
    disk.capacity = 1 << 20
    entries[synced:] = [append(packs, number) for number in range(synced, 30)]
    packs.sync()
    again = opened(reboot(disk))
    assert all(readable(again, entry, number) for number, entry in enumerate(entries))


def test_the_same_sync_succeeds_when_space_returns() -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries = [append(packs, number) for number in range(3)]
    disk.faults.add(Fault("pwrite", ShortWrite(5000, errno.ENOSPC), "packs/*"))
    with pytest.raises(OutOfSpace):
        packs.sync()
    packs.sync()
    again = opened(reboot(disk))
    assert list(again.places(0)) == entries


def test_abandon_gives_the_space_back() -> None:
    disk = SimDisk()
    packs = opened(disk, 8 << 20)
    kept = append(packs, 1)
    packs.sync()
    before = disk.free_bytes()
    for number in range(40):
        append(packs, number, 65536)  # more than the write buffer holds
    assert disk.free_bytes() < before
    packs.abandon()
    assert disk.free_bytes() == before
    assert list(packs.places(0)) == [kept]
    assert readable(packs, append(packs, 2), 2)


@pytest.mark.parametrize("operation", ["open", "pwrite"])
def test_no_space_for_a_new_pack_leaves_no_file(operation: str) -> None:
    disk = SimDisk()
    packs = opened(disk)
    disk.faults.add(Fault(operation, Fail(errno.ENOSPC), "packs/*"))
    with pytest.raises(OutOfSpace):
        append(packs, 1)
    assert disk.list("packs") == []
    assert readable(packs, append(packs, 1), 1)


def test_a_store_without_space_to_seal_a_recovered_pack_still_opens() -> None:
    disk = SimDisk()
    packs = opened(disk)
    entry = append(packs, 1)
    packs.sync()
    after = reboot(disk)
    after.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=3))
    again = opened(after)
    assert readable(again, entry, 1)
    assert list(again.places(0)) == [entry]
    with pytest.raises(OutOfSpace):
        append(again, 2)
    after.faults.clear()
    assert append(again, 2)[1].pack == 1
    assert again.sealed() == [0]


@pytest.mark.parametrize(
    ("operation", "code"), [("sync", errno.EIO), ("sync", errno.ENOSPC), ("pwrite", errno.EIO)]
)
def test_other_write_errors_are_never_tried_again(operation: str, code: int) -> None:
    disk = SimDisk()
    packs = opened(disk)
    append(packs, 1)
    disk.faults.add(Fault(operation, Fail(code), "packs/*"))
    with pytest.raises(OSError, match="scripted fault"):
        packs.sync()
    before = disk.op_count
    for retry in (packs.sync, packs.seal, packs.begin, lambda: append(packs, 2)):
        with pytest.raises(StoreSealed, match="packs/00000000"):
            retry()
    packs.abandon()
    packs.close()
    assert disk.op_count == before


# -- damage


@pytest.mark.parametrize("where", [0, 10, 30, 60, 64, 200, 4096])
def test_a_flipped_bit_anywhere_in_an_entry_is_found(where: int) -> None:
    disk = SimDisk()
    packs = opened(disk)
    chunk_id, place = append(packs, 1)
    packs.sync()
    disk.flip_bit("packs/00000000.pack", place.offset + where)
    with pytest.raises(CorruptChunk, match=f"{chunk_id.hex()} at offset 64 of packs/00000000.pack"):
        packs.read(place, chunk_id)


def test_a_cut_off_entry_is_found() -> None:
    disk = SimDisk()
    packs = opened(disk)
    chunk_id, place = append(packs, 1)
    packs.sync()
    disk.open("packs/00000000.pack").truncate(3000)
    with pytest.raises(CorruptChunk, match="cut off"):
        packs.read(place, chunk_id)


def test_the_entry_of_another_chunk_is_refused() -> None:
    packs = opened(SimDisk())
    chunk_id, place = append(packs, 1)
    with pytest.raises(CorruptChunk, match=f"is chunk {chunk_id.hex()}"):
        packs.read(place, b"x" * 32)


def test_bytes_of_another_pack_are_no_entry() -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries = [append(packs, number) for number in range(12)]
    packs.close()
    other = disk.image().read("packs/00000001.pack")
    disk.open("packs/00000000.pack").pwrite(other[64:8192], 64)
    chunk_id, place = entries[0]
    with pytest.raises(CorruptChunk, match="no valid entry header"):
        opened(disk).read(place, chunk_id)


def test_a_damaged_pack_header_costs_no_data(caplog: pytest.LogCaptureFixture) -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries = [append(packs, number) for number in range(12)]
    packs.sync()
    for number in (0, 1):
        disk.flip_bit(f"packs/0000000{number}.pack", 20)
    with caplog.at_level(logging.WARNING):
        again = opened(reboot(disk))
        assert all(readable(again, entry, number) for number, entry in enumerate(entries))
    assert "pack header damaged" in caplog.text


def test_a_damaged_footer_costs_no_entries(caplog: pytest.LogCaptureFixture) -> None:
    disk = SimDisk()
    packs = opened(disk)
    entries = [append(packs, number) for number in range(12)]
    packs.close()
    first = [entry for entry in entries if entry[1].pack == 0]
    size = len(disk.image().read("packs/00000000.pack"))
    disk.flip_bit("packs/00000000.pack", size - 1)
    disk.flip_bit("packs/00000000.pack", first[2][1].offset)
    again = opened(disk)
    with pytest.raises(CorruptPack, match="footer"):
        again.footer(0)
    found = [chunk_id for chunk_id, _ in again.places(0)]
    assert found == [chunk_id for chunk_id, _ in first[:2] + first[3:]]
    assert "pack footer damaged" in caplog.text


def test_a_pack_of_a_newer_version_is_refused() -> None:
    disk = SimDisk()
    packs = opened(disk)
    append(packs, 1)
    packs.sync()
    header = bytearray(disk.image().read("packs/00000000.pack")[:60])
    header[8] = 2
    disk.open("packs/00000000.pack").pwrite(header + crc32c(header).to_bytes(4, "little"), 0)
    with pytest.raises(UnknownFormat, match="version 2"):
        opened(reboot(disk))


def test_a_pack_of_another_store_is_refused() -> None:
    disk = SimDisk()
    Packs(disk, b"other store uuid").begin()
    with pytest.raises(UnknownFormat, match="of store"):
        opened(disk)


def test_an_unreadable_pack_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    disk = SimDisk(Image(frozenset(["packs"])))
    disk.open("packs/00000000.pack", create=True).pwrite(b"garbage" * 1000, 0)
    packs = opened(disk)
    assert packs.sealed() == [0]
    assert "not readable" in caplog.text
    assert disk.image().read("packs/00000000.pack") == b"garbage" * 1000


def test_recovered_chunks_are_those_of_the_index_rebuilt() -> None:
    rig = Rig()
    ids = rig.put_synced(*range(25))
    again = rig.without_index()
    assert [again.store.get(chunk_id) for chunk_id in ids] == [chunk(n) for n in range(25)]
