"""READ, WRITE, SYNCHRONIZE CACHE and PRE-FETCH: bytes, ranges, flags, errors (SBC-3 5)."""

import errno

import pytest

from blockd.scsi import disk
from blockd.scsi.sense import Sense
from blockd.scsi.task import GOOD, Result, Single
from native import FLAG_FUA, OP_CACHE, OP_FLUSH, OP_READ, OP_WRITE, Request
from tests import scsi_cdbs as cdbs
from tests.fakes import Seen
from tests.scsi_rig import BLOCK, BLOCKS, Rig, codes

LBA_OUT_OF_RANGE = (5, 0x21, 0)
INVALID_FIELD = (5, 0x24, 0)
DPO, FUA = 0x10, 0x08


def some(count: int, seed: int = 1) -> bytes:
    return bytes((seed + at // 7) % 251 for at in range(count * BLOCK))


@pytest.mark.parametrize("size", cdbs.READS)
def test_a_write_is_read_back_and_touches_nothing_else(size: int) -> None:
    rig = Rig()
    data = some(3)
    rig.good(cdbs.write(5, 3, size=size), data)
    assert rig.good(cdbs.read(5, 3, size=size)) == data
    assert rig.device.read(4 * BLOCK, BLOCK) == bytes(BLOCK)
    assert rig.device.read(8 * BLOCK, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("size", cdbs.READS)
def test_the_last_block_is_in_and_the_next_is_out(size: int) -> None:
    rig = Rig()
    data = some(1)
    rig.good(cdbs.write(BLOCKS - 1, 1, size=size), data)
    assert rig.good(cdbs.read(BLOCKS - 1, 1, size=size)) == data
    for lba, count in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 1)):
        assert codes(rig.fault(cdbs.read(lba, count, size=size))) == LBA_OUT_OF_RANGE
        assert codes(rig.fault(cdbs.write(lba, count, size=size), some(count))) == LBA_OUT_OF_RANGE
    assert len(rig.device.seen) == 2


@pytest.mark.parametrize("lba", [1 << 63, (1 << 64) - 1])
def test_an_lba_that_wraps_is_out_of_range(lba: int) -> None:
    rig = Rig()
    assert codes(rig.fault(cdbs.read(lba, 1, size=16))) == LBA_OUT_OF_RANGE
    assert codes(rig.fault(cdbs.write(lba, 1, size=16), some(1))) == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("size", cdbs.LONG)
def test_no_blocks_are_good_within_the_volume_and_out_of_range_behind_it(size: int) -> None:
    rig = Rig()
    for make in (cdbs.read, cdbs.write):
        assert rig.good(make(0, 0, size=size)) == b""
        assert rig.good(make(BLOCKS, 0, size=size)) == b""
        assert codes(rig.fault(make(BLOCKS + 1, 0, size=size))) == LBA_OUT_OF_RANGE
    assert rig.device.seen == []


def test_a_length_of_zero_in_six_bytes_is_256_blocks() -> None:
    rig = Rig()
    data = some(256)
    rig.good(cdbs.write(0x0100, 256, size=6), data)
    assert rig.good(cdbs.read(0x0100, 256, size=6)) == data
    assert codes(rig.fault(cdbs.read(BLOCKS - 255, 256, size=6))) == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("size", cdbs.LONG)
def test_protection_information_is_refused_with_a_pointer_at_it(size: int) -> None:
    rig = Rig()
    for protect in range(1, 8):
        for make in (cdbs.read, cdbs.write):
            refused = rig.fault(make(0, 1, size=size, flags=protect << 5), some(1))
            assert codes(refused) == INVALID_FIELD
            assert refused.field == 1
    assert rig.device.seen == []


@pytest.mark.parametrize("size", cdbs.LONG)
def test_fua_makes_a_write_durable_and_dpo_changes_nothing(size: int) -> None:
    rig = Rig()
    rig.good(cdbs.write(0, 1, size=size, flags=DPO | FUA), some(1))
    rig.good(cdbs.write(0, 1, size=size, flags=DPO), some(1))
    assert [seen.flags for seen in rig.device.seen] == [FLAG_FUA, 0]


def test_a_read_with_fua_is_followed_by_a_flush() -> None:
    rig = Rig()
    rig.good(cdbs.write(2, 1), some(1))
    assert rig.good(cdbs.read(2, 1, flags=FUA | DPO)) == some(1)
    assert [seen.op for seen in rig.device.seen] == [OP_WRITE, OP_READ, OP_FLUSH]


def test_a_read_with_fua_fails_when_the_medium_does_not_take_it() -> None:
    rig = Rig(deferred=True)
    running = rig.start(cdbs.read(2, 1, flags=FUA))
    rig.device.fail_next(errno.EIO)
    rig.device.finish()
    rig.device.finish()
    assert running.result is not None
    assert running.result.sense is not None
    assert codes(running.result.sense) == (3, 0x0C, 0)


def test_more_than_fits_in_memory_is_refused() -> None:
    rig = Rig(blocks=1 << 20)
    count = disk.MAX_TRANSFER_BYTES // BLOCK
    assert rig.good(cdbs.read(0, count, size=16)) == bytes(disk.MAX_TRANSFER_BYTES)
    for cdb, field in (
        (cdbs.read(0, count + 1, size=16), 10),
        (cdbs.write(0, count + 1, size=16), 10),
        (cdbs.read(0, count + 1, size=12), 6),
    ):
        refused = rig.fault(cdb)
        assert codes(refused) == INVALID_FIELD
        assert refused.field == field


def test_reads_and_writes_are_one_request_that_a_transport_may_batch() -> None:
    rig = Rig()
    read = rig.unit.prepare(rig.nexus, cdbs.read(8, 4))
    written = rig.unit.prepare(rig.nexus, cdbs.write(8, 4))
    assert isinstance(read, Single)
    assert isinstance(written, Single)
    assert (read.data_out_length, written.data_out_length) == (0, 4 * BLOCK)
    assert (read.request.op, read.request.offset, read.request.length) == (OP_READ, 8 * BLOCK, 2048)
    assert written.request.data is None


def test_less_data_than_announced_writes_the_whole_blocks_of_it() -> None:
    rig = Rig()
    rig.good(cdbs.write(0, 4), some(2) + b"part of a block")
    assert rig.device.read(0, 3 * BLOCK) == some(2) + bytes(BLOCK)


def test_a_read_only_unit_reads_and_refuses_to_write() -> None:
    rig = Rig(read_only=True)
    assert rig.good(cdbs.read(0, 1)) == bytes(BLOCK)
    rig.good(cdbs.synchronize())
    for size in cdbs.READS:
        assert codes(rig.fault(cdbs.write(0, 1, size=size), some(1))) == (7, 0x27, 0)
    assert [seen.op for seen in rig.device.seen] == [OP_READ, OP_FLUSH]


@pytest.mark.parametrize("size", [10, 16])
def test_synchronize_cache_flushes_everything(size: int) -> None:
    rig = Rig()
    for flags in (0, 0x02, 0x04):
        rig.good(cdbs.synchronize(7, 3, size=size, flags=flags))
    assert rig.device.seen == [Seen(OP_FLUSH, 0, 0, 0)] * 3
    rig.good(cdbs.synchronize(BLOCKS, 0, size=size))
    assert codes(rig.fault(cdbs.synchronize(BLOCKS, 1, size=size))) == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("size", [10, 16])
def test_pre_fetch_is_told_to_the_device_and_promises_nothing(size: int) -> None:
    rig = Rig()
    assert rig.run(cdbs.pre_fetch(3, 4, size=size)) == Result(GOOD)
    assert rig.run(cdbs.pre_fetch(3, 4, size=size, flags=0x02)) == Result(GOOD)
    assert rig.device.seen == [Seen(OP_CACHE, 3 * BLOCK, 4 * BLOCK, 0)] * 2
    assert codes(rig.fault(cdbs.pre_fetch(BLOCKS, 1, size=size))) == LBA_OUT_OF_RANGE


def test_pre_fetch_of_no_blocks_means_all_that_follow() -> None:
    rig = Rig()
    rig.good(cdbs.pre_fetch(BLOCKS - 3, 0))
    assert rig.device.seen == [Seen(OP_CACHE, (BLOCKS - 3) * BLOCK, 3 * BLOCK, 0)]


@pytest.mark.parametrize(
    ("error", "op", "expected"),
    [
        (errno.ENOSPC, OP_WRITE, (7, 0x27, 7)),
        (errno.EIO, OP_READ, (3, 0x11, 0)),
        (errno.EIO, OP_WRITE, (3, 0x0C, 0)),
        (errno.EIO, OP_FLUSH, (3, 0x0C, 0)),
        (errno.ESHUTDOWN, OP_READ, (2, 0x04, 3)),
        (errno.EPERM, OP_WRITE, (7, 0x27, 0)),
        (errno.EINVAL, OP_READ, (5, 0x21, 0)),
        (errno.ENOMEM, OP_READ, (4, 0x44, 0)),
    ],
)
def test_an_errno_becomes_sense_data(error: int, op: int, expected: tuple[int, int, int]) -> None:
    request = Request(op)
    request.error = error
    assert codes(disk.failure(request)) == expected


def test_a_failed_request_ends_with_its_sense() -> None:
    rig = Rig()
    rig.device.fail_next(errno.EIO)
    assert codes(rig.fault(cdbs.read(0, 1))) == (3, 0x11, 0)
    rig.device.fail_next(errno.ENOSPC)
    assert codes(rig.fault(cdbs.write(0, 1), some(1))) == (7, 0x27, 7)
    rig.device.fail_next(errno.EIO)
    assert rig.fault(cdbs.synchronize()) == Sense(3, 0x0C, 0)


def test_a_volume_that_grew_is_usable_to_its_new_end() -> None:
    rig = Rig()
    rig.device.size += BLOCK
    rig.unit.next_attention(rig.nexus)
    rig.good(cdbs.write(BLOCKS, 1), some(1))
    assert rig.good(cdbs.read(BLOCKS, 1)) == some(1)
