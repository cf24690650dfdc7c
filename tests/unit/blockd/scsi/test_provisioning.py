"""UNMAP, WRITE SAME and GET LBA STATUS (SBC-3 5.4, 5.28, 5.43, 5.45)."""

import errno
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.scsi import provisioning
from blockd.scsi.provisioning import status_runs
from native import OP_UNMAP, OP_WRITE, OP_WRITE_ZEROES
from tests import scsi_cdbs as cdbs
from tests.fakes import Seen
from tests.scsi_rig import BLOCK, BLOCKS, Rig, codes

INVALID_FIELD = (5, 0x24, 0)
INVALID_PARAMETER = (5, 0x26, 0)
LIST_LENGTH = (5, 0x1A, 0)
LBA_OUT_OF_RANGE = (5, 0x21, 0)
UNMAP, ANCHOR, NDOB = 0x08, 0x10, 0x01
MIB = 1 << 20


def filled(*, blocks: int = BLOCKS) -> Rig:
    rig = Rig(blocks=blocks)
    rig.device.write(0, b"\xee" * min(rig.device.size, 4 * MIB))
    return rig


def unmap(rig: Rig, *ranges: tuple[int, int]) -> bytes:
    parameters = cdbs.unmap_list(*ranges)
    return rig.good(cdbs.unmap(len(parameters)), parameters)


# -- UNMAP


def test_unmapped_blocks_read_zeros_and_their_neighbours_stay() -> None:
    rig = filled()
    unmap(rig, (3, 2), (9, 1))
    assert rig.device.read(0, 12 * BLOCK) == b"".join(
        (b"\0" if lba in (3, 4, 9) else b"\xee") * BLOCK for lba in range(12)
    )
    assert [seen.op for seen in rig.device.seen] == [OP_UNMAP, OP_UNMAP]


def test_unmapping_nothing_is_good() -> None:
    rig = filled()
    assert rig.good(cdbs.unmap(0)) == b""
    unmap(rig)
    unmap(rig, (0, 0), (5, 0), (BLOCKS, 0))
    assert rig.device.seen == []


def test_descriptors_may_overlap_and_the_last_one_may_be_cut_off() -> None:
    rig = filled()
    unmap(rig, (3, 4), (5, 4))
    parameters = bytearray(cdbs.unmap_list((20, 1), (30, 1)))
    parameters[2:4] = (16 + 8).to_bytes(2, "big")  # "an incomplete one shall be ignored"
    rig.good(cdbs.unmap(len(parameters)), bytes(parameters))
    assert rig.device.read(20 * BLOCK, BLOCK) == bytes(BLOCK)
    assert rig.device.read(30 * BLOCK, BLOCK) == b"\xee" * BLOCK


def test_a_range_behind_the_end_unmaps_nothing_at_all() -> None:
    rig = filled()
    for bad in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0), ((1 << 64) - 1, 1)):
        parameters = cdbs.unmap_list((0, 1), bad)
        assert codes(rig.fault(cdbs.unmap(len(parameters)), parameters)) == LBA_OUT_OF_RANGE
    assert rig.device.seen == []


@pytest.mark.parametrize("length", range(1, 8))
def test_a_list_without_its_header_is_refused(length: int) -> None:
    assert codes(Rig().fault(cdbs.unmap(length), bytes(length))) == LIST_LENGTH


def test_a_list_that_is_cut_off_is_refused() -> None:
    rig = filled()
    parameters = cdbs.unmap_list((0, 1), (5, 1))
    for length in range(8, len(parameters)):
        assert codes(rig.fault(cdbs.unmap(length), parameters[:length])) == LIST_LENGTH
    for length in range(len(parameters)):  # announced whole, sent in part
        assert codes(rig.fault(cdbs.unmap(40), parameters[:length])) == LIST_LENGTH
    assert rig.device.seen == []


