"""What an open store does when its disk refuses, lies in wait or rots."""

import dataclasses
import errno
import logging
from dataclasses import replace

import pytest

from native import OP_FLUSH, OP_READ, OP_UNMAP, OP_WRITE, Request
from tests.sim.faults import Fail, Fault, ShortWrite
from tests.sim.simdisk import SimDisk
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig
from volume.errors import OutOfSpace, StoreSealed
from volume.meta import Meta

JOURNAL = "journal/*"
PACKS = "packs/*"


def opened(disk: SimDisk | None = None, size: int = 64 * KIB) -> StoreRig:
    rig = StoreRig(disk=disk)
    rig.store.create_volume("v", size, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    return rig


# -- a failed sync


@pytest.fixture
def sealed() -> StoreRig:
    """A store whose flush has just failed; "old" is durable, "new" was only acked."""
    rig = opened()
    rig.write("v", 0, b"o" * 512, fua=True)
    rig.write("v", 512, b"n" * 512)
    rig.disk.faults.add(Fault("sync", Fail(), path=JOURNAL))
    assert rig.flush("v") == errno.EIO
    return rig


def test_failed_sync_fails_the_flush_and_all_that_follows(sealed: StoreRig) -> None:
    assert sealed.write("v", 0, b"x" * 512) == errno.EIO
    assert sealed.zero("v", 0, 512, unmap=True) == errno.EIO
    assert sealed.flush("v") == errno.EIO
    assert sealed.store.status().state == "sealed"
    assert "Input/output error" in (sealed.store.status().reason or "")


def test_failed_sync_is_never_retried(sealed: StoreRig) -> None:
    ops = sealed.disk.op_count
    sealed.flush("v")
    sealed.write("v", 0, b"x" * 512, fua=True)
    with pytest.raises(StoreSealed):
        sealed.store.destage()
    with pytest.raises(StoreSealed):
        sealed.store.create_volume("w", 4 * KIB)
    sealed.store.close()
    assert sealed.disk.op_count == ops


def test_sealed_store_still_reads(sealed: StoreRig) -> None:
    assert sealed.read("v", 0, 1024) == b"o" * 512 + b"n" * 512


def test_sealed_store_opens_again_only_after_unseal(sealed: StoreRig) -> None:
    sealed.store.close()
    with pytest.raises(StoreSealed, match="doctor --unseal"):
        sealed.killed()
    Meta(sealed.meta, sealed.clock).unseal()
    again = sealed.rebooted()
    assert again.read("v", 0, 512) == b"o" * 512
    assert again.write("v", 0, b"x" * 512, fua=True) == 0


def test_failed_sync_of_a_shrink_seals() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 4096)
    rig.disk.faults.add(Fault("sync", Fail(), path=JOURNAL))
    with pytest.raises(StoreSealed):
        rig.store.resize_volume("v", 4096, force=True)
    assert rig.store.status().state == "sealed"
    assert rig.store.info("v").size == 64 * KIB


def test_failed_sync_at_the_opening_refuses_to_open() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 512)
    disk = SimDisk(rig.disk.image())
    disk.faults.add(Fault("sync", Fail(), path=JOURNAL))
    with pytest.raises(StoreSealed):
        StoreRig(meta=rig.meta.snapshot(), disk=disk)


def test_failed_append_seals_and_says_so() -> None:
    rig = opened()
    rig.disk.faults.add(Fault("pwrite", Fail(), path=JOURNAL))
    assert rig.write("v", 0, b"x" * 512) == errno.EIO
    rig.tend()
    assert rig.store.status().state == "sealed"
    with pytest.raises(StoreSealed):
        rig.killed()


# -- no space


