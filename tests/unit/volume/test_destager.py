"""Destage rounds while other things happen: writes, deletions, renames, resizes, damage, no space.

A `Stall` on a disk call is the way into the middle of a round: its hook runs there, on the same
thread, so nothing depends on timing.
"""

import errno
from dataclasses import replace

import pytest

from native import OP_WRITE, Request
from tests.sim.faults import Fail, Fault, Stall
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig
from volume.errors import OutOfSpace
from volume.volume import Volume

ROOMY_BYTES = 16 * SEGMENT_BYTES
ROOMY = replace(SMALL, journal_limit=ROOMY_BYTES)


def rig_with(*names: str, size: int = 64 * KIB) -> StoreRig:
    rig = StoreRig(options=ROOMY)
    for name in names:
        rig.store.create_volume(name, size, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    return rig


def during_round(rig: StoreRig, hook: object) -> None:
    """One round; `hook` is called when its chunks are being synced."""
    rig.disk.faults.add(Fault("sync", Stall(hook), path="packs/*", nth=2))  # type: ignore[arg-type]
    assert rig.store.destage()
    assert rig.disk.faults.fired
    rig.disk.faults.clear()


def test_round_moves_all_hot_volumes_and_frees_segments() -> None:
    rig = rig_with("a", "b")
    rig.fill("a", 0, b"a" * 24 * KIB)
    rig.fill("b", 0, b"b" * 24 * KIB)
    assert rig.store.status().hot_bytes == 48 * KIB
    assert rig.store.destage()
    assert rig.store.status().hot_bytes == 0
    assert rig.store.status().journal_bytes < SEGMENT_BYTES
    assert rig.read("a", 0, 24 * KIB) == b"a" * 24 * KIB
    assert rig.read("b", 0, 24 * KIB) == b"b" * 24 * KIB
    assert not rig.store.destage()


def test_round_without_anything_hot_does_nothing() -> None:
    rig = rig_with("a")
    ops = rig.disk.op_count
    assert not rig.store.destage()
    assert rig.disk.op_count == ops


def test_volumes_of_a_round_have_one_cut() -> None:
    """What is written to one while the other is being stored comes after the cut for both."""
    rig = rig_with("a", "b")
    rig.write("a", 0, b"1" * 512)
    rig.write("b", 0, b"1" * 512)

    def write_both() -> None:
        rig.write("a", 0, b"2" * 512)
        rig.write("b", 0, b"2" * 512)

    during_round(rig, write_both)
    assert rig.store.status().hot_bytes == 1024
    for again in (rig, rig.killed(), rig.rebooted()):
        assert again.read("a", 0, 512) == again.read("b", 0, 512) == b"2" * 512


def test_write_that_comes_before_the_cut_to_a_volume_that_seemed_cold_is_kept() -> None:
    rig = rig_with("hot", "cold")
    rig.write("hot", 0, b"h" * 512)
    cold = rig.volume("cold")
    listed = rig.store._destager

    def volumes() -> list[Volume]:
        found = list(rig.store._catalog._volumes.values())
        cold.submit([Request(OP_WRITE, 0, 512, b"c" * 512)], lambda _: None)
        return found

    assert listed.run(volumes)
    assert rig.flush("cold") == 0
    assert rig.read("cold", 0, 512) == b"c" * 512
    assert rig.rebooted().read("cold", 0, 512) == b"c" * 512


def test_volume_deleted_during_a_round_is_gone_and_the_others_are_moved() -> None:
    rig = rig_with("a", "b")
    rig.write("a", 0, b"a" * 512)
    rig.write("b", 0, b"b" * 512)
    during_round(rig, lambda: rig.store.delete_volume("b"))
    assert rig.store.names() == ["a"]
    assert rig.read("a", 0, 512) == b"a" * 512
    again = rig.rebooted()
    assert again.store.names() == ["a"]
    assert again.read("a", 0, 512) == b"a" * 512


def test_same_name_created_during_a_round_is_another_volume() -> None:
    rig = rig_with("a")
    rig.write("a", 0, b"a" * 512)

    def replace() -> None:
        rig.store.delete_volume("a")
        rig.store.create_volume("a", 64 * KIB)

    during_round(rig, replace)
    assert rig.read("a") == bytes(64 * KIB)
    assert rig.rebooted().read("a") == bytes(64 * KIB)


def test_rename_during_a_round_keeps_name_and_data() -> None:
    rig = rig_with("a")
    rig.write("a", 0, b"a" * 512)
    during_round(rig, lambda: rig.store.rename_volume("a", "z"))
    rig.write("z", 4 * KIB, b"z" * 512)
    rig.settle()
    for again in (rig, rig.rebooted()):
        assert again.store.names() == ["z"]
        assert again.read("z", 0, 512) + again.read("z", 4096, 512) == b"a" * 512 + b"z" * 512


def test_shrink_during_a_round_leaves_zeros_when_the_volume_grows_again() -> None:
    rig = rig_with("a")
    rig.fill("a", 0, b"a" * 64 * KIB)
    during_round(rig, lambda: rig.store.resize_volume("a", 10 * KIB, force=True))
    rig.settle()
    rig.store.resize_volume("a", 64 * KIB)
    expected = b"a" * 10 * KIB + bytes(54 * KIB)
    for again in (rig, rig.rebooted()):
        assert again.read("a") == expected


@pytest.mark.parametrize("size", [512, 4 * KIB, 10 * KIB, 16 * KIB + 512])
def test_what_a_shrink_cut_off_stays_gone(size: int) -> None:
    rig = rig_with("a", size=30 * KIB)
    rig.fill("a", 0, b"a" * 30 * KIB)
    rig.settle()
    rig.store.resize_volume("a", size, force=True)
    rig.settle()
    rig.store.resize_volume("a", 60 * KIB)
    assert rig.read("a") == b"a" * size + bytes(60 * KIB - size)


def test_segments_of_a_deleted_volume_are_used_again() -> None:
    rig = rig_with("old", "new")
    while rig.store._journal.state()[3] > 1:
        rig.write("old", 0, b"o" * 4096)
    rig.store.delete_volume("old")
    done: list[Request] = []
    rig.volume("new").submit([Request(OP_WRITE, 0, 64 * KIB, b"n" * 64 * KIB)], done.extend)
    assert not done
    for _ in range(8):  # what the store's threads would do
        rig.store.upkeep.destage_if_due()
        rig.tend()
    assert [request.error for request in done] == [0]
    assert rig.read("new") == b"n" * 64 * KIB


@pytest.mark.parametrize(("between_s", "begins_at"), [(0.3, 0.25), (0.01, 0.5)])
def test_a_round_waits_for_more_of_the_journal_while_clients_write_at_full_speed(
    between_s: float, begins_at: float
) -> None:
    rig = rig_with("a")
    fill = 0.0
    while fill < 1.0:
        rig.clock.advance(between_s)
        assert rig.write("a", 0, b"a" * 4096) == 0
        rig.tend()
        rig.store.upkeep.destage_if_due()
        if rig.store.status().hot_bytes == 0:
            break
        fill = rig.store.status().journal_bytes / ROOMY_BYTES
    assert begins_at - 0.1 <= fill < begins_at


def test_round_that_finds_no_space_is_done_again_and_loses_nothing() -> None:
    rig = rig_with("a")
    rig.write("a", 0, b"a" * 4096)
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), path="packs/*", count=None))
    with pytest.raises(OutOfSpace):
        rig.store.destage()
    assert rig.write("a", 4096, b"b" * 4096) == errno.ENOSPC
    rig.tend()  # there is space after all
    assert rig.write("a", 4096, b"b" * 4096) == 0  # the next round's
    assert rig.read("a", 0, 8192) == b"a" * 4096 + b"b" * 4096
    rig.disk.faults.clear()
    assert rig.store.destage()
    assert rig.store.destage()
    assert rig.store.status().hot_bytes == 0
    assert rig.rebooted().read("a", 0, 8192) == b"a" * 4096 + b"b" * 4096


