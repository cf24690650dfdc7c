"""COMPARE AND WRITE, ORWRITE and WRITE ATOMIC, also against writes that come in between."""

import errno

import pytest

from blockd.scsi import atomic, disk
from blockd.scsi.task import BUSY, GOOD, Single
from native import FLAG_FUA, FLAG_IF_SEQ, OP_READ, OP_WRITE
from tests import scsi_cdbs as cdbs
from tests.scsi_rig import BLOCK, BLOCKS, Rig, Running, codes

MISCOMPARED = (0x0E, 0x1D, 0)
INVALID_FIELD = (5, 0x24, 0)
LBA_OUT_OF_RANGE = (5, 0x21, 0)
FUA = 0x08


def ended(running: Running) -> int:
    assert running.result is not None
    return running.result.status


# -- COMPARE AND WRITE


@pytest.mark.parametrize("count", [1, 2, 255])
def test_what_is_as_expected_is_replaced(count: int) -> None:
    rig = Rig()
    rig.device.write(5 * BLOCK, b"A" * count * BLOCK)
    rig.good(cdbs.compare_and_write(5, count), b"A" * count * BLOCK + b"B" * count * BLOCK)
    assert rig.device.read(4 * BLOCK, (count + 2) * BLOCK) == (
        bytes(BLOCK) + b"B" * count * BLOCK + bytes(BLOCK)
    )


@pytest.mark.parametrize("at", [0, 1, 300, BLOCK, 3 * BLOCK - 1])
def test_what_is_not_as_expected_stays_and_the_first_difference_is_told(at: int) -> None:
    rig = Rig()
    stored = bytearray(b"A" * 3 * BLOCK)
    stored[at] = ord("x")
    rig.device.write(0, bytes(stored))
    refused = rig.fault(cdbs.compare_and_write(0, 3), b"A" * 3 * BLOCK + b"B" * 3 * BLOCK)
    assert codes(refused) == MISCOMPARED
    assert refused.information == at
    assert rig.device.read(0, 3 * BLOCK) == stored


def test_a_data_out_of_another_length_is_refused() -> None:
    rig = Rig()
    for length in (0, BLOCK, 2 * BLOCK, 6 * BLOCK):
        refused = rig.fault(cdbs.compare_and_write(0, 2), bytes(length))
        assert codes(refused) == INVALID_FIELD
    assert rig.device.seen == []


def test_a_write_in_between_makes_it_look_again() -> None:
    """What the other one wrote is elsewhere: the comparison still holds."""
    rig = Rig(deferred=True)
    running = rig.start(cdbs.compare_and_write(0, 1), bytes(BLOCK) + b"B" * BLOCK)
    rig.device.write(100 * BLOCK, b"other")
    rig.device.finish()  # the read, and with it the write is refused
    rig.device.finish()
    rig.device.finish()
    rig.device.finish()
    assert ended(running) == GOOD
    assert [seen.op for seen in rig.device.seen] == [OP_READ, OP_WRITE, OP_READ, OP_WRITE]
    assert rig.device.read(0, BLOCK) == b"B" * BLOCK


def test_of_two_that_expect_the_same_one_wins() -> None:
    rig = Rig(deferred=True)
    first = rig.start(cdbs.compare_and_write(0, 1), bytes(BLOCK) + b"1" * BLOCK)
    second = rig.start(cdbs.compare_and_write(0, 1), bytes(BLOCK) + b"2" * BLOCK)
    while rig.device.waiting:
        rig.device.finish()
    results = [first.result, second.result]
    statuses = [result.status for result in results if result is not None]
    assert sorted(statuses) == [0x00, 0x02]
    winner = b"1" if statuses[0] == GOOD else b"2"
    assert rig.device.read(0, BLOCK) == winner * BLOCK


def test_a_volume_that_is_written_all_the_time_is_busy() -> None:
    rig = Rig(deferred=True)
    running = rig.start(cdbs.compare_and_write(0, 1), bytes(BLOCK) + b"B" * BLOCK)
    while rig.device.waiting:
        rig.device.write(100 * BLOCK, b"other")
        rig.device.finish()
    assert ended(running) == BUSY
    assert len(rig.device.seen) == 2 * atomic.MAX_ATTEMPTS
    assert rig.device.read(0, BLOCK) == bytes(BLOCK)


