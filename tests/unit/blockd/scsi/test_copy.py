"""EXTENDED COPY: what is copied, shared, padded, and what ends it (SPC-4 6.4)."""

import errno
from collections.abc import Callable

import pytest

from blockd.access.rules import Grant
from blockd.device import BlockDevice
from blockd.scsi import copy
from blockd.scsi.task import BUSY
from native import OP_READ, OP_WRITE, OP_WRITE_ZEROES
from tests import scsi_cdbs as cdbs
from tests.fakes import MemoryDevice
from tests.scsi_copies import HERE, aborted, both, fault, good, numbers, pair, start
from tests.scsi_rig import BLOCK, BLOCKS, Rig, codes

MIB = 1 << 20
DC, CAT = 0x02, 0x01
NO_LIST_ID = 3
STATUS = 0x00


# -- what is copied


def test_blocks_go_from_one_unit_to_another() -> None:
    here, there = pair()
    here.device.write(10 * BLOCK, numbers(5 * BLOCK))
    good(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, 5, 10, 100)]))
    assert there.device.read(99 * BLOCK, 7 * BLOCK) == (
        bytes(BLOCK) + numbers(5 * BLOCK) + bytes(BLOCK)
    )
    assert here.device.read(10 * BLOCK, 5 * BLOCK) == numbers(5 * BLOCK)


def test_segments_are_done_in_order_and_may_build_on_each_other() -> None:
    here, there = pair()
    here.device.write(0, numbers(BLOCK))
    segments = [cdbs.segment(0, 1, 1, 0, 7), cdbs.segment(1, 0, 1, 7, 9)]
    good(here, cdbs.copy_list(both(), segments))
    assert here.device.read(9 * BLOCK, BLOCK) == numbers(BLOCK)
    assert there.device.read(7 * BLOCK, BLOCK) == numbers(BLOCK)


def test_a_long_segment_goes_in_pieces_and_zeros_are_not_written() -> None:
    here, there = pair(blocks=8 * MIB // BLOCK)
    here.device.write(0, numbers(MIB))
    here.device.write(3 * MIB, numbers(MIB + 5 * BLOCK))
    count = 4 * MIB // BLOCK + 5
    good(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, count, 0, 3)]))
    assert there.device.read(3 * BLOCK, count * BLOCK) == here.device.read(0, count * BLOCK)
    assert max(seen.length for seen in here.device.seen + there.device.seen) == MIB
    assert [seen.op for seen in there.device.seen] == [
        *(OP_WRITE, OP_WRITE_ZEROES, OP_WRITE_ZEROES, OP_WRITE, OP_WRITE)
    ]


@pytest.mark.parametrize("distance", [-MIB - BLOCK, -5 * BLOCK, 0, 5 * BLOCK, MIB + BLOCK])
def test_a_segment_may_overlap_itself(distance: int) -> None:
    here, _ = pair(blocks=16 * MIB // BLOCK)
    start_at, count = 4 * MIB, 3 * MIB // BLOCK + 3
    data = numbers(count * BLOCK)
    here.device.write(start_at, data)
    segment = cdbs.segment(0, 0, count, start_at // BLOCK, (start_at + distance) // BLOCK)
    good(here, cdbs.copy_list(both(), [segment]))
    assert here.device.read(start_at + distance, len(data)) == data


def test_nothing_to_copy_is_good() -> None:
    here, there = pair()
    good(here, b"")
    good(here, cdbs.copy_list([], []))
    good(here, cdbs.copy_list(both(), []))
    good(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, 0, 5, 5)]))
    assert here.device.seen == there.device.seen == []


# -- shared instead of copied


class SharingDevice(MemoryDevice):
    """Satisfies ClonesRanges: shares at most `shares` bytes of a range."""

    shares = 0
    clone_granularity = BLOCK
    error: Exception | None = None

    def clone_range(self, offset: int, source: BlockDevice, source_offset: int, length: int) -> int:
        assert isinstance(source, MemoryDevice)
        assert offset % self.clone_granularity == source_offset % self.clone_granularity == 0
        if self.error is not None:
            raise self.error
        shared = min(self.shares, length)
        self.write(offset, source.read(source_offset, shared))
        return shared


