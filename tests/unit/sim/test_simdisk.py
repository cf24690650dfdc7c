"""The simulated disk behaves as POSIX while it has power; its faults fire once, as scripted."""

import errno
import os
import re
import threading
from collections.abc import Callable

import pytest

from tests.sim.faults import Fail, Fault, Lie, Misdirect, ShortWrite, Stall
from tests.sim.image import PAGE_SIZE
from tests.sim.simclock import SimClock
from tests.sim.simdisk import PowerCut, SimDisk, SimFile
from tests.sim.trace import Sync, Write
from volume.disk import Clock, Disk, File

KIB = 1024


def fails_with(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, match=re.escape(os.strerror(code)))


def disk_with(data: bytes, capacity: int = 1 << 20) -> tuple[SimDisk, SimFile]:
    disk = SimDisk(capacity=capacity)
    file = disk.open("f", create=True)
    file.pwrite(data, 0)
    return disk, file


def test_it_satisfies_the_protocols_of_the_volume_layer() -> None:
    disk: Disk = SimDisk()
    file: File = disk.open("f", create=True)
    clock: Clock = SimClock()
    assert file.native() is file
    assert clock.monotonic() == 0.0


def test_reads_see_writes_and_holes_are_zeros() -> None:
    _, file = disk_with(b"abc")
    assert file.pwrite(memoryview(b"xyz"), 10_000) == 3
    assert file.size() == 10_003
    assert file.pread(5, 0) == b"abc\0\0"
    assert file.pread(100, 9_998) == b"\0\0xyz"
    assert file.pread(1, 10_003) == b""


def test_a_cut_tail_reads_as_zeros_when_the_file_grows_again() -> None:
    _, file = disk_with(b"x" * 6000)
    file.truncate(4100)
    file.truncate(6000)
    assert file.pread(6000, 0) == b"x" * 4100 + bytes(1900)


def test_a_huge_sparse_file_allocates_what_was_written() -> None:
    disk, file = disk_with(b"a", capacity=1 << 20)
    file.pwrite(b"z", 1 << 50)
    assert disk.free_bytes() == (1 << 20) - 2 * PAGE_SIZE


def test_names_behave_as_on_posix() -> None:
    disk, file = disk_with(b"one")
    disk.mkdir("d")
    disk.mkdir("d")
    disk.open("d/g", create=True).pwrite(b"two", 0)
    assert (disk.list(""), disk.list("d")) == (["f"], ["g"])
    disk.rename("f", "d/g")
    assert (disk.list("."), disk.list("d")) == ([], ["g"])
    assert disk.open("d/g", read_only=True).pread(9, 0) == b"one"
    disk.unlink("d/g")
    assert file.pread(9, 0) == b"one"  # still open


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda disk: disk.open("none"), errno.ENOENT),
        (lambda disk: disk.open("f", create=True), errno.EEXIST),
        (lambda disk: disk.open("none/f", create=True), errno.ENOENT),
        (lambda disk: disk.open("d"), errno.EISDIR),
        (lambda disk: disk.open("../f"), errno.EINVAL),
        (lambda disk: disk.open("f", read_only=True).pwrite(b"x", 0), errno.EBADF),
        (lambda disk: disk.open("f").pread(1, -1), errno.EINVAL),
        (lambda disk: disk.list("none"), errno.ENOENT),
        (lambda disk: disk.list("f"), errno.ENOTDIR),
        (lambda disk: disk.mkdir("f"), errno.EEXIST),
        (lambda disk: disk.unlink("none"), errno.ENOENT),
        (lambda disk: disk.rename("none", "g"), errno.ENOENT),
        (lambda disk: disk.rename("f", "d"), errno.EISDIR),
        (lambda disk: disk.sync_dir("none"), errno.ENOENT),
    ],
)
def test_a_wrong_call_gets_the_errno_of_a_real_disk(
    call: Callable[[SimDisk], object], code: int
) -> None:
    disk, _ = disk_with(b"x")
    disk.mkdir("d")
    with fails_with(code):
        call(disk)


def test_a_closed_file_is_ebadf() -> None:
    _, file = disk_with(b"x")
    file.close()
    file.close()
    with fails_with(errno.EBADF):
        file.pread(1, 0)