def test_full_disk_fails_writes_whole_and_nothing_else() -> None:
    rig = opened()
    rig.write("v", 0, b"o" * 8192, fua=True)
    rig.disk.capacity = 0
    rig.tend()
    assert rig.store.status().state == "full"
    assert rig.write("v", 0, b"n" * 512) == errno.ENOSPC
    assert rig.read("v", 0, 8192) == b"o" * 8192
    assert rig.flush("v") == 0
    assert rig.zero("v", 4096, 4096, unmap=True) == 0
    assert rig.zero("v", 0, 512) == 0
    expected = bytes(512) + b"o" * 3584 + bytes(4096)
    assert rig.read("v", 0, 8192) == rig.killed().read("v", 0, 8192) == expected
    rig.disk.capacity = 1 << 30
    rig.tend()
    assert rig.store.status().state == "ok"
    assert rig.write("v", 0, b"n" * 512) == 0


@pytest.mark.parametrize(("percent", "short"), [(0, False), (100, True)])
def test_how_much_of_the_disk_is_short_is_a_setting(percent: int, short: bool) -> None:
    options = dataclasses.replace(SMALL, short_percent=percent)
    status = StoreRig(options=options).store.status()
    assert status.space_short_bytes == status.disk_total_bytes * percent // 100
    assert (status.space_left_bytes < status.space_short_bytes) is short


def test_write_of_many_records_that_does_not_fit_leaves_nothing() -> None:
    rig = opened()
    rig.disk.capacity = rig.disk.capacity - rig.disk.free_bytes() + 8 * KIB
    rig.tend()
    assert rig.store.status().space_left_bytes == 8 * KIB
    assert rig.write("v", 0, b"n" * 12 * KIB) == errno.ENOSPC
    assert rig.read("v", 0, 12 * KIB) == bytes(12 * KIB)
    assert rig.killed().read("v") == bytes(64 * KIB)
    assert rig.write("v", 0, b"n" * 8 * KIB) == 0


def test_short_write_for_lack_of_space_leaves_nothing_torn() -> None:
    rig = opened()
    rig.write("v", 0, b"o" * 4096)
    rig.disk.faults.add(Fault("pwrite", ShortWrite(1000, errno.ENOSPC), path=JOURNAL))
    assert rig.write("v", 0, b"t" * 4096) == errno.ENOSPC
    assert rig.read("v", 0, 4096) == b"o" * 4096
    assert rig.killed().read("v", 0, 4096) == b"o" * 4096
    assert rig.write("v", 512, b"n" * 512, fua=True) == 0
    expected = b"o" * 512 + b"n" * 512 + b"o" * 3072
    for again in (rig, rig.killed(), rig.rebooted()):
        assert again.read("v", 0, 4096) == expected


def test_no_space_for_a_segment_leaves_the_journal_as_it_is() -> None:
    rig = StoreRig()
    rig.store.create_volume("v", 64 * KIB)
    rig.disk.faults.add(Fault("pwrite", ShortWrite(512, errno.ENOSPC), path=JOURNAL))
    before = rig.disk.list("journal")
    rig.store.tend()
    assert rig.disk.list("journal") == before
    rig.tend()
    assert len(rig.disk.list("journal")) > len(before)


@pytest.mark.parametrize("operation", ["pwrite", "open"])
def test_no_space_for_packs_delays_destaging_only(operation: str) -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 4096, fua=True)
    rig.disk.faults.add(Fault(operation, Fail(errno.ENOSPC), path=PACKS, count=None))
    with pytest.raises(OutOfSpace):
        rig.store.destage()
    assert rig.store.status().state == "full"
    assert rig.write("v", 4096, b"y" * 512) == errno.ENOSPC
    assert rig.zero("v", 8192, 512, unmap=True) == 0
    assert rig.read("v", 0, 4096) == b"x" * 4096
    assert rig.rebooted().read("v", 0, 4096) == b"x" * 4096
    rig.disk.faults.clear()
    rig.settle()
    assert rig.store.status().hot_bytes == 0
    assert rig.write("v", 4096, b"y" * 512) == 0


# -- rot


