"""VERIFY and WRITE AND VERIFY: what is on the medium, checked or compared.

    BYTCHK 0    read it, which checks every checksum; nothing is transferred or compared
    BYTCHK 1    compare it with the data-out, byte by byte
    BYTCHK 3    compare every block of it with the one block of data-out
    BYTCHK 2    reserved: 05/2400

WRITE AND VERIFY writes with FUA first and then does the same; the data is transferred in any case,
and BYTCHK 3 does not exist for it. A difference is 0E/1D00 with the offset of the first byte of the
data-out that differs as INFORMATION (SBC-3 5.33). Reads go in pieces, so that a VERIFY of a whole
volume takes no memory; between them others may write, as they may on any disk.
"""

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from blockd.scsi.cdb import Opcode, u16, u32, u64
from blockd.scsi.disk import (
    DONE,
    MAX_TRANSFER_BYTES,
    block_range,
    perform,
    pieces,
    read_bytes,
    usage_10,
    usage_12,
    usage_16,
    whole_blocks,
)
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import MISCOMPARE, CheckCondition, Sense, invalid_field
from blockd.scsi.task import Prepared, Result, Steps, Submit, Work
from native import FLAG_FUA, OP_WRITE, Request

if TYPE_CHECKING:
    from blockd.device import BlockDevice
    from blockd.scsi.unit import LogicalUnit

_DPO_BYTCHK: Final = 0x16  # byte 1
_MEDIUM_ONLY: Final = 0
_COMPARE: Final = 1
_COMPARE_ONE_BLOCK: Final = 3


def first_difference(left: bytes, right: bytes) -> int | None:
    """Offset of the first byte in which two runs of the same length differ."""
    if left == right:
        return None
    start, length = 0, len(left)
    while length > 1:  # the difference is in [start, start + length)
        half = length // 2
        if left[start : start + half] == right[start : start + half]:
            start += half
            length -= half
        else:
            length = half
    return start


def miscompared(offset: int) -> CheckCondition:
    """MISCOMPARE DURING VERIFY OPERATION; `offset` in the data-out."""
    return CheckCondition(Sense(MISCOMPARE, 0x1D, 0x00, information=offset))


def check_medium(
    device: "BlockDevice", offset: int, length: int
) -> Generator[Submit | Work, Any, None]:
    """Steps that read a range and forget it. CheckCondition."""
    for start, part in pieces(length):
        yield from read_bytes(device, offset + start, part)


def compare(
    device: "BlockDevice", offset: int, data: memoryview
) -> Generator[Submit | Work, Any, None]:
    """Steps that compare the medium from `offset` on with `data`. CheckCondition."""
    for start, part in pieces(len(data)):
        stored = yield from read_bytes(device, offset + start, part)
        found = first_difference(bytes(data[start : start + part]), stored)
        if found is not None:
            raise miscompared(start + found)


def _compare_one_block(
    device: "BlockDevice", offset: int, length: int, block: bytes
) -> Generator[Submit | Work, Any, None]:
    for start, part in pieces(length):
        stored = yield from read_bytes(device, offset + start, part)
        found = first_difference(block * (part // len(block)), stored)
        if found is not None:
            raise miscompared(found % len(block))


# -- VERIFY


def _verify(unit: "LogicalUnit", lba: int, count: int, flags: int, field: int) -> Result | Prepared:
    """`field`: where the CDB has its verification length."""
    offset, length = block_range(unit, lba, count)
    check = flags >> 1 & 3
    device = unit.device
    if check not in (_MEDIUM_ONLY, _COMPARE, _COMPARE_ONE_BLOCK):
        raise invalid_field(1, 2)
    if not count:
        return DONE
    if check == _MEDIUM_ONLY:
        return Prepared(0, lambda _: _to_end(check_medium(device, offset, length)))
    if check == _COMPARE:
        if length > MAX_TRANSFER_BYTES:
            raise invalid_field(field)
        return Prepared(
            length,
            lambda data: _to_end(compare(device, offset, whole_blocks(data, device.block_size))),
        )
    return Prepared(
        device.block_size,
        lambda data: _to_end(_compare_one_block(device, offset, length, bytes(data))),
        exact=True,
    )


def _to_end(steps: Generator[Submit | Work, Any, None]) -> Steps:
    yield from steps
    return DONE


def verify_10(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _verify(unit, u32(cdb, 2), u16(cdb, 7), cdb[1], 7)


def verify_12(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _verify(unit, u32(cdb, 2), u32(cdb, 6), cdb[1], 6)


def verify_16(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _verify(unit, u64(cdb, 2), u32(cdb, 10), cdb[1], 10)


# -- WRITE AND VERIFY


def _write_and_verify(
    unit: "LogicalUnit", lba: int, count: int, flags: int, field: int
) -> Result | Prepared:
    offset, length = block_range(unit, lba, count)
    check = flags >> 1 & 3
    if check not in (_MEDIUM_ONLY, _COMPARE):
        raise invalid_field(1, 2)
    if length > MAX_TRANSFER_BYTES:
        raise invalid_field(field)
    if not count:
        return DONE
    return Prepared(
        length, lambda data: _write_then_verify(unit.device, offset, data, check == _COMPARE)
    )


def _write_then_verify(
    device: "BlockDevice", offset: int, data: memoryview, comparing: bool
) -> Steps:
    data = whole_blocks(data, device.block_size)
    if not data:
        return DONE
    yield from perform(device, Request(OP_WRITE, offset, len(data), data, FLAG_FUA))
    if comparing:
        yield from compare(device, offset, data)
    else:
        yield from check_medium(device, offset, len(data))
    return DONE


def write_and_verify_10(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _write_and_verify(unit, u32(cdb, 2), u16(cdb, 7), cdb[1], 7)


def write_and_verify_12(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _write_and_verify(unit, u32(cdb, 2), u32(cdb, 6), cdb[1], 6)


def write_and_verify_16(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _write_and_verify(unit, u64(cdb, 2), u32(cdb, 10), cdb[1], 10)


OPCODES: Final = (
    Opcode(0x2F, None, "VERIFY (10)", usage_10(0x2F, _DPO_BYTCHK), verify_10, reservation="read"),
    Opcode(0xAF, None, "VERIFY (12)", usage_12(0xAF, _DPO_BYTCHK), verify_12, reservation="read"),
    Opcode(0x8F, None, "VERIFY (16)", usage_16(0x8F, _DPO_BYTCHK), verify_16, reservation="read"),
    Opcode(
        *(0x2E, None, "WRITE AND VERIFY (10)", usage_10(0x2E, _DPO_BYTCHK), write_and_verify_10),
        changes_medium=True,
    ),
    Opcode(
        *(0xAE, None, "WRITE AND VERIFY (12)", usage_12(0xAE, _DPO_BYTCHK), write_and_verify_12),
        changes_medium=True,
    ),
    Opcode(
        *(0x8E, None, "WRITE AND VERIFY (16)", usage_16(0x8E, _DPO_BYTCHK), write_and_verify_16),
        changes_medium=True,
    ),
)