# -- capacity


def test_a_full_disk_takes_what_fits_and_still_overwrites() -> None:
    disk, file = disk_with(b"a" * 4 * KIB, capacity=12 * KIB)
    with fails_with(errno.ENOSPC):
        file.pwrite(b"b" * 16 * KIB, 2 * KIB)
    assert file.size() == 12 * KIB
    assert file.pread(1, 12 * KIB - 1) == b"b"
    assert disk.free_bytes() == 0
    assert file.pwrite(b"c" * 12 * KIB, 0) == 12 * KIB
    with fails_with(errno.ENOSPC):
        file.pwrite(b"d", 12 * KIB)


def test_zeros_take_space_too() -> None:
    disk, _ = disk_with(bytes(8 * KIB), capacity=64 * KIB)
    assert (disk.free_bytes(), disk.total_bytes()) == (56 * KIB, 64 * KIB)


def test_unlink_and_truncate_and_replacement_free_space() -> None:
    disk, file = disk_with(b"a" * 8 * KIB, capacity=64 * KIB)
    file.truncate(4 * KIB)
    assert disk.free_bytes() == 60 * KIB
    other = disk.open("g", create=True)
    other.pwrite(b"b" * 12 * KIB, 0)
    disk.rename("g", "f")
    assert disk.free_bytes() == 48 * KIB  # the replaced file is still open
    file.close()
    assert disk.free_bytes() == 52 * KIB
    other.close()
    disk.unlink("f")
    assert disk.free_bytes() == 64 * KIB


# -- faults


@pytest.mark.parametrize("op", ["pread", "pwrite", "sync", "truncate"])
def test_the_nth_call_fails_once(op: str) -> None:
    disk, file = disk_with(b"old")
    fault = Fault(op, Fail(errno.EIO), nth=2)
    disk.faults.add(fault)
    calls: dict[str, Callable[[], object]] = {
        "pread": lambda: file.pread(1, 0),
        "pwrite": lambda: file.pwrite(b"new", 0),
        "sync": file.sync,
        "truncate": lambda: file.truncate(3),
    }
    calls[op]()
    with fails_with(errno.EIO):
        calls[op]()
    calls[op]()
    assert disk.faults.fired == [(fault, "f")]


def test_a_fault_hits_only_its_path_and_range() -> None:
    disk, file = disk_with(b"x" * KIB)
    other = disk.open("g.seg", create=True)
    disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), path="*.seg", covers=600, count=None))
    file.pwrite(b"y", 600)
    other.pwrite(b"y" * 600, 0)
    for _ in range(2):
        with fails_with(errno.ENOSPC):
            other.pwrite(b"z" * 601, 0)
    disk.faults.clear()
    other.pwrite(b"z" * 601, 0)


def test_a_failed_write_changes_nothing() -> None:
    disk, file = disk_with(b"old")
    disk.faults.add(Fault("pwrite", Fail()))
    with fails_with(errno.EIO):
        file.pwrite(b"new", 0)
    assert file.pread(3, 0) == b"old"


def test_a_short_write_lands_in_part_and_then_fails() -> None:
    disk, file = disk_with(b"old")
    disk.faults.add(Fault("pwrite", ShortWrite(2, errno.EDQUOT)))
    with fails_with(errno.EDQUOT):
        file.pwrite(b"new", 0)
    assert file.pread(3, 0) == b"ned"


def test_a_misdirected_write_reports_success() -> None:
    disk, file = disk_with(b"0123456789")
    disk.faults.add(Fault("pwrite", Misdirect(4)))
    assert file.pwrite(b"xx", 0) == 2
    assert file.pread(10, 0) == b"0123xx6789"


def test_a_lost_write_and_a_lying_sync_report_success() -> None:
    disk, file = disk_with(b"old")
    disk.faults.add(Fault("pwrite", Lie()), Fault("sync", Lie()))
    assert file.pwrite(b"new", 0) == 3
    file.sync()
    assert file.pread(3, 0) == b"old"
    assert disk.trace.ops[-1] == Sync(1, 2, "lied")


