"""VERIFY and WRITE AND VERIFY: what is compared, and where a difference is told to be."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import disk
from blockd.scsi.sense import Sense
from blockd.scsi.verify import first_difference
from native import FLAG_FUA, OP_READ, OP_WRITE
from tests import scsi_cdbs as cdbs
from tests.scsi_rig import BLOCK, BLOCKS, Rig, codes

MISCOMPARED = (0x0E, 0x1D, 0)
INVALID_FIELD = (5, 0x24, 0)
LBA_OUT_OF_RANGE = (5, 0x21, 0)
MIB = 1 << 20


def written(rig: Rig, lba: int, count: int) -> bytearray:
    data = bytearray((lba + at // 5) % 253 for at in range(count * BLOCK))
    rig.good(cdbs.write(lba, count, size=16), bytes(data))
    return data


@pytest.mark.parametrize("size", cdbs.LONG)
def test_equal_bytes_verify(size: int) -> None:
    rig = Rig()
    data = written(rig, 7, 4)
    rig.good(cdbs.verify(7, 4, size=size, check=1), bytes(data))


@pytest.mark.parametrize("size", cdbs.LONG)
@pytest.mark.parametrize("at", [0, 1, BLOCK - 1, BLOCK, 4 * BLOCK - 1])
def test_the_first_byte_that_differs_is_told(size: int, at: int) -> None:
    rig = Rig()
    data = written(rig, 7, 4)
    data[at] ^= 0x40
    data[-1] ^= 0x80 if at != len(data) - 1 else 0
    refused = rig.fault(cdbs.verify(7, 4, size=size, check=1), bytes(data))
    assert codes(refused) == MISCOMPARED
    assert refused.information == at


def test_a_difference_behind_the_first_piece_is_told_from_the_start_of_the_data() -> None:
    count = 2 * MIB // BLOCK
    rig = Rig(blocks=2 * count)
    data = written(rig, 0, count)
    data[MIB + 17] ^= 1
    refused = rig.fault(cdbs.verify(0, count, size=16, check=1), bytes(data))
    assert refused.information == MIB + 17
    assert max(seen.length for seen in rig.device.seen if seen.op == OP_READ) <= MIB


@pytest.mark.parametrize("size", cdbs.LONG)
def test_without_comparison_the_medium_is_read_and_no_data_asked_for(size: int) -> None:
    rig = Rig()
    written(rig, 0, 2)
    rig.good(cdbs.verify(0, 2, size=size, check=0))
    assert [seen.op for seen in rig.device.seen] == [OP_WRITE, OP_READ]
    rig.device.fail_next(errno.EIO)
    assert codes(rig.fault(cdbs.verify(0, 2, size=size, check=0))) == (3, 0x11, 0)


@pytest.mark.parametrize("size", cdbs.LONG)
def test_one_block_is_compared_with_each(size: int) -> None:
    rig = Rig()
    block = bytes(at % 256 for at in range(BLOCK))
    rig.good(cdbs.write(3, 4), block * 4)
    rig.good(cdbs.verify(3, 4, size=size, check=3), block)
    rig.good(cdbs.write(5, 1), block[:9] + b"x" + block[10:])
    refused = rig.fault(cdbs.verify(3, 4, size=size, check=3), block)
    assert codes(refused) == MISCOMPARED
    assert refused.information == 9


def test_one_block_of_another_length_is_refused() -> None:
    rig = Rig()
    assert codes(rig.fault(cdbs.verify(0, 4, check=3), bytes(4 * BLOCK))) == INVALID_FIELD


@pytest.mark.parametrize("size", cdbs.LONG)
def test_a_reserved_kind_of_check_and_protection_are_refused(size: int) -> None:
    rig = Rig()
    for cdb in (
        cdbs.verify(0, 1, size=size, check=2),
        cdbs.verify(0, 1, size=size, check=1, flags=0x20),
        cdbs.write_and_verify(0, 1, size=size, check=2),
        cdbs.write_and_verify(0, 1, size=size, check=3),
        cdbs.write_and_verify(0, 1, size=size, flags=0x20),
    ):
        refused = rig.fault(cdb, bytes(BLOCK))
        assert codes(refused) == INVALID_FIELD
        assert refused.field == 1
    assert rig.device.seen == []


@pytest.mark.parametrize("size", cdbs.LONG)
def test_ranges_behind_the_end_are_refused_and_empty_ones_are_good(size: int) -> None:
    rig = Rig()
    for make in (cdbs.verify, cdbs.write_and_verify):
        for lba, count in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0)):
            refused = rig.fault(make(lba, count, size=size), bytes(count * BLOCK))
            assert codes(refused) == LBA_OUT_OF_RANGE
        rig.good(make(BLOCKS, 0, size=size))
    assert rig.device.seen == []


def test_a_whole_volume_verifies_in_pieces() -> None:
    rig = Rig(blocks=4 * disk.MAX_TRANSFER_BYTES // BLOCK)
    rig.good(cdbs.verify(0, 4 * disk.MAX_TRANSFER_BYTES // BLOCK, size=16, check=3), bytes(BLOCK))
    assert {seen.length for seen in rig.device.seen} == {disk.PIECE_BYTES}


def test_more_data_than_fits_in_memory_is_refused() -> None:
    rig = Rig(blocks=1 << 20)
    count = disk.MAX_TRANSFER_BYTES // BLOCK + 1
    for make in (cdbs.verify, cdbs.write_and_verify):
        refused = rig.fault(make(0, count, size=12, check=1))
        assert codes(refused) == INVALID_FIELD
        assert refused.field == 6


@pytest.mark.parametrize("size", cdbs.LONG)
def test_write_and_verify_is_durable_and_read_back(size: int) -> None:
    rig = Rig()
    for check in (0, 1):
        rig.device.seen.clear()
        data = bytes((check + at) % 256 for at in range(2 * BLOCK))
        rig.good(cdbs.write_and_verify(9, 2, size=size, check=check), data)
        assert rig.device.read(9 * BLOCK, 2 * BLOCK) == data
        assert [(seen.op, seen.flags) for seen in rig.device.seen] == [
            (OP_WRITE, FLAG_FUA),
            (OP_READ, 0),
        ]


def test_write_and_verify_tells_what_the_medium_did_not_take() -> None:
    rig = Rig(deferred=True)
    running = rig.start(cdbs.write_and_verify(9, 2), b"a" * 2 * BLOCK)
    rig.device.finish()
    read = rig.device.waiting
    rig.device.write(10 * BLOCK, b"b")  # too late for the read that is on its way
    rig.device.finish()
    assert read == 1
    assert running.result is not None
    assert running.result.sense is None

    running = rig.start(cdbs.write_and_verify(9, 2), b"a" * 2 * BLOCK)
    rig.device.write(10 * BLOCK, b"b")
    rig.device.finish()
    rig.device.finish()
    assert running.result is not None
    assert running.result.sense == Sense(0x0E, 0x1D, 0, information=BLOCK)


def test_less_data_than_announced_is_compared_as_far_as_it_goes() -> None:
    rig = Rig()
    data = written(rig, 0, 4)
    rig.good(cdbs.verify(0, 4, check=1), bytes(data[: 2 * BLOCK + 5]))
    rig.good(cdbs.write_and_verify(0, 4), b"")


def test_only_writing_needs_a_writable_unit() -> None:
    rig = Rig(read_only=True)
    rig.good(cdbs.verify(0, 1, check=1), bytes(BLOCK))
    for size in cdbs.LONG:
        refused = rig.fault(cdbs.write_and_verify(0, 1, size=size), bytes(BLOCK))
        assert codes(refused) == (7, 0x27, 0)
    assert [seen.op for seen in rig.device.seen] == [OP_READ]


@given(st.binary(min_size=1, max_size=300), st.data())
def test_first_difference_is_the_smallest(left: bytes, data: st.DataObject) -> None:
    right = bytearray(left)
    for at in data.draw(st.lists(st.integers(0, len(left) - 1), max_size=4)):
        right[at] = data.draw(st.integers(0, 255))
    slow = next((at for at in range(len(left)) if left[at] != right[at]), None)
    assert first_difference(left, bytes(right)) == slow
