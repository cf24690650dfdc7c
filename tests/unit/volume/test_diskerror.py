"""What the disk, or the kernel before it, answers to a change: which errors seal the store."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import KIB, SEGMENT_BYTES, StoreRig
from tests.unit.volume.rig import chunk
from volume.disk import PosixDisk
from volume.diskerror import SyncFailed, seals
from volume.errors import StoreSealed
from volume.lmdbroom import NO_SPACE_ERRNOS

REFUSED = [
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ENOLCK, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ETXTBSY),
]
FAILING = [
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ENODATA, errno.EREMOTEIO, errno.EROFS),
    *(errno.EUCLEAN, errno.EBADMSG, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.ENOENT, errno.EEXIST, errno.EBADF, errno.EINVAL),
]


def error_of(call: Callable[[], object]) -> OSError:
    try:
        call()
    except OSError as error:
        return error
    raise AssertionError("nothing was refused")


def opened() -> StoreRig:
    """With a write that is in the journal only."""
    rig = StoreRig()
    rig.store.create_volume("v", 64 * KIB, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    assert rig.write("v", 0, chunk(1)) == 0
    return rig


def test_only_what_passes_by_itself_seals_nothing() -> None:
    passing = {number for number in range(1, 200) if not seals(OSError(number, "told"))}
    assert passing == {*NO_SPACE_ERRNOS, *REFUSED}
    assert all(seals(OSError(number, "told")) for number in FAILING)
    assert seals(OSError("without a number"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failed_sync_seals_whatever_it_says(number: int) -> None:
    assert seals(SyncFailed(number, "told"))


def test_what_the_real_disk_cannot_sync_is_told_as_that(tmp_path: Path) -> None:
    disk = PosixDisk(tmp_path)
    file = disk.open("file", create=True)
    file.close()
    with pytest.raises(SyncFailed) as told:
        file.sync()
    assert told.value.errno == errno.EBADF


@pytest.mark.parametrize("number", REFUSED)
@pytest.mark.parametrize("op", ["open", "pwrite"])
def test_a_round_that_is_refused_a_pack_is_done_later(op: str, number: int) -> None:
    rig = opened()
    rig.disk.faults.add(Fault(op, Fail(number), "packs/*", count=2))
    for _ in range(2):
        assert error_of(rig.store.destage).errno == number
        rig.tend()
    assert rig.store.status().state == "ok"
    assert rig.write("v", 4096, chunk(2)) == 0
    for _ in range(2):  # the round that was refused, and one with the later write
        assert rig.store.destage()
        rig.tend()
    assert rig.store.status().hot_bytes == 0
    assert rig.rebooted().read("v", 0, 8192) == chunk(1) + chunk(2)


@pytest.mark.parametrize("number", FAILING)
@pytest.mark.parametrize("op", ["open", "pwrite"])
def test_a_disk_that_fails_a_pack_gets_no_more_of_them(op: str, number: int) -> None:
    rig = opened()
    rig.disk.faults.add(Fault(op, Fail(number), "packs/*"))
    assert seals(error_of(rig.store.destage))
    with pytest.raises(StoreSealed):
        rig.store.destage()


def test_a_refused_removal_of_a_pack_is_made_up_for() -> None:
    rig = opened()
    rig.settle()
    before = rig.disk.list("packs")
    for number in range(2, 20):  # what was there is written over, more than once
        rig.fill("v", 0, chunk(number, 16 * KIB))
        rig.store.destage()
        rig.tend()
    rig.disk.faults.add(Fault("unlink", Fail(errno.EACCES), f"packs/{before[0]}", count=None))
    with pytest.raises(PermissionError):
        rig.store.collect()
    assert rig.store.status().state == "ok"
    assert before[0] in rig.disk.list("packs")
    rig.disk.faults.clear()
    rig.store.collect()
    assert before[0] not in rig.disk.list("packs")
    assert rig.rebooted().read("v", 0, 16 * KIB) == chunk(19, 16 * KIB)


def test_the_rest_of_upkeep_goes_on_when_a_segment_is_refused() -> None:
    rig = opened()
    rig.disk.faults.add(Fault("open", Fail(errno.EMFILE), "journal/*", count=None))
    while rig.store._journal.cut()[1] < 2:
        assert rig.write("v", 0, chunk(3, SEGMENT_BYTES // 4)) == 0
    rig.store.snapshots.create("s", ["v"])
    assert error_of(rig.store.tend).errno == errno.EMFILE
    assert rig.store.status().state == "ok"
    assert "v@s" in rig.store.version_names("v", 10)
    assert "v@s" in rig.killed().store.version_names("v", 10)
    rig.disk.faults.clear()
    rig.tend()
    assert rig.store._journal.state()[3] > 1


@pytest.mark.parametrize("number", FAILING)
def test_a_journal_that_cannot_be_written_seals_the_store(number: int) -> None:
    rig = opened()
    rig.disk.faults.add(Fault("pwrite", Fail(number), "journal/*"))
    assert rig.write("v", 0, b"x" * 512) == number
    assert rig.write("v", 0, b"x" * 512) == errno.EIO
    rig.tend()
    assert rig.store.status().state == "sealed"
    assert rig.read("v", 0, 4096) == chunk(1)


@pytest.mark.parametrize("number", REFUSED)
def test_a_write_that_is_refused_fails_alone(number: int) -> None:
    rig = opened()
    rig.disk.faults.add(Fault("pwrite", Fail(number), "journal/*"))
    assert rig.write("v", 0, b"x" * 512) == number
    rig.tend()
    assert rig.store.status().state == "ok"
    assert rig.write("v", 512, b"y" * 512) == 0
    assert rig.rebooted().read("v", 0, 1024) == chunk(1)[:512] + b"y" * 512


def test_a_pack_whose_sync_finds_no_space_seals() -> None:
    """Said by a write it passes; said by a sync it may have taken along what was written before."""
    rig = opened()
    rig.disk.faults.add(Fault("sync", Fail(errno.ENOSPC), "packs/*"))
    assert seals(error_of(rig.store.destage))
    with pytest.raises(StoreSealed):
        rig.store.destage()