def sharing(shares: int) -> tuple[Rig, SharingDevice]:
    here, there = pair(blocks=8 * MIB // BLOCK)
    device = SharingDevice("shared", there.device.size, block_size=BLOCK)
    device.shares = shares
    there.unit.device = device
    here.device.write(0, numbers(2 * MIB))
    return here, device


@pytest.mark.parametrize("shares", [0, BLOCK, MIB, MIB + 7 * BLOCK, 2 * MIB])
def test_what_can_be_shared_is_and_the_rest_is_copied(shares: int) -> None:
    here, device = sharing(shares)
    running = start(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, 2 * MIB // BLOCK, 0, 9)]))
    assert running.works == 1
    assert device.read(9 * BLOCK, 2 * MIB) == numbers(2 * MIB)
    assert sum(seen.length for seen in here.device.seen if seen.op == OP_READ) == 2 * MIB - shares
    status = here.good(cdbs.copy_results(STATUS, 1))
    assert status[8:12] == (2 * MIB // 1024).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("read_at", "write_at", "count", "copied"),
    [
        (63, 63, 1000, 65),  # up to the next chunk
        (63, 63 + 5 * 128, 1000, 65),
        (1, 129, 127, 127),  # no chunk begins in it
        (128, 256, 1000, 0),
        (63, 64, 1000, 1000),  # chunks begin at other places
    ],
)
def test_what_is_before_the_first_chunk_is_copied_and_the_rest_shared(
    read_at: int, write_at: int, count: int, copied: int
) -> None:
    here, device = sharing(4 * MIB)
    device.clone_granularity = 128 * BLOCK
    good(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, count, read_at, write_at)]))
    length = count * BLOCK
    assert device.read(write_at * BLOCK, length) == here.device.read(read_at * BLOCK, length)
    assert device.read(0, write_at * BLOCK) == bytes(write_at * BLOCK)
    read = sum(seen.length for seen in here.device.seen if seen.op == OP_READ)
    assert read == copied * BLOCK
    status = here.good(cdbs.copy_results(STATUS, 1))
    assert status[8:12] == (length // 1024).to_bytes(4, "big")


def test_sharing_that_fails_aborts_the_copy() -> None:
    here, device = sharing(0)
    device.error = OSError(errno.EIO, "broken")
    parameters = cdbs.copy_list(both(), [cdbs.segment(0, 1, 8, 0, 9)])
    assert aborted(here, parameters) == (0x0D, 0x01)


# -- blocks of two sizes


@pytest.mark.parametrize(
    ("flags", "count", "pads", "copied", "written"),
    [
        (0, 16, (False, False), 16 * 512, 16 * 512),
        (0, 17, (False, True), 17 * 512, 24 * 512),
        (0, 17, (True, True), 17 * 512, 24 * 512),
        (0, 17, (True, False), 16 * 512, 16 * 512),
        (0, 7, (True, False), 0, 0),
        (DC, 2, (False, False), 16 * 512, 16 * 512),
    ],
)
def test_small_blocks_into_large_ones(
    flags: int, count: int, pads: tuple[bool, bool], copied: int, written: int
) -> None:
    here, there = pair(block_size=4096)
    here.device.write(0, numbers(64 * BLOCK))
    there.device.write(0, b"\xee" * 64 * BLOCK)
    segment = cdbs.segment(0, 1, count, 0, 1, flags=flags)
    good(here, cdbs.copy_list(both(block_length=4096, pads=pads), [segment]))
    assert there.device.read(4096, copied) == numbers(copied)
    assert there.device.read(4096 + copied, written - copied) == bytes(written - copied)
    assert there.device.read(4096 + written, 4096) == b"\xee" * 4096


@pytest.mark.parametrize(
    ("flags", "count", "pads", "copied"),
    [
        (0, 2, (False, False), 16 * 512),
        (DC, 16, (False, False), 16 * 512),
        (DC, 11, (True, False), 11 * 512),
        (DC, 11, (False, True), 11 * 512),
    ],
)
def test_large_blocks_into_small_ones(
    flags: int, count: int, pads: tuple[bool, bool], copied: int
) -> None:
    here, there = pair(block_size=4096)
    there.device.write(0, numbers(64 * BLOCK))
    here.device.write(0, b"\xee" * 64 * BLOCK)
    segment = cdbs.segment(1, 0, count, 0, 1, flags=flags)
    good(here, cdbs.copy_list(both(block_length=4096, pads=(pads[1], pads[0])), [segment]))
    assert here.device.read(BLOCK, copied) == numbers(copied)
    assert here.device.read(BLOCK + copied, BLOCK) == b"\xee" * BLOCK


@pytest.mark.parametrize("flags", [0, CAT])
def test_a_block_that_is_not_filled_aborts_without_pad(flags: int) -> None:
    here, there = pair(block_size=4096)
    pads = (bool(flags), bool(flags))  # CAT would carry the rest over, which is not done
    segment = cdbs.segment(0, 1, 17, 0, 1, flags=flags)
    parameters = cdbs.copy_list(both(block_length=4096, pads=pads), [segment])
    assert aborted(here, parameters) == (0x26, 0x0A)
    segment = cdbs.segment(1, 0, 11, 0, 1, flags=DC | flags)
    parameters = cdbs.copy_list(both(block_length=4096, pads=pads), [segment])
    assert aborted(here, parameters) == (0x26, 0x0A)
    assert there.device.seen == here.device.seen == []


def test_a_block_length_of_zero_is_taken_for_left_out() -> None:
    here, _ = pair(block_size=4096)
    good(here, cdbs.copy_list(both(block_length=0), [cdbs.segment(0, 1, 8, 0, 1)]))


# -- what aborts a copy


def test_a_failed_segment_tells_which_it_was_and_what_was_left() -> None:
    here, there = pair()
    segments = [cdbs.segment(0, 1, 5, 0, 0), cdbs.segment(0, 1, 5, BLOCKS - 4, 0)]
    what = fault(here, cdbs.copy_list(both(), segments))
    assert codes(what) == (0x0A, 0, 0)
    assert (what.command_specific, what.information) == (1, 5)
    assert len(there.device.seen) == 1
    encoded = what.encode()
    assert encoded[3:7] == (5).to_bytes(4, "big")
    assert encoded[8:12] == (1).to_bytes(4, "big")


def test_an_error_in_the_middle_tells_how_many_blocks_were_left() -> None:
    here, there = pair(blocks=8 * MIB // BLOCK, deferred=True)
    here.device.write(0, numbers(3 * MIB))
    count = 3 * MIB // BLOCK
    running = start(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, count, 0, 0)]))
    here.device.finish()
    there.device.fail_next(errno.ENOSPC)
    here.device.finish()
    assert running.result is not None
    what = running.result.sense
    assert what is not None
    assert codes(what) == (0x0A, 0x0D, 0x01)
    assert what.information == 2 * MIB // BLOCK


