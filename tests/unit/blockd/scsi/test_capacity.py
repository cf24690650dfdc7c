"""READ CAPACITY and READ DEFECT DATA."""

import pytest

from blockd.scsi import sense
from tests.scsi_rig import Rig, codes

CAPACITY_10 = bytes.fromhex("25000000000000000000")
DEFECTS_10 = "37 00 {:02x} 00000000 0020 00"
DEFECTS_12 = "b7 {:02x} 00000000 00000020 0000"


def capacity_16(allocation: int = 32) -> bytes:
    return b"\x9e\x10" + bytes(8) + allocation.to_bytes(4, "big") + bytes(2)


def test_capacity_is_the_last_block_and_the_block_size() -> None:
    assert Rig(blocks=2048, block_size=512).good(CAPACITY_10) == bytes.fromhex("000007ff 00000200")


def test_a_large_unit_sends_initiators_to_the_long_command() -> None:
    rig = Rig(blocks=(1 << 32) + 2)
    assert rig.good(CAPACITY_10)[:4] == b"\xff\xff\xff\xff"
    assert rig.good(capacity_16())[:8] == ((1 << 32) + 1).to_bytes(8, "big")


def test_the_largest_unit_of_the_short_command_is_told_by_it() -> None:
    assert Rig(blocks=(1 << 32) - 1).good(CAPACITY_10)[:4] == b"\xff\xff\xff\xfe"


@pytest.mark.parametrize("block_size", [512, 1024, 4096, 8192])
def test_physical_blocks_are_logical_ones(block_size: int) -> None:
    data = Rig(blocks=256, block_size=block_size).good(capacity_16())
    assert data[8:12] == block_size.to_bytes(4, "big")
    assert data[13] == 0


def test_blocks_can_be_unmapped_and_read_zeros_then() -> None:
    data = Rig().good(capacity_16())
    assert len(data) == 32
    assert data[12:16] == bytes((0, 0, 0xC0, 0))  # no protection information; LBPME, LBPRZ


@pytest.mark.parametrize("allocation", [0, 1, 12, 31])
def test_capacity_is_cut_to_the_allocation_length(allocation: int) -> None:
    rig = Rig()
    assert rig.good(capacity_16(allocation)) == rig.good(capacity_16())[:allocation]


def test_capacity_up_to_a_block_is_asked_for_by_nobody_any_more() -> None:
    assert codes(Rig().fault(bytes.fromhex("25000000000000000100")))[1:] == (0x24, 0)
    assert codes(Rig().fault(bytes.fromhex("25000000000100000000")))[1:] == (0x24, 0)


@pytest.mark.parametrize("flags", [0x00, 0x10, 0x08, 0x18, 0x1D, 0x04])
def test_defect_lists_are_there_and_empty(flags: int) -> None:
    rig = Rig()
    assert rig.good(bytes.fromhex(DEFECTS_10.format(flags))) == bytes((0, flags, 0, 0))
    assert rig.good(bytes.fromhex(DEFECTS_12.format(flags))) == bytes((0, flags, *bytes(6)))


def test_a_format_that_does_not_exist_is_refused() -> None:
    rig = Rig()
    short = rig.fault(bytes.fromhex(DEFECTS_10.format(0x1F)))
    assert (codes(short), short.field) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 2)
    long = rig.fault(bytes.fromhex(DEFECTS_12.format(0x1F)))
    assert (codes(long), long.field) == ((sense.ILLEGAL_REQUEST, 0x24, 0), 1)
