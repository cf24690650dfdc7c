"""Opening a store whose journal or folders are not as they were left: what is refused, what is not.

The journal of these tests is one segment long, so offsets are those of the file: records begin at
4096, each a header of 64 bytes and its payload, each group behind a mark of 64 bytes.
"""

from dataclasses import replace

import pytest

from native import crc32c
from tests.sim.crash import CrashPlanner
from tests.sim.image import Image
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig, index_at, meta_at
from volume.checkpoint import Checkpoint
from volume.errors import CorruptJournal, OldMeta, UnknownFormat

FIRST = "journal/00000000.seg"
FIRST_PAYLOAD = 4096 + 64 + 64  # behind a mark and the record's header
ACCEPT = replace(SMALL, accept_journal_loss=True)


def opened(seed: int = 0) -> StoreRig:
    rig = StoreRig(seed=seed)
    rig.store.create_volume("v", 64 * KIB, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    return rig


# -- damage


def test_damage_to_flushed_data_is_refused_when_a_later_mark_proves_it() -> None:
    rig = opened()
    rig.write("v", 0, b"f" * 512, fua=True)
    rig.write("v", 512, b"l" * 512, fua=True)  # begins with a mark that vouches for the first
    rig.disk.flip_bit(FIRST, FIRST_PAYLOAD + 100)
    with pytest.raises(CorruptJournal, match=r"journal/00000000\.seg at offset .* record 2 "):
        rig.rebooted()


def test_damage_to_data_of_a_closed_store_is_refused() -> None:
    """Closing leaves a mark behind everything."""
    rig = opened()
    rig.write("v", 0, b"f" * 512)
    rig.store.close()
    rig.disk.flip_bit(FIRST, FIRST_PAYLOAD)
    with pytest.raises(CorruptJournal, match="accept_journal_loss"):
        rig.killed()


def test_damaged_record_header_is_refused_like_a_damaged_payload() -> None:
    rig = opened()
    rig.write("v", 0, b"f" * 512)
    rig.store.close()
    rig.disk.flip_bit(FIRST, 4096 + 64 + 16)
    with pytest.raises(CorruptJournal):
        rig.killed()


def test_refusing_changes_nothing() -> None:
    rig = opened()
    rig.write("v", 0, b"f" * 512)
    rig.store.close()
    rig.disk.flip_bit(FIRST, FIRST_PAYLOAD)
    before = rig.disk.image().digest()
    with pytest.raises(CorruptJournal):
        StoreRig(meta=rig.meta.snapshot(), index=rig.index.snapshot(), disk=rig.disk)
    assert rig.disk.image().digest() == before


def test_accepted_loss_drops_what_follows_the_damage_and_goes_on() -> None:
    rig = opened()
    rig.write("v", 0, b"k" * 512, fua=True)
    rig.write("v", 512, b"d" * 512, fua=True)
    rig.write("v", 1024, b"l" * 512, fua=True)
    rig.disk.flip_bit(FIRST, 4096 + 1024 + 128 + 10)  # in the second record
    again = rig.rebooted(options=ACCEPT)
    assert again.read("v", 0, 1536) == b"k" * 512 + bytes(1024)
    assert again.write("v", 1024, b"n" * 512, fua=True) == 0
    assert again.rebooted(options=ACCEPT).read("v", 1024, 512) == b"n" * 512


def test_loss_is_accepted_once() -> None:
    """The marks that told of the lost records must not be believed at the next opening."""
    rig = opened()
    for at in range(0, 8 * KIB, 512):
        rig.write("v", at, b"x" * 512, fua=True)
    rig.disk.flip_bit(FIRST, FIRST_PAYLOAD)
    again = rig.rebooted(options=ACCEPT)
    again.tend()
    assert again.read("v") == bytes(64 * KIB)
    again.write("v", 0, b"n" * 512, fua=True)
    assert again.rebooted(options=SMALL).read("v", 0, 1024) == b"n" * 512 + bytes(512)


def test_lost_segment_of_the_checkpoint_is_refused_and_accepted_once() -> None:
    rig = opened()
    rig.write("v", 0, b"s" * 4096)
    rig.settle()
    rig.write("v", 4096, b"j" * 4096, fua=True)
    rig.disk.unlink(FIRST)
    with pytest.raises(CorruptJournal, match="where the checkpoint is"):
        rig.rebooted()
    again = rig.rebooted(options=ACCEPT)
    again.tend()
    assert again.read("v", 0, 8192) == b"s" * 4096 + bytes(4096)
    again.write("v", 512, b"n" * 512, fua=True)
    for more in (again.rebooted(options=SMALL), again.closed()):
        assert more.read("v", 0, 4096) == b"s" * 512 + b"n" * 512 + b"s" * 3072


def test_lost_segment_in_the_middle_is_refused() -> None:
    rig = opened()
    for at in range(0, 28 * KIB, 4 * KIB):
        rig.write("v", at, b"x" * 4096, fua=True)
        rig.tend()
    rig.disk.unlink("journal/00000001.seg")
    with pytest.raises(CorruptJournal, match="before journal/00000002"):
        rig.rebooted()


# -- no damage


def test_torn_tail_that_was_not_flushed_is_dropped_silently(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = opened()
    rig.write("v", 0, b"f" * 4096, fua=True)
    rig.write("v", 4096, b"t" * 4096)
    trace = rig.disk.trace
    base = rig.base_meta
    states = CrashPlanner(trace).states_at(len(trace.ops))
    assert len(states) > 10
    marks = trace.marks(len(trace.ops))
    found = set()
    for image in states:
        again = StoreRig(image, meta_at(marks, base), index_at(marks, {}), boot="boot-2")
        assert again.read("v", 0, 4096) == b"f" * 4096
        found.add(again.read("v", 4096, 4096))
    assert found == {bytes(4096), b"t" * 4096}
    assert "damaged" not in caplog.text


def test_power_cut_in_a_large_write_leaves_all_of_it_or_nothing() -> None:
    """Its last page is filled with marks, some of which may be on the disk without what is before
    them: they vouch for what was flushed, and for nothing else."""
    roomy = replace(SMALL, segment_bytes=1 << 20, journal_limit=4 << 20)
    size = 512 * KIB
    rig = StoreRig(options=roomy)
    rig.store.create_volume("v", size, block_size=512, chunk_size=64 * KIB)
    rig.tend()
    rig.write("v", 0, b"f" * 4096, fua=True)
    large = b"l" * (256 * KIB + 512)
    rig.write("v", 4096, large)
    rig.write("v", 4096 + len(large), b"s" * 512)
    trace = rig.disk.trace
    marks = trace.marks(len(trace.ops))
    found = set()
    for image in CrashPlanner(trace).states_at(len(trace.ops)):
        again = StoreRig(
            image, meta_at(marks, rig.base_meta), index_at(marks, {}), options=roomy, boot="boot-2"
        )
        assert again.read("v", 0, 4096) == b"f" * 4096
        rest = again.read("v", 4096, len(large) + 512)
        assert rest in (bytes(len(rest)), large + bytes(512), large + b"s" * 512)
        assert again.write("v", 0, b"n" * 512) == 0
        assert again.killed().read("v", 0, 1024) == b"n" * 512 + b"f" * 512
        found.add(rest)
    assert len(found) == 3


def test_journal_inside_a_volume_is_data() -> None:
    """A copy of a journal, marks and all, written to a volume proves nothing about this one."""
    other = opened(seed=1)
    for at in range(0, 4 * KIB, 512):
        other.write("v", at, b"x" * 512, fua=True)
    copy = other.disk.image().read(FIRST)[4096:8192]
    rig = opened()
    rig.write("v", 0, b"f" * 512, fua=True)
    position = len(rig.disk.trace.ops)
    rig.write("v", 4096, copy)
    planner = CrashPlanner(rig.disk.trace)
    marks = rig.disk.trace.marks(position)
    for image in planner.states_at(len(rig.disk.trace.ops)):
        again = StoreRig(image, meta_at(marks, {}), boot="boot-2")
        assert again.read("v", 0, 512) == b"f" * 512


def test_unknown_file_in_the_journal_folder_is_left_alone() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 512)
    rig.disk.open("journal/notes.txt", create=True).close()
    again = rig.rebooted()
    assert again.read("v", 0, 512) == b"x" * 512
    assert "notes.txt" in again.disk.list("journal")


def test_unfinished_segment_is_removed() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 512)
    half = rig.disk.open("journal/00000009.seg", create=True)
    half.pwrite(bytes(4096), 0)
    again = rig.rebooted()
    assert again.read("v", 0, 512) == b"x" * 512
    assert "00000009.seg" not in again.disk.list("journal")