@pytest.mark.parametrize("segment", [(0, 1, 5, 0, BLOCKS - 4), (1, 0, 5, BLOCKS - 4, 0)])
def test_beyond_the_last_block(segment: tuple[int, int, int, int, int]) -> None:
    here, there = pair()
    assert aborted(here, cdbs.copy_list(both(), [cdbs.segment(*segment)])) == (0, 0)
    assert here.device.seen == there.device.seen == []


@pytest.mark.parametrize("indexes", [(0, 2), (2, 0), (0xFFFF, 0)])
def test_an_index_without_a_descriptor(indexes: tuple[int, int]) -> None:
    here, _ = pair()
    assert aborted(here, cdbs.copy_list(both(), [cdbs.segment(*indexes, 1, 0, 0)])) == (8, 4)


def test_a_unit_that_is_not_here_and_the_null_one() -> None:
    here, _ = pair()
    for cscd in (cdbs.cscd(b"\x60" + b"?" * 15), cdbs.cscd(HERE, flags=0x20)):
        parameters = cdbs.copy_list([cscd], [cdbs.segment(0, 0, 1, 0, 9)])
        assert aborted(here, parameters) == (0x0D, 0x02)


def test_blocks_of_another_size_than_the_initiator_believes() -> None:
    here, _ = pair()
    parameters = cdbs.copy_list(both(block_length=4096), [cdbs.segment(0, 1, 1, 0, 0)])
    assert aborted(here, parameters) == (0x0D, 0x03)