def test_lengths_that_contradict_each_other_are_refused() -> None:
    parameters = bytearray(cdbs.unmap_list((0, 1)))
    parameters[0:2] = (20).to_bytes(2, "big")
    refused = Rig().fault(cdbs.unmap(len(parameters)), bytes(parameters))
    assert codes(refused) == INVALID_PARAMETER
    assert (refused.field, refused.in_cdb) == (0, False)


def test_the_limits_of_vpd_b0_hold() -> None:
    blocks = provisioning.MAX_UNMAP_BYTES // BLOCK
    rig = Rig(blocks=4 * blocks)
    many = provisioning.MAX_UNMAP_DESCRIPTORS
    unmap(rig, *((lba, 1) for lba in range(many)))
    unmap(rig, (0, blocks - 1), (blocks, 1))
    for ranges in (((0, blocks), (blocks, 1)), tuple((lba, 1) for lba in range(many + 1))):
        parameters = cdbs.unmap_list(*ranges)
        refused = rig.fault(cdbs.unmap(len(parameters)), parameters)
        assert codes(refused) == INVALID_PARAMETER
        assert not refused.in_cdb


def test_anchoring_is_refused() -> None:
    rig = filled()
    refused = rig.fault(cdbs.unmap(24, flags=1), cdbs.unmap_list((0, 1)))
    assert codes(refused) == INVALID_FIELD
    for size in (10, 16):
        for flags in (ANCHOR, ANCHOR | UNMAP):
            refused = rig.fault(cdbs.write_same(0, 1, size=size, flags=flags), bytes(BLOCK))
            assert codes(refused) == INVALID_FIELD
    assert rig.device.seen == []


def test_an_unmap_that_fails_ends_with_its_sense() -> None:
    rig = filled()
    rig.device.fail_next(errno.ENOSPC)
    parameters = cdbs.unmap_list((0, 1), (5, 1))
    assert codes(rig.fault(cdbs.unmap(len(parameters)), parameters)) == (7, 0x27, 7)


@given(st.binary(max_size=80), st.integers(0, 90))
def test_any_parameter_list_is_answered(parameters: bytes, length: int) -> None:
    rig = Rig()
    result = rig.run(cdbs.unmap(length), parameters)
    assert result.status in (0, 2)
    for seen in rig.device.seen:
        assert seen.offset + seen.length <= rig.device.size


# -- WRITE SAME


@pytest.mark.parametrize("size", [10, 16])
def test_one_block_is_written_all_over_a_range(size: int) -> None:
    rig = filled(blocks=2 * BLOCKS)
    block = bytes(at % 255 for at in range(BLOCK))
    rig.good(cdbs.write_same(1, 3000, size=size), block)
    assert rig.device.read(BLOCK, 3000 * BLOCK) == block * 3000
    assert rig.device.read(0, BLOCK) == b"\xee" * BLOCK
    assert rig.device.read(3001 * BLOCK, BLOCK) == b"\xee" * BLOCK
    assert {seen.op for seen in rig.device.seen} == {OP_WRITE}
    assert max(seen.length for seen in rig.device.seen) <= MIB


@pytest.mark.parametrize("size", [10, 16])
def test_what_is_to_be_unmapped_is_whatever_the_data_is(size: int) -> None:
    rig = filled()
    rig.good(cdbs.write_same(1, 5, size=size, flags=UNMAP), b"\xff" * BLOCK)
    assert [seen.op for seen in rig.device.seen] == [OP_UNMAP]


@pytest.mark.parametrize("size", [10, 16])
def test_zeros_are_not_written_but_zeroed_or_unmapped(size: int) -> None:
    rig = filled()
    rig.good(cdbs.write_same(1, 5, size=size), bytes(BLOCK))
    rig.good(cdbs.write_same(8, 5, size=size, flags=UNMAP), bytes(BLOCK))
    assert rig.device.seen == [
        Seen(OP_WRITE_ZEROES, BLOCK, 5 * BLOCK, 0),
        Seen(OP_UNMAP, 8 * BLOCK, 5 * BLOCK, 0),
    ]
    assert rig.device.read(BLOCK, 5 * BLOCK) == bytes(5 * BLOCK)
    assert rig.device.read(8 * BLOCK, 5 * BLOCK) == bytes(5 * BLOCK)