def test_the_write_is_conditional_and_durable_when_fua_asks_for_it() -> None:
    rig = Rig()
    rig.good(cdbs.compare_and_write(0, 1), bytes(2 * BLOCK))
    rig.good(cdbs.compare_and_write(0, 1, flags=FUA), bytes(2 * BLOCK))
    flags = [seen.flags for seen in rig.device.seen if seen.op == OP_WRITE]
    assert flags == [FLAG_IF_SEQ, FLAG_IF_SEQ | FLAG_FUA]


def test_compare_and_write_of_nothing_or_behind_the_end() -> None:
    rig = Rig()
    rig.good(cdbs.compare_and_write(BLOCKS, 0))
    for lba, count in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0), (1 << 63, 1)):
        refused = rig.fault(cdbs.compare_and_write(lba, count), bytes(2 * count * BLOCK))
        assert codes(refused) == LBA_OUT_OF_RANGE
    assert codes(rig.fault(cdbs.compare_and_write(0, 1, flags=0x20))) == INVALID_FIELD
    assert rig.device.seen == []


def test_the_longest_one_fits_a_conditional_write_of_blocks_of_4096_bytes() -> None:
    rig = Rig(blocks=512, block_size=4096)
    count = atomic.MAX_COMPARE_AND_WRITE_BLOCKS
    rig.good(cdbs.compare_and_write(1, count), bytes(count * 4096) + b"B" * count * 4096)
    assert max(seen.length for seen in rig.device.seen) <= disk.CONDITIONAL_BYTES
    assert rig.device.read(4096, count * 4096) == b"B" * count * 4096


@pytest.mark.parametrize(("error", "expected"), [(errno.EIO, (3, 0x11, 0))])
def test_a_read_that_fails_ends_it(error: int, expected: tuple[int, int, int]) -> None:
    rig = Rig()
    rig.device.fail_next(error)
    assert codes(rig.fault(cdbs.compare_and_write(0, 1), bytes(2 * BLOCK))) == expected
    assert len(rig.device.seen) == 1


def test_a_write_that_fails_ends_it() -> None:
    rig = Rig(deferred=True)
    running = rig.start(cdbs.compare_and_write(0, 1), bytes(2 * BLOCK))
    rig.device.fail_next(errno.ENOSPC)
    rig.device.finish()
    rig.device.finish()
    assert running.result is not None
    assert running.result.sense is not None
    assert codes(running.result.sense) == (7, 0x27, 7)


# -- ORWRITE


def test_orwrite_sets_bits_and_keeps_others() -> None:
    rig = Rig()
    rig.device.write(2 * BLOCK, bytes((at * 3) % 256 for at in range(2 * BLOCK)))
    data = bytes((at * 5) % 256 for at in range(2 * BLOCK))
    rig.good(cdbs.orwrite(2, 2), data)
    assert rig.device.read(BLOCK, 4 * BLOCK) == (
        bytes(BLOCK)
        + bytes((at * 3) % 256 | (at * 5) % 256 for at in range(2 * BLOCK))
        + bytes(BLOCK)
    )


def test_bits_that_another_one_set_meanwhile_are_kept() -> None:
    rig = Rig(deferred=True)
    running = rig.start(cdbs.orwrite(0, 1), b"\x0f" * BLOCK)
    rig.device.write(0, b"\xf0" * BLOCK)
    while rig.device.waiting:
        rig.device.finish()
    assert ended(running) == GOOD
    assert rig.device.read(0, BLOCK) == b"\xff" * BLOCK


