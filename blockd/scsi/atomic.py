"""COMPARE AND WRITE, ORWRITE, WRITE ATOMIC: several steps that look like one.

COMPARE AND WRITE (SBC-3 5.2) and ORWRITE (5.13) read, decide and write. Nobody may write in
between, on whatever session or protocol, so the write is a conditional one: it names the `seq` that
the volume had before the read, and the volume refuses it (ECANCELED) once anything was written
since, anywhere. Then all is done again; a volume so busy that this fails `MAX_ATTEMPTS` times in a
row answers BUSY, and the initiator tries again.

A conditional write is one journal record, so it is bounded: a COMPARE AND WRITE fits; an ORWRITE
goes in parts that are each read and written as one. As no bit depends on another one, no bit is
ever lost.

WRITE ATOMIC (16) is a WRITE of at most one journal record, which a crash leaves whole or not at
all. There is no atomic boundary: that field must be 0.
"""

import errno
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

from blockd.scsi.cdb import Opcode, u16, u32, u64
from blockd.scsi.disk import (
    CONDITIONAL_BYTES,
    DONE,
    DPO_FUA,
    FUA,
    MAX_TRANSFER_BYTES,
    block_range,
    failure,
    pieces,
    read_bytes,
    usage_16,
    whole_blocks,
    write,
)
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import CheckCondition, invalid_field
from blockd.scsi.task import BUSY, Prepared, Result, Single, Steps, Submit, Work
from blockd.scsi.verify import first_difference, miscompared
from native import FLAG_FUA, FLAG_IF_SEQ, OP_WRITE, Request

if TYPE_CHECKING:
    from blockd.device import BlockDevice
    from blockd.scsi.unit import LogicalUnit

MAX_COMPARE_AND_WRITE_BLOCKS: Final = 255
"""VPD B0: as much as the CDB can ask for."""
MAX_ATOMIC_BYTES: Final = 1 << 20
"""Of one WRITE ATOMIC: a journal record's payload. VPD B0 tells it in blocks."""
MAX_ATTEMPTS: Final = 64
"""At a conditional write. The second one finds what it reads in memory, so that it takes a volume
with hundreds of thousands of writes a second to spoil all of them."""

assert MAX_COMPARE_AND_WRITE_BLOCKS * 4096 <= CONDITIONAL_BYTES


def _replace(
    device: "BlockDevice",
    offset: int,
    length: int,
    flags: int,
    decide: Callable[[bytes], "bytes | memoryview"],
) -> Generator[Submit | Work, Any, bool]:
    """Steps that replace what is stored in a range by what `decide` makes of it, as one.

    False: somebody else wrote each time. CheckCondition, also what `decide` raises.
    """
    for _ in range(MAX_ATTEMPTS):
        seq = device.seq  # before the read: what is written later is noticed
        stored = yield from read_bytes(device, offset, length)
        request = Request(OP_WRITE, offset, length, decide(stored), FLAG_IF_SEQ | flags)
        request.seq = seq
        yield Submit(device, [request])
        if not request.error:
            return True
        if request.error != errno.ECANCELED:
            raise CheckCondition(failure(request))
    return False


# -- COMPARE AND WRITE


def compare_and_write(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    offset, length = block_range(unit, u64(cdb, 2), cdb[13])
    if length > CONDITIONAL_BYTES:  # blocks larger than 4 KiB
        raise invalid_field(13)
    if not length:  # 256 blocks, to an initiator that does not look: its data tells
        return Prepared(0, lambda _: DONE, exact=True)
    flags = FLAG_FUA if cdb[1] & FUA else 0
    return Prepared(
        2 * length,
        lambda data: _compare_and_write(unit.device, offset, flags, data),
        exact=True,
    )


def _compare_and_write(device: "BlockDevice", offset: int, flags: int, data: memoryview) -> Steps:
    """`data`: what is expected, then what takes its place."""
    length = len(data) // 2
    expected = bytes(data[:length])

    def decide(stored: bytes) -> memoryview:
        found = first_difference(expected, stored)
        if found is not None:
            raise miscompared(found)
        return data[length:]

    replaced = yield from _replace(device, offset, length, flags, decide)
    return DONE if replaced else Result(BUSY)


# -- ORWRITE


def orwrite(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    offset, length = block_range(unit, u64(cdb, 2), u32(cdb, 10))
    if length > MAX_TRANSFER_BYTES:
        raise invalid_field(10)
    if not length:
        return DONE
    flags = FLAG_FUA if cdb[1] & FUA else 0
    return Prepared(length, lambda data: _orwrite(unit.device, offset, flags, data))


def _orwrite(device: "BlockDevice", offset: int, flags: int, data: memoryview) -> Steps:
    data = whole_blocks(data, device.block_size)
    for start, part in pieces(len(data), CONDITIONAL_BYTES):
        added = int.from_bytes(data[start : start + part], "little")

        def decide(stored: bytes, added: int = added) -> bytes:
            return (int.from_bytes(stored, "little") | added).to_bytes(len(stored), "little")

        replaced = yield from _replace(device, offset + start, part, flags, decide)
        if not replaced:
            return Result(BUSY)  # doing it again changes nothing in the parts that are done
    return DONE


# -- WRITE ATOMIC


def write_atomic(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Single:
    lba, boundary, count = u64(cdb, 2), u16(cdb, 10), u16(cdb, 12)
    length = block_range(unit, lba, count)[1]
    if boundary:
        raise invalid_field(10)
    if length > MAX_ATOMIC_BYTES:
        raise invalid_field(12)
    return write(unit, lba, count, cdb[1], 12)


OPCODES: Final = (
    Opcode(
        0x89,
        None,
        "COMPARE AND WRITE",
        bytes((0x89, DPO_FUA)) + b"\xff" * 8 + b"\x00\x00\x00\xff\x1f\x00",
        compare_and_write,
        changes_medium=True,
    ),
    Opcode(
        *(0x8B, None, "ORWRITE (16)", usage_16(0x8B, DPO_FUA), orwrite),
        changes_medium=True,
    ),
    Opcode(
        *(0x9C, None, "WRITE ATOMIC (16)", usage_16(0x9C, DPO_FUA), write_atomic),
        changes_medium=True,
    ),
)