def test_damaged_journal_record_is_an_error_and_never_zeros(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = opened()
    rig.write("v", 8192, b"x" * 8192)
    rig.disk.flip_bit("journal/00000000.seg", 4096 + 64 + 64 + 5000)
    with caplog.at_level(logging.ERROR):
        read = rig.run("v", Request(OP_READ, 8192, 8192))
    assert (read.error, read.data) == (errno.EIO, None)
    assert "volume=v offset=8192" in caplog.text
    assert "journal/00000000.seg" in caplog.text
    assert rig.read("v", 8192, 4096) == b"x" * 4096  # the undamaged page
    assert rig.write("v", 12288, b"y" * 4096) == 0
    assert rig.read("v", 8192, 8192) == b"x" * 4096 + b"y" * 4096


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_damaged_chunk_is_an_error_and_names_it(
    compression: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = StoreRig(options=replace(SMALL, compression=compression))
    rig.store.create_volume("v", 64 * KIB, block_size=512, chunk_size=8 * KIB)
    rig.tend()
    rig.write("v", 0, b"\xa5" * 4096 + b"x" * 4096)
    rig.store.destage()
    rig.disk.flip_bit("packs/00000000.pack", 64 + 64 + 8 + 4)  # a stored byte, behind the table
    with caplog.at_level(logging.ERROR):
        assert rig.read_error("v", 0, 512) == errno.EIO
    assert "volume=v offset=0" in caplog.text
    assert "packs/00000000.pack" in caplog.text or "pack 00000000" in caplog.text


def test_unreadable_pack_sector_is_an_error_of_its_chunk_only() -> None:
    rig = StoreRig(options=replace(SMALL, compression="none"))
    rig.store.create_volume("v", 64 * KIB, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    rig.write("v", 0, b"x" * 4096)
    rig.write("v", 4096, b"y" * 4096)
    rig.store.destage()
    rig.disk.break_sector("packs/00000000.pack", 1024)
    assert rig.read_error("v", 0, 4096) == errno.EIO
    assert rig.read("v", 4096, 4096) == b"y" * 4096
    assert rig.write("v", 0, b"z" * 4096) == 0  # written whole: nothing old is needed
    rig.store.destage()
    assert rig.read("v", 0, 8192) == b"z" * 4096 + b"y" * 4096


# -- volumes


def test_flush_of_one_volume_covers_another() -> None:
    rig = opened()
    rig.store.create_volume("w", 64 * KIB, block_size=512)
    rig.write("v", 0, b"v" * 512)
    rig.write("w", 0, b"w" * 512)
    assert rig.flush("w") == 0
    again = rig.rebooted()
    assert again.read("v", 0, 512) + again.read("w", 0, 512) == b"v" * 512 + b"w" * 512


def test_deleted_volume_refuses_its_clients() -> None:
    rig = opened()
    volume = rig.volume("v")
    rig.write("v", 0, b"v" * 512)
    rig.store.delete_volume("v")
    done: list[Request] = []
    batch = [Request(OP_READ, 0, 512), Request(OP_WRITE, 0, 512, b"x" * 512), Request(OP_FLUSH)]
    volume.submit([*batch, Request(OP_UNMAP, 0, 512)], done.extend)
    assert [request.error for request in done] == [errno.ESHUTDOWN] * 4
    assert rig.store.names() == []


def test_closing_twice_is_closing_once() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 512)
    rig.store.close()
    rig.store.close()
    assert rig.killed().read("v", 0, 512) == b"x" * 512


def test_journal_segment_size_stays_what_it_was_when_the_store_was_made() -> None:
    rig = opened()
    rig.write("v", 0, b"x" * 512)
    rig.store.close()
    again = rig.killed(replace(SMALL, segment_bytes=2 * SEGMENT_BYTES))
    assert again.read("v", 0, 512) == b"x" * 512
    again.tend()
    assert {again.disk.open(f"journal/{n}").size() for n in again.disk.list("journal")} == {
        SEGMENT_BYTES
    }