def test_segment_that_is_too_long_is_refused() -> None:
    rig = opened()
    rig.disk.open(FIRST).truncate(2 * SEGMENT_BYTES)
    with pytest.raises(CorruptJournal, match="move the file away"):
        rig.rebooted()


def test_segment_of_another_store_is_refused() -> None:
    rig, other = opened(), opened(seed=1)
    other.write("v", 0, b"x" * 512)
    rig.disk.open(FIRST).pwrite(other.disk.image().read(FIRST), 0)
    with pytest.raises(CorruptJournal, match="another place or store"):
        rig.rebooted()


def test_segment_of_a_later_version_is_refused() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 512)
    header = bytearray(rig.disk.image().read(FIRST)[:512])
    header[8] = 2
    header[124:128] = crc32c(header[:124]).to_bytes(4, "little")
    rig.disk.open(FIRST).pwrite(header, 0)
    with pytest.raises(UnknownFormat, match="another version"):
        rig.rebooted()


def test_record_of_a_later_version_is_refused() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 512)
    at = 4096 + 64  # behind the mark
    header = bytearray(rig.disk.image().read(FIRST)[at : at + 64])
    header[4] = 2
    header[60:64] = crc32c(header[:60]).to_bytes(4, "little")
    rig.disk.open(FIRST).pwrite(header, at)
    with pytest.raises(UnknownFormat, match="unknown version"):
        rig.rebooted()


