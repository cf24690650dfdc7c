"""UNMAP, WRITE SAME, GET LBA STATUS: thin provisioning (SBC-3 4.7).

A volume reads zeros wherever nothing is mapped (LBPRZ = 1), and any block can be unmapped on its
own. So WRITE SAME of zeros costs no data: it becomes an UNMAP with the UNMAP bit and a WRITE_ZEROES
without. With the UNMAP bit the blocks are unmapped whatever the data-out is: initiators that set it
want that, their conformance tests send anything, and the targets that they know do it. Without the
bit, anything else than zeros is written for real. ANCHOR is refused by the usage data: there is no
state between mapped and not mapped.

The limits below are in VPD page B0. UNMAP checks its whole parameter list before it begins.
"""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from blockd.device import STATE_HOLE
from blockd.scsi import sense
from blockd.scsi.cdb import Opcode, u16, u32, u64
from blockd.scsi.disk import (
    DONE,
    PIECE_BYTES,
    block_range,
    perform,
    pieces,
    usage_10,
    usage_16,
)
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import CheckCondition, invalid_field
from blockd.scsi.task import GOOD, Prepared, Result, Steps
from native import (
    OP_BLOCK_STATUS,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Request,
    is_zero,
)

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

MAX_UNMAP_BYTES: Final = 4 << 30
"""Of all descriptors of one UNMAP; VPD B0 tells it in blocks. Destaging it visits 64 Ki chunks."""
MAX_UNMAP_DESCRIPTORS: Final = 256
"""Of one UNMAP: each is a journal record. VPD B0."""
MAX_WRITE_SAME_BLOCKS: Final = 0xFFFF
"""Of one WRITE SAME, whatever it writes; VPD B0. What is not zero is written for real, and
initiators wait for a minute at most."""
MAX_STATUS_DESCRIPTORS: Final = 1024
"""Of one GET LBA STATUS: 16 KiB."""
MAX_STATUS_BYTES: Final = 1 << 40
"""Range that one GET LBA STATUS looks at; the initiator asks again for what is behind it."""

_UNMAP_HEADER: Final = 8
_UNMAP_DESCRIPTOR: Final = 16
_STATUS_HEADER: Final = 8
_STATUS_DESCRIPTOR: Final = 16
_MAPPED: Final = 0  # provisioning status (SBC-3 table 68)
_DEALLOCATED: Final = 1
_MAX_COUNT: Final = (1 << 32) - 1  # blocks in a status descriptor


# -- UNMAP