def test_a_latent_read_error_lasts_until_the_sector_is_rewritten() -> None:
    disk, file = disk_with(b"x" * 2 * KIB)
    disk.break_sector("f", 700)
    assert file.pread(512, 0) == b"x" * 512
    file.pwrite(b"y", 700)  # a part of the sector does not heal it
    with fails_with(errno.EIO):
        file.pread(2, 1022)
    file.pwrite(b"z" * 512, 512)
    assert file.pread(2, 1023) == b"zx"


def test_a_flipped_bit_stays_flipped() -> None:
    disk, file = disk_with(b"\x01\x01\x01")
    disk.flip_bit("f", 1, 7)
    assert file.pread(3, 0) == b"\x01\x81\x01"
    with pytest.raises(ValueError, match="no byte 3"):
        disk.flip_bit("f", 3)


def test_a_stalled_sync_lets_others_write_and_does_not_cover_them() -> None:
    disk, file = disk_with(b"before")
    stalled, go_on = threading.Event(), threading.Event()

    def hook() -> None:
        stalled.set()
        assert go_on.wait(60)

    disk.faults.add(Fault("sync", Stall(hook)))
    thread = threading.Thread(target=file.sync)
    thread.start()
    assert stalled.wait(60)
    file.pwrite(b"during", 0)
    go_on.set()
    thread.join()
    assert disk.trace.ops[-2:] == [Write(1, 0, b"during"), Sync(1, 2)]


def test_a_fault_that_cannot_happen_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot happen to 'pread'"):
        Fault("pread", Lie())
    with pytest.raises(ValueError, match="count from 1"):
        Fault("pread", Fail(), nth=0)


# -- power


def test_the_power_goes_right_after_the_planned_operation() -> None:
    disk, file = disk_with(b"one")
    disk.crash_at(2)
    file.pwrite(b"two", 0)
    with pytest.raises(PowerCut, match="planned"):
        file.pwrite(b"six", 0)
    for call in (file.sync, file.size, disk.free_bytes, lambda: disk.open("f")):
        with pytest.raises(PowerCut):
            call()
    file.close()
    assert disk.op_count == len(disk.trace.ops) == 4
    assert disk.image().read("f") == b"six"


def test_a_call_that_waits_when_the_power_goes_does_nothing() -> None:
    disk, file = disk_with(b"old")
    disk.faults.add(Fault("pwrite", Stall(disk.power_off)))
    with pytest.raises(PowerCut):
        file.pwrite(b"new", 0)
    assert disk.image().read("f") == b"old"


def test_a_disk_on_an_image_shares_nothing_that_can_change() -> None:
    disk, file = disk_with(b"a" * 10 * KIB)
    image = disk.image()
    twins = [SimDisk(image, capacity=64 * KIB) for _ in range(2)]
    twins[0].open("f").pwrite(b"b", 0)
    file.pwrite(b"c", 0)
    assert twins[0].image().read("f")[:2] == b"ba"
    assert twins[1].image().digest() == image.digest()
    assert image.read("f") == b"a" * 10 * KIB
    assert twins[0].free_bytes() == 52 * KIB


def test_digests_depend_on_names_bytes_and_sizes_only() -> None:
    digests = set()
    for name, data in (("f", b"a"), ("g", b"a"), ("f", b"b"), ("f", b"a\0")):
        disk = SimDisk()
        disk.open(name, create=True).pwrite(data, 0)
        digests.add(disk.image().digest())
    assert len(digests) == 4
    sparse, dense = SimDisk(), SimDisk()
    sparse.open("f", create=True).truncate(8 * KIB)
    dense.open("f", create=True).pwrite(bytes(8 * KIB), 0)
    assert sparse.image().digest() == dense.image().digest()


# -- clock


def test_time_moves_only_when_told() -> None:
    clock = SimClock()
    start = clock.now_ns()
    clock.advance(1.5)
    clock.step_wall_clock(-10)
    assert clock.monotonic() == 1.5
    assert clock.now_ns() == start - 8_500_000_000
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


def test_uuids_follow_from_the_seed() -> None:
    one, two, other = SimClock(1), SimClock(1), SimClock(2)
    ids = [one.new_uuid() for _ in range(3)]
    assert ids == [two.new_uuid() for _ in range(3)]
    assert len({*ids, other.new_uuid()}) == 4
    assert all(len(i) == 16 for i in ids)