def test_lost_index_is_rebuilt_from_the_packs() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 8192)
    rig.settle()
    rig.store.close()
    again = rig.rebooted()  # index/ is gone, and so is the boot that wrote it
    clean = StoreRig(again.disk.image(), again.meta.snapshot(), boot="boot-9")
    assert clean.read("v", 0, 8192) == b"x" * 8192


def test_records_of_a_deleted_volume_are_passed_over() -> None:
    rig = opened()
    rig.store.create_volume("w", 64 * KIB, block_size=512)
    rig.write("w", 0, b"w" * 512)
    rig.write("v", 0, b"v" * 512)
    rig.store.delete_volume("w")
    again = rig.killed()
    assert again.store.names() == ["v"]
    assert again.read("v", 0, 512) == b"v" * 512


def test_each_opening_raises_the_epoch() -> None:
    rig = opened()
    epochs = [rig.store.status().node_epoch]
    for again in (rig.killed(), rig.rebooted()):
        epochs.append(again.store.status().node_epoch)
    assert epochs == [1, 2, 2]
    assert rig.closed().store.status().node_epoch == 2


def test_store_that_never_wrote_opens_again() -> None:
    rig = StoreRig()
    assert rig.rebooted(Image()).store.names() == []
    assert rig.closed().store.names() == []


# -- what no journal of this store looks like