def test_without_a_data_out_buffer_it_is_zeros() -> None:
    rig = filled()
    rig.good(cdbs.write_same(1, 5, flags=NDOB))
    rig.good(cdbs.write_same(1, 5, flags=NDOB | UNMAP))
    assert [seen.op for seen in rig.device.seen] == [OP_WRITE_ZEROES, OP_UNMAP]
    assert codes(rig.fault(cdbs.write_same(1, 5, size=10, flags=NDOB), b"")) == INVALID_FIELD


@pytest.mark.parametrize("size", [10, 16])
def test_no_number_of_blocks_means_to_the_end(size: int) -> None:
    rig = filled()
    rig.good(cdbs.write_same(BLOCKS - 3, 0, size=size), b"x" * BLOCK)
    assert rig.device.read((BLOCKS - 4) * BLOCK, 4 * BLOCK) == (b"\xee" * BLOCK + b"x" * 3 * BLOCK)
    for lba in (BLOCKS, BLOCKS + 1, (1 << 32) - 1):
        refused = rig.fault(cdbs.write_same(lba, 0, size=size), b"x" * BLOCK)
        assert codes(refused) == LBA_OUT_OF_RANGE


@pytest.mark.parametrize("size", [10, 16])
def test_a_data_out_of_anything_but_one_block_is_refused(size: int) -> None:
    rig = filled()
    for length in (0, BLOCK // 2, BLOCK - 1, BLOCK + 1, 2 * BLOCK):
        refused = rig.fault(cdbs.write_same(0, 1, size=size, flags=UNMAP), bytes(length))
        assert codes(refused) == INVALID_FIELD
    assert rig.device.seen == []


def test_more_than_vpd_b0_allows_is_refused() -> None:
    most = provisioning.MAX_WRITE_SAME_BLOCKS
    rig = Rig(blocks=2 * most)
    rig.good(cdbs.write_same(0, most), bytes(BLOCK))
    for cdb, field in (
        (cdbs.write_same(0, most + 1), 10),
        (cdbs.write_same(0, 0), 10),
        (cdbs.write_same(0, 0, size=10), 7),
    ):
        refused = rig.fault(cdb, bytes(BLOCK))
        assert codes(refused) == INVALID_FIELD
        assert refused.field == field


@pytest.mark.parametrize("size", [10, 16])
def test_write_same_refuses_protection_and_ranges_behind_the_end(size: int) -> None:
    rig = filled()
    refused = rig.fault(cdbs.write_same(0, 1, size=size, flags=0x20), bytes(BLOCK))
    assert codes(refused) == INVALID_FIELD
    refused = rig.fault(cdbs.write_same(BLOCKS - 1, 2, size=size), bytes(BLOCK))
    assert codes(refused) == LBA_OUT_OF_RANGE


def test_a_write_same_that_fails_stops_where_it_is() -> None:
    rig = filled(blocks=4 * BLOCKS)
    rig.device.fail_next(errno.ENOSPC)
    assert codes(rig.fault(cdbs.write_same(0, 4 * BLOCKS), b"x" * BLOCK)) == (7, 0x27, 7)
    assert len(rig.device.seen) == 1


def test_a_read_only_unit_refuses_all_of_them() -> None:
    rig = Rig(read_only=True)
    for cdb in (cdbs.unmap(24), cdbs.write_same(0, 1), cdbs.write_same(0, 1, size=10)):
        assert codes(rig.fault(cdb, bytes(BLOCK))) == (7, 0x27, 0)
    assert rig.device.seen == []


# -- GET LBA STATUS


def descriptors(data: bytes) -> list[tuple[int, int, int]]:
    """(lba, count, provisioning status); the header has to fit."""
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[4:8] == bytes(4)
    return [
        (
            int.from_bytes(data[at : at + 8], "big"),
            int.from_bytes(data[at + 8 : at + 12], "big"),
            data[at + 12],
        )
        for at in range(8, len(data), 16)
    ]


def test_mapped_and_deallocated_blocks_are_told_from_the_lba_on() -> None:
    rig = Rig()
    rig.device.write(4 * BLOCK, b"x" * 3 * BLOCK)
    status = descriptors(rig.good(cdbs.get_lba_status(2, 1024)))
    assert status == [(2, 2, 1), (4, 3, 0), (7, BLOCKS - 7, 1)]
    assert descriptors(rig.good(cdbs.get_lba_status(5, 1024)))[0] == (5, 2, 0)


def test_the_allocation_length_says_how_many_are_told() -> None:
    rig = Rig()
    for lba in range(0, 20, 2):
        rig.device.write(lba * BLOCK, b"x")
    assert descriptors(rig.good(cdbs.get_lba_status(0, 24))) == [(0, 1, 0)]
    assert len(descriptors(rig.good(cdbs.get_lba_status(0, 24 + 3 * 16)))) == 4
    assert len(descriptors(rig.good(cdbs.get_lba_status(0, 1 << 20)))) == 20
    assert len(rig.good(cdbs.get_lba_status(0, 10))) == 10
    assert rig.good(cdbs.get_lba_status(0, 0)) == b""


def test_a_run_is_told_whole_though_the_device_tells_it_in_parts() -> None:
    rig = Rig(blocks=40_000)
    for lba in range(20_000):  # more extents than a device tells at a time
        rig.device.write(lba * BLOCK, b"x")
    assert descriptors(rig.good(cdbs.get_lba_status(1, 24))) == [(1, 19_999, 0)]
    assert descriptors(rig.good(cdbs.get_lba_status(1, 256))) == [
        (1, 19_999, 0),
        (20_000, 20_000, 1),
    ]


def test_no_more_descriptors_than_the_limit() -> None:
    rig = Rig(blocks=4 * provisioning.MAX_STATUS_DESCRIPTORS)
    for lba in range(0, rig.unit.block_count, 2):
        rig.device.write(lba * BLOCK, b"x")
    status = descriptors(rig.good(cdbs.get_lba_status(0, 1 << 20)))
    assert len(status) == provisioning.MAX_STATUS_DESCRIPTORS


def test_a_run_longer_than_a_descriptor_holds_is_told_in_several() -> None:
    rig = Rig(blocks=(1 << 32) + 5, block_size=16)
    status = descriptors(rig.good(cdbs.get_lba_status(0, 256)))
    assert status == [(0, (1 << 32) - 1, 1), ((1 << 32) - 1, 6, 1)]


@pytest.mark.parametrize("lba", [BLOCKS, BLOCKS + 1, 1 << 63, (1 << 64) - 1])
def test_the_status_of_no_block_is_refused(lba: int) -> None:
    assert codes(Rig().fault(cdbs.get_lba_status(lba))) == LBA_OUT_OF_RANGE


def test_a_status_that_cannot_be_read_is_an_error() -> None:
    rig = Rig()
    rig.device.fail_next(errno.EIO)
    assert codes(rig.fault(cdbs.get_lba_status(0))) == (3, 0x11, 0)


@given(st.integers(0, 5), st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=12))
def test_a_block_is_deallocated_only_when_all_of_it_is(
    first: int, lengths: list[tuple[int, bool]]
) -> None:
    block_size = 8
    start = at = first * block_size
    mapped: set[int] = set()
    runs = []
    for length, hole in lengths:
        if not hole:
            mapped.update(byte // block_size for byte in range(at, at + length))
        at += length
        runs.append((at, hole))
    told = list(status_runs(start, runs, block_size))
    block = first
    for count, deallocated in told:
        assert count > 0
        for number in range(block, block + count):
            assert deallocated == (number not in mapped)
        block += count
    assert block in (at // block_size, -(-at // block_size))
    assert all(one[1] != other[1] for one, other in pairwise(told))