def unmap(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    length = u16(cdb, 7)
    if not length:
        return DONE
    if length < _UNMAP_HEADER:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    return Prepared(length, lambda data: _unmap(unit, bytes(data)))


def _unmap(unit: "LogicalUnit", parameters: bytes) -> Steps | Result:
    ranges = [block_range(unit, lba, count) for lba, count in unmap_ranges(unit, parameters)]
    requests = [Request(OP_UNMAP, offset, length) for offset, length in ranges if length]
    return _unmap_all(unit, requests) if requests else DONE


def _unmap_all(unit: "LogicalUnit", requests: list[Request]) -> Steps:
    yield from perform(unit.device, *requests)
    return DONE


def unmap_ranges(unit: "LogicalUnit", parameters: bytes) -> list[tuple[int, int]]:
    """(lba, count) of each descriptor in the parameter list of an UNMAP (SBC-3 5.28.2).

    CheckCondition for a list that is cut off or asks for too much; LBAs are not looked at.
    """
    if len(parameters) < _UNMAP_HEADER:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    described = u16(parameters, 2)
    if u16(parameters, 0) + 2 < _UNMAP_HEADER + described:
        raise invalid_field(0, in_cdb=False)
    if _UNMAP_HEADER + described > len(parameters):
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    found = [
        (u64(parameters, at), u32(parameters, at + 8))
        for at in range(
            _UNMAP_HEADER, _UNMAP_HEADER + described - _UNMAP_DESCRIPTOR + 1, _UNMAP_DESCRIPTOR
        )
    ]
    if len(found) > MAX_UNMAP_DESCRIPTORS:
        raise invalid_field(2, in_cdb=False)
    if sum(count for _, count in found) * unit.block_size > MAX_UNMAP_BYTES:
        raise invalid_field(_UNMAP_HEADER + 8, in_cdb=False)
    return found


# -- WRITE SAME

_UNMAP: Final = 0x08  # byte 1
_NDOB: Final = 0x01  # byte 1, (16) only


def _write_same(
    unit: "LogicalUnit", lba: int, count: int, flags: int, field: int
) -> Result | Prepared:
    """`field`: where the CDB has its number of blocks; 0 of them mean up to the last one."""
    offset, length = block_range(unit, lba, count)
    if not count:
        length = unit.device.size - offset
        if not length:
            raise CheckCondition(sense.LBA_OUT_OF_RANGE)
    if length > MAX_WRITE_SAME_BLOCKS * unit.block_size:
        raise invalid_field(field)
    unmapping = bool(flags & _UNMAP)
    if flags & _NDOB:
        return Prepared(0, lambda _: _write_zeros(unit, offset, length, unmapping))
    return Prepared(
        unit.block_size,
        lambda data: _write_block(unit, offset, length, bytes(data), unmapping),
        exact=True,
    )


def _write_block(
    unit: "LogicalUnit", offset: int, length: int, block: bytes, unmapping: bool
) -> Steps:
    if unmapping or is_zero(block):
        return _write_zeros(unit, offset, length, unmapping)
    return write_pattern(unit, offset, length, block)


def _write_zeros(unit: "LogicalUnit", offset: int, length: int, unmapping: bool) -> Steps:
    op = OP_UNMAP if unmapping else OP_WRITE_ZEROES
    yield from perform(unit.device, Request(op, offset, length))
    return DONE


def write_pattern(
    unit: "LogicalUnit", offset: int, length: int, block: bytes, flags: int = 0
) -> Steps:
    """Steps that write the same block all over a range, one piece at a time; a result that is GOOD.
    `flags` of each WRITE."""
    pattern = memoryview(block * (min(length, PIECE_BYTES) // len(block)))
    for start, part in pieces(length, len(pattern)):
        yield from perform(
            unit.device, Request(OP_WRITE, offset + start, part, pattern[:part], flags)
        )
    return DONE


def write_same_10(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _write_same(unit, u32(cdb, 2), u16(cdb, 7), cdb[1] & ~_NDOB, 7)


def write_same_16(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    return _write_same(unit, u64(cdb, 2), u32(cdb, 10), cdb[1], 10)


# -- GET LBA STATUS


def get_lba_status(unit: "LogicalUnit", _: Nexus, cdb: bytes) -> Result | Prepared:
    lba = u64(cdb, 2)
    if lba >= unit.block_count:
        raise CheckCondition(sense.LBA_OUT_OF_RANGE)
    return Prepared(0, lambda _: _get_lba_status(unit, lba, u32(cdb, 10)))


def _get_lba_status(unit: "LogicalUnit", lba: int, allocation: int) -> Steps:
    room = (allocation - _STATUS_HEADER) // _STATUS_DESCRIPTOR
    wanted = min(max(room, 1), MAX_STATUS_DESCRIPTORS)
    block_size = unit.block_size
    start = lba * block_size
    end = min(unit.block_count * block_size, start + MAX_STATUS_BYTES)
    runs: list[tuple[int, bool]] = []
    at = start
    while at < end and len(runs) <= wanted:  # one more: the last one may go on
        request = Request(OP_BLOCK_STATUS, at, end - at)
        yield from perform(unit.device, request)
        for length, flags in _extents(request, end - at):
            at += length
            if runs and runs[-1][1] == bool(flags & STATE_HOLE):
                runs[-1] = (at, runs[-1][1])
            else:
                runs.append((at, bool(flags & STATE_HOLE)))
    described = list(_descriptors(lba, status_runs(start, runs, block_size)))[:wanted]
    body = bytes(4) + b"".join(described)
    return Result(GOOD, ((len(body).to_bytes(4, "big") + body)[:allocation],))


def _extents(request: Request, length: int) -> Iterable[tuple[int, int]]:
    """What a BLOCK_STATUS told, not beyond what it was asked."""
    assert isinstance(request.data, list)
    for extent, flags in request.data:
        if length <= 0:
            break
        yield min(extent, length), flags
        length -= extent


def status_runs(
    start: int, runs: Iterable[tuple[int, bool]], block_size: int
) -> Iterator[tuple[int, bool]]:
    """Runs as (end in bytes, whether a hole), one behind the other from `start` on, as (block
    count, whether deallocated). A block with any byte mapped is mapped. Neighbours differ."""
    found: list[tuple[int, bool]] = []  # (end in blocks, hole)
    for end, hole in runs:
        edge = end // block_size if hole else -(-end // block_size)
        before = found[-1][0] if found else start // block_size
        if edge <= before:
            continue
        if found and found[-1][1] == hole:
            found.pop()
        found.append((edge, hole))
    at = start // block_size
    for edge, hole in found:
        yield edge - at, hole
        at = edge


def _descriptors(lba: int, runs: Iterable[tuple[int, bool]]) -> Iterator[bytes]:
    for count, deallocated in runs:
        status = _DEALLOCATED if deallocated else _MAPPED
        while count:
            part = min(count, _MAX_COUNT)
            yield lba.to_bytes(8, "big") + part.to_bytes(4, "big") + bytes((status, 0, 0, 0))
            lba += part
            count -= part


OPCODES: Final = (
    Opcode(
        *(0x42, None, "UNMAP", b"\x42\x00\x00\x00\x00\x00\x1f\xff\xff\x00", unmap),
        changes_medium=True,
    ),
    Opcode(
        *(0x41, None, "WRITE SAME (10)", usage_10(0x41, _UNMAP), write_same_10),
        changes_medium=True,
    ),
    Opcode(
        *(0x93, None, "WRITE SAME (16)", usage_16(0x93, _UNMAP | _NDOB), write_same_16),
        changes_medium=True,
    ),
    Opcode(
        *(0x9E, 0x12, "GET LBA STATUS", b"\x9e\x12" + b"\xff" * 12 + b"\x00\x00", get_lba_status),
        reservation="read",
    ),
)