def test_damaged_write_is_an_error_for_good_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = rig_with("a")
    rig.write("a", 8192, b"a" * 4096)
    segment = rig.disk.open("journal/00000000.seg", read_only=True)
    rig.disk.flip_bit("journal/00000000.seg", segment.pread(8192, 0).index(b"a" * 64))
    assert rig.store.destage()
    assert "volume=a offset=8192 length=4096" in caplog.text
    assert "journal/00000000.seg" in caplog.text
    assert rig.store.status().hot_bytes == 0
    for each in (rig, rig.rebooted()):
        assert each.read_error("a", 8192, 512) == errno.EIO


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_round_in_slices_makes_the_tree_that_one_in_a_piece_makes(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rigs = [rig_with("a", size=4096 * KIB) for _ in range(2)]  # four leaves
    for rig in rigs:
        rig.fill("a", 1000 * KIB, bytes(range(1, 61)) * 1024)
        rig.store.destage()
        for number in range(0, 1024, 128):  # runs of data, of one chunk and more, and of zeros
            rig.write(
                "a", number * 4 * KIB, bytes([number // 128 + 1]) * (512 if number % 3 else 8192)
            )
        rig.zero("a", 1008 * KIB, 24 * KIB)
        rig.write("a", 1032 * KIB, bytes(4096))
    rigs[0].store.destage()
    monkeypatch.setattr("volume.builder.SLICE_CHUNKS", count)
    rigs[1].store.destage()
    heads = [rig.volume("a").record.head for rig in rigs]
    assert heads[0].root == heads[1].root
    assert rigs[1].read("a", 0, 4096 * KIB) == rigs[0].read("a", 0, 4096 * KIB)