def test_files_whose_names_only_look_like_those_of_segments_are_left_alone() -> None:
    rig = opened()
    rig.write("v", 0, b"f" * 512, fua=True)
    names = ("+0000007", "0x000007", "0000000A", " 0000007", "-0000001", "00010000", "0000_007")
    for name in names:
        file = rig.disk.open(f"journal/{name}.seg", create=True)
        file.pwrite(bytes(SEGMENT_BYTES), 0)
        file.close()
    again = rig.killed()
    assert again.read("v", 0, 512) == b"f" * 512
    assert {f"{name}.seg" for name in names} <= set(again.disk.list("journal"))


def reheaded(rig: StoreRig, path: str, at: int, field: bytes) -> None:
    """Another value in a segment's header, sealed."""
    file = rig.disk.open(path)
    header = bytearray(file.pread(128, 0))
    header[at : at + len(field)] = field
    header[124:] = crc32c(bytes(header[:124])).to_bytes(4, "little")
    file.pwrite(bytes(header), 0)
    file.close()


@pytest.mark.parametrize("sequence", [0, (1 << 64) - 1])
def test_segment_of_a_sequence_that_no_log_has_is_refused(sequence: int) -> None:
    """None could follow the last one, and 0 says in a checkpoint that there is none."""
    rig = opened()
    rig.write("v", 0, b"f" * 512, fua=True)
    reheaded(rig, FIRST, 32, sequence.to_bytes(8, "little"))
    with pytest.raises(CorruptJournal, match="no journal has a segment with sequence"):
        rig.killed()


def test_journal_that_is_newer_than_meta_is_refused() -> None:
    """What would be written now would be taken for older than what is there, and dropped."""
    rig = opened()
    base = rig.meta.snapshot()
    for _ in range(3):
        rig = rig.killed()
    rig.write("v", 0, b"f" * 512, fua=True)
    with pytest.raises(OldMeta, match="by run 4 of the store"):
        StoreRig(rig.disk.image(), base, rig.index.snapshot(), boot="boot-2")


def test_checkpoint_at_the_end_of_a_lost_segment_is_moved_when_that_is_accepted() -> None:
    rig = opened()
    rig.write("v", 0, b"s" * 4096)
    rig.settle()
    at = Checkpoint.decode(rig.store._meta.checkpoint or b"")
    for offset in range(4096, 40 * KIB, 4096):
        rig.write("v", offset, b"j" * 4096, fua=True)
        rig.tend()
    second = next(s for s in rig.store._pool.log_from(0) if s.sequence == at.sequence + 1)
    passed = replace(at, lsn=second.first_lsn, chain=second.chain, position=SEGMENT_BYTES)
    rig.store._meta.move_heads({}, passed.encode())
    rig.disk.unlink(FIRST)
    with pytest.raises(CorruptJournal, match="where the checkpoint is"):
        rig.rebooted()
    again = rig.rebooted(options=ACCEPT)
    moved = Checkpoint.decode(again.store._meta.checkpoint or b"")
    assert moved.sequence == second.sequence
    again.write("v", 512, b"n" * 512, fua=True)
    assert again.rebooted().read("v", 512, 512) == b"n" * 512


def test_records_behind_the_header_of_a_later_run_do_not_come_back() -> None:
    """A power cut took the header before them, so a recovery did without them; the next one took
    the records that the run after it had written over them, behind a header of its own."""
    rig = opened()
    rig.write("v", 0, b"o" * 512)
    file = rig.disk.open(FIRST)
    old = file.pread(8 * KIB, 4096)
    file.pwrite(bytes(512), 0)
    again = rig.rebooted()
    assert again.read("v", 0, 512) == bytes(512)
    again.tend()
    again.write("v", 1024, b"n" * 512)
    file = again.disk.open(FIRST)
    assert file.pread(8, 0) != bytes(8)
    file.pwrite(old, 4096)
    assert again.rebooted().read("v", 0, 2 * KIB) == bytes(2 * KIB)