def reserve(there: Rig) -> None:
    there.unit.reserved_by = there.join(9)


def protect(there: Rig) -> None:
    there.device.read_only = True


def sanitize(there: Rig) -> None:
    there.good(cdbs.sanitize(0x02, flags=0x80))


@pytest.mark.parametrize("what", [reserve, protect, sanitize])
def test_a_destination_that_may_not_be_written(what: Callable[[Rig], None]) -> None:
    here, there = pair()
    what(there)
    assert aborted(here, cdbs.copy_list(both(), [cdbs.segment(0, 1, 1, 0, 0)])) == (0x0D, 0x01)
    assert [seen for seen in there.device.seen if seen.op == OP_WRITE] == []


def test_a_source_may_be_read_only() -> None:
    here, there = pair()
    there.device.read_only = True
    good(here, cdbs.copy_list(both(), [cdbs.segment(1, 0, 1, 0, 0)]))


def test_more_copies_than_are_allowed_at_a_time_are_busy() -> None:
    here, _ = pair(deferred=True)
    parameters = cdbs.copy_list(both(), [cdbs.segment(0, 1, 1, 0, 0)], list_id=0, usage=NO_LIST_ID)
    running = [start(here, parameters) for _ in range(copy.MAX_COPIES)]
    refused = start(here, parameters).result
    assert refused is not None
    assert refused.status == BUSY
    running[0].task.abort()
    assert start(here, parameters).result is None
    while here.device.waiting:
        here.device.finish()
    assert here.unit.copies.running == 0


def test_only_what_the_initiator_is_logged_in_to_is_reached() -> None:
    here, there = pair()
    there.device.write(0, numbers(BLOCK))
    stranger = here.join(7)
    take = cdbs.copy_list(both(), [cdbs.segment(1, 0, 1, 0, 0)])
    give = cdbs.copy_list(both(), [cdbs.segment(0, 1, 1, 8, 0)])
    for parameters in (take, give):
        cdb = cdbs.extended_copy(len(parameters))
        assert codes(here.fault(cdb, parameters, nexus=stranger)) == (0x0A, 0x0D, 0x02)
    assert here.device.read(0, BLOCK) == bytes(BLOCK)
    assert there.device.read(0, BLOCK) == numbers(BLOCK)
    there.join(7)
    assert here.good(cdbs.extended_copy(len(take)), take, nexus=stranger) == b""
    assert here.device.read(0, BLOCK) == numbers(BLOCK)


# -- who may do what


@pytest.mark.parametrize(
    ("grants", "source", "told"),
    [
        ({"there": Grant.READ}, 1, None),
        ({"there": Grant.READ}, 0, (0x0A, 0x0D, 0x01)),
        ({"there": Grant.NOTHING}, 1, (0x0A, 0x0D, 0x02)),
        ({"there": Grant.NOTHING}, 0, (0x0A, 0x0D, 0x02)),
    ],
)
def test_a_copy_reads_and_writes_what_its_initiator_may(
    grants: dict[str, Grant], source: int, told: tuple[int, int, int] | None
) -> None:
    """Even where another session of that name may more: names prove nothing."""
    here, there = pair()
    there.device.write(0, numbers(BLOCK))
    here.nexus.grant = lambda unit: grants["there"] if unit is there.unit else Grant.WRITE
    parameters = cdbs.copy_list(both(), [cdbs.segment(source, 1 - source, 1, 0, 9)])
    if told is None:
        good(here, parameters)
        assert here.device.read(9 * BLOCK, BLOCK) == numbers(BLOCK)
        return
    assert codes(fault(here, parameters)) == told
    assert there.device.read(9 * BLOCK, BLOCK) == bytes(BLOCK)
    assert here.device.read(9 * BLOCK, BLOCK) == bytes(BLOCK)