def test_a_long_orwrite_goes_in_parts_that_conditional_writes_can_take() -> None:
    rig = Rig(blocks=1024, block_size=4096)
    rig.device.write(0, b"\x01" * (1 << 20))
    rig.good(cdbs.orwrite(0, 256, flags=FUA), b"\x10" * (1 << 20))
    assert rig.device.read(0, 1 << 20) == b"\x11" * (1 << 20)
    writes = [seen for seen in rig.device.seen if seen.op == OP_WRITE]
    assert {seen.flags for seen in writes} == {FLAG_IF_SEQ | FLAG_FUA}
    assert max(seen.length for seen in writes) == disk.CONDITIONAL_BYTES


def test_orwrite_refuses_what_other_writes_refuse() -> None:
    rig = Rig(blocks=1 << 20)
    end = rig.unit.block_count
    rig.good(cdbs.orwrite(0, 0))
    rig.good(cdbs.orwrite(end, 0))
    for lba, count in ((end, 1), (end + 1, 0), ((1 << 64) - 1, 1)):
        assert codes(rig.fault(cdbs.orwrite(lba, count), bytes(BLOCK))) == LBA_OUT_OF_RANGE
    too_many = disk.MAX_TRANSFER_BYTES // BLOCK + 1
    assert codes(rig.fault(cdbs.orwrite(0, too_many))) == INVALID_FIELD
    for protect in range(1, 8):
        assert codes(rig.fault(cdbs.orwrite(0, 1, flags=protect << 5))) == INVALID_FIELD
    assert rig.device.seen == []


def test_orwrite_on_a_busy_volume_is_busy() -> None:
    rig = Rig(deferred=True)
    running = rig.start(cdbs.orwrite(0, 1), b"\x01" * BLOCK)
    while rig.device.waiting:
        rig.device.write(100 * BLOCK, b"other")
        rig.device.finish()
    assert ended(running) == BUSY


def test_orwrite_with_less_data_than_announced_takes_whole_blocks_of_it() -> None:
    rig = Rig()
    rig.good(cdbs.orwrite(0, 3), b"\x01" * (BLOCK + 9))
    assert rig.device.read(0, 2 * BLOCK) == b"\x01" * BLOCK + bytes(BLOCK)


# -- WRITE ATOMIC


def test_an_atomic_write_is_one_request() -> None:
    rig = Rig(blocks=1024, block_size=4096)
    begun = rig.unit.prepare(rig.nexus, cdbs.write_atomic(3, 256))
    assert isinstance(begun, Single)
    assert begun.request.length == atomic.MAX_ATOMIC_BYTES
    rig.good(cdbs.write_atomic(3, 256, flags=FUA), b"x" * (1 << 20))
    assert rig.device.read(3 * 4096, 1 << 20) == b"x" * (1 << 20)
    assert [seen.flags for seen in rig.device.seen] == [FLAG_FUA]


def test_an_atomic_write_has_a_limit_and_no_boundary() -> None:
    rig = Rig(blocks=1024, block_size=4096)
    refused = rig.fault(cdbs.write_atomic(0, 257))
    assert (codes(refused), refused.field) == (INVALID_FIELD, 12)
    refused = rig.fault(cdbs.write_atomic(0, 2, boundary=1))
    assert (codes(refused), refused.field) == (INVALID_FIELD, 10)
    assert codes(rig.fault(cdbs.write_atomic(0, 1, flags=0x20))) == INVALID_FIELD


def test_an_atomic_write_behind_the_end_is_out_of_range_however_long() -> None:
    rig = Rig(blocks=1024, block_size=4096)
    for lba, count in ((1023, 2), (768, 512), (1025, 0), (1 << 63, 1), ((1 << 64) - 1, 256)):
        assert codes(rig.fault(cdbs.write_atomic(lba, count))) == LBA_OUT_OF_RANGE
    rig.good(cdbs.write_atomic(1024, 0))
    assert rig.device.seen == []


def test_a_read_only_unit_refuses_them() -> None:
    rig = Rig(read_only=True)
    for cdb in (cdbs.compare_and_write(0, 1), cdbs.orwrite(0, 1), cdbs.write_atomic(0, 1)):
        assert codes(rig.fault(cdb, bytes(2 * BLOCK))) == (7, 0x27, 0)
    assert rig.device.seen == []
