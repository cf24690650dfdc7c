"""EXTENDED COPY and RECEIVE COPY RESULTS: the server copies, the data never crosses the network.

LID1 with block to block segments (SPC-4 6.4, 6.17 to 6.20): what VMware clones and moves disks
with. Segments are done one after the other. Volumes of one store share chunks (`ClonesRanges`),
which takes no time; what cannot be shared is read and written in pieces: also what is before the
first chunk that begins in the segment, on both sides at once. The command answers when
all is in the journal, as after a WRITE.

A segment that fails ends the copy with COPY ABORTED: INFORMATION tells how many of its blocks were
left, COMMAND-SPECIFIC INFORMATION which it was. Segments before it stay done.

    0A/0804   no such entry in the CSCD list
    0A/0D02   no volume of that designator here that the initiator is logged in to, or the null
              device
    0A/0D03   its blocks have another size than the initiator believes
    0A/0D01   the volume refused or failed: reserved by another, read-only, sanitized, I/O error
    0A/260A   what is to be copied does not fill the last block, and no PAD says what to do
    0A/0000   beyond the last block

PAD (SPC-4 table 121): with that of the destination its last block is filled up with zeros, else
with that of the source the rest is left away. CAT would keep it for the next segment; it is taken
as if neither were set.

How copies went is kept for each nexus and list identifier, so that COPY STATUS and FAILED SEGMENT
DETAILS have an answer: a bounded number of them, in memory, until the nexus is gone.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blockd.access.rules import Grant
from blockd.device import BlockDevice, ClonesRanges
from blockd.scsi import copy_list, sense
from blockd.scsi.cdb import MAX_CDB, Opcode, u32
from blockd.scsi.copy_list import Cscd, Segment
from blockd.scsi.disk import (
    DONE,
    READ_16,
    WRITE_16,
    block_range,
    perform,
    pieces,
    read_bytes,
)
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import (
    COPY_ABORTED,
    ILLEGAL_REQUEST,
    CheckCondition,
    ReservationConflict,
    Sense,
    invalid_field,
)
from blockd.scsi.task import BUSY, GOOD, Prepared, Result, Steps, Submit, Work
from native import OP_WRITE, OP_WRITE_ZEROES, Request, is_zero
from volume.errors import VolumeError

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

MAX_SEGMENT_BYTES: Final = 1 << 28
"""65,535 blocks of 4 KiB: what a segment descriptor can ask for. RECEIVE COPY RESULTS tells it."""
MAX_COPIES: Final = 16
"""At a time, on one unit: each has a piece in memory. RECEIVE COPY RESULTS tells it."""
MAX_RESULTS: Final = 16
"""Kept for one nexus; the oldest is forgotten for a new one."""
RESULT_ACTIONS: Final = (0x00, 0x01, 0x03, 0x04)
"""Service actions of RECEIVE COPY RESULTS; VPD 8F tells them."""

_COPY_STATUS, _RECEIVE_DATA, _OPERATING_PARAMETERS, _FAILED_SEGMENT_DETAILS = RESULT_ACTIONS
_MAX_LIST_BYTES: Final = copy_list.HEADER_BYTES + copy_list.MAX_DESCRIPTOR_BYTES
_OPERATION_IN_PROGRESS: Final = Sense(ILLEGAL_REQUEST, 0x00, 0x16)
_KIB: Final = 0x01  # transfer count units
_MAX_COUNT: Final = (1 << 32) - 1

# ASC and ASCQ of COPY ABORTED.
_NOTHING_TO_ADD: Final = (0x00, 0x00)
_UNREACHABLE: Final = (0x08, 0x04)
_DEVICE_FAILURE: Final = (0x0D, 0x01)
_NOT_REACHABLE: Final = (0x0D, 0x02)
_WRONG_DEVICE: Final = (0x0D, 0x03)
_WRONG_LENGTH: Final = (0x26, 0x00)
_INEXACT: Final = (0x26, 0x0A)


# -- what is kept of copies


@dataclass(slots=True)
class CopyRecord:
    """One EXTENDED COPY, while it runs and afterwards."""

    running: bool = True
    segments: int = 0
    """Done."""
    transferred: int = 0
    """Bytes."""
    failure: Sense | None = None


class CopyResults:
    """Of one unit."""

    def __init__(self) -> None:
        self.running = 0
        self._records: dict[Nexus, dict[int, CopyRecord]] = {}

    def begin(self, nexus: Nexus, list_id: int | None) -> CopyRecord:
        """CheckCondition when a copy of that nexus with that identifier runs."""
        record = CopyRecord()
        if list_id is not None:
            records = self._records.setdefault(nexus, {})
            if (older := records.pop(list_id, None)) is not None and older.running:
                records[list_id] = older
                raise CheckCondition(_OPERATION_IN_PROGRESS)
            if len(records) == MAX_RESULTS:
                records.pop(next(iter(records)))
            records[list_id] = record
        self.running += 1
        return record

    def end(self, record: CopyRecord) -> None:
        record.running = False
        self.running -= 1

    def get(self, nexus: Nexus, list_id: int) -> CopyRecord | None:
        return self._records.get(nexus, {}).get(list_id)

    def forget(self, nexus: Nexus) -> None:
        """The nexus is gone."""
        self._records.pop(nexus, None)


# -- EXTENDED COPY


def extended_copy(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result | Prepared:
    length = u32(cdb, 10)
    if not length:
        return DONE
    if not copy_list.HEADER_BYTES <= length <= _MAX_LIST_BYTES:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    return Prepared(length, lambda data: _extended_copy(unit, nexus, bytes(data)))


def _extended_copy(unit: "LogicalUnit", nexus: Nexus, parameters: bytes) -> Steps | Result:
    plan = copy_list.decode(parameters)
    if unit.copies.running == MAX_COPIES:
        return Result(BUSY)
    record = unit.copies.begin(nexus, plan.list_id)
    return _carry_out(_Copy(unit, nexus, plan, record))


class _Copy(NamedTuple):
    """What the functions below share."""

    unit: "LogicalUnit"
    nexus: Nexus
    plan: copy_list.CopyList
    record: CopyRecord


def _carry_out(copy: _Copy) -> Steps:
    record = copy.record
    try:
        for segment in copy.plan.segments:
            yield from _copy_segment(copy, segment)
            record.segments += 1
    except CheckCondition as error:
        record.failure = error.sense
        raise
    except GeneratorExit:  # aborted
        record.failure = Sense(COPY_ABORTED, *_NOTHING_TO_ADD)
        raise
    finally:
        copy.unit.copies.end(record)
    return DONE


class _Range(NamedTuple):
    """What a segment reads or writes."""

    device: BlockDevice
    offset: int
    length: int


class _Aborted(Exception):
    """A segment cannot go on: ASC and ASCQ."""

    def __init__(self, code: tuple[int, int]) -> None:
        super().__init__(f"ASC/ASCQ {code[0]:02x}/{code[1]:02x}")
        self.code = code


def _copy_segment(copy: _Copy, segment: Segment) -> Generator[Submit | Work, Any, None]:
    """CheckCondition with COPY ABORTED."""
    before = copy.record.transferred
    unit_bytes = 1
    try:
        source = _unit(copy, segment.source, READ_16)
        destination = _unit(copy, segment.destination, WRITE_16)
        counted = destination if segment.in_destination_blocks else source
        unit_bytes = counted.block_size
        read, written = _ranges(copy, segment, source, destination)
        yield from _copy_range(copy.record, read, written)
    except (CheckCondition, ReservationConflict, VolumeError, OSError) as error:
        # Of whoever holds the data: told in the copy's own words.
        raise _abort(copy, segment, before, unit_bytes, _DEVICE_FAILURE) from error
    except _Aborted as error:
        raise _abort(copy, segment, before, unit_bytes, error.code) from error


def _abort(
    copy: _Copy, segment: Segment, before: int, unit_bytes: int, code: tuple[int, int]
) -> CheckCondition:
    done = (copy.record.transferred - before) // unit_bytes
    return CheckCondition(
        Sense(
            *(COPY_ABORTED, *code),
            information=max(segment.count - done, 0),
            command_specific=copy.record.segments,
        )
    )


def _unit(copy: _Copy, index: int, opcode: Opcode) -> "LogicalUnit":
    """The unit of a CSCD, which lets the nexus do what `opcode` does. _Aborted, CheckCondition,
    ReservationConflict."""
    cscds = copy.plan.cscds
    if index >= len(cscds):
        raise _Aborted(_UNREACHABLE)
    cscd = cscds[index]
    unit = None if cscd.null else copy.unit.surroundings.unit(cscd.designator)
    grant = Grant.NOTHING if unit is None else copy.nexus.granted(unit)
    if unit is None or not grant or not _is_known(unit, copy.nexus):
        raise _Aborted(_NOT_REACHABLE)
    if cscd.block_length not in (0, unit.block_size):
        raise _Aborted(_WRONG_DEVICE)
    unit.sanitizing.check(opcode)
    unit.reservations.check(copy.nexus, opcode, bytes(MAX_CDB))
    if opcode.changes_medium and (unit.read_only or grant is Grant.READ):
        raise CheckCondition(sense.WRITE_PROTECTED)
    return unit


def _is_known(unit: "LogicalUnit", nexus: Nexus) -> bool:
    """Whether the initiator is logged in to `unit`, by whatever session: a designator, which
    anybody may guess or have seen, opens nothing that access lists and CHAP keep closed."""
    return any(each.initiator == nexus.initiator for each in unit.nexuses)


def _ranges(
    copy: _Copy, segment: Segment, source: "LogicalUnit", destination: "LogicalUnit"
) -> tuple[_Range, _Range]:
    """What is read and what is written: the latter may be longer, and is filled up with zeros."""
    cscds = copy.plan.cscds
    counted = destination if segment.in_destination_blocks else source
    other = source if segment.in_destination_blocks else destination
    length = written = segment.count * counted.block_size
    if length > MAX_SEGMENT_BYTES:
        raise _Aborted(_WRONG_LENGTH)
    if rest := length % other.block_size:
        pad = _padding(cscds[segment.source], cscds[segment.destination], segment)
        if not segment.in_destination_blocks:
            written += destination.block_size - rest if pad else -rest
            length = min(length, written)
    try:
        source_blocks = -(-length // source.block_size)
        read_at, _ = block_range(source, segment.source_lba, source_blocks)
        write_at, _ = block_range(
            destination, segment.destination_lba, written // destination.block_size
        )
    except CheckCondition as error:
        raise _Aborted(_NOTHING_TO_ADD) from error
    return _Range(source.device, read_at, length), _Range(destination.device, write_at, written)


def _padding(source: Cscd, destination: Cscd, segment: Segment) -> bool:
    """Whether a block that is not filled is filled up, instead of left away."""
    if segment.kept_residual or not (source.pad or destination.pad):
        raise _Aborted(_INEXACT)
    return destination.pad


def _copy_range(
    record: CopyRecord, read: _Range, written: _Range
) -> Generator[Submit | Work, Any, None]:
    overlapping = (
        read.device is written.device
        and read.offset < written.offset + written.length
        and written.offset < read.offset + read.length
    )
    start = 0
    if not overlapping and isinstance(written.device, ClonesRanges):
        head = _before_shared(written.device, read, written.offset)
        if head is not None:
            yield from _copy_pieces(record, read, written, [*pieces(head)])
            start = head + (yield from _share(record, written.device, read, written.offset, head))
    parts = [(start + at, part) for at, part in pieces(read.length - start)]
    if overlapping and read.offset < written.offset:
        parts.reverse()  # else a piece would be written over before it was read
    yield from _copy_pieces(record, read, written, parts)
    if padding := written.length - read.length:
        request = Request(OP_WRITE_ZEROES, written.offset + read.length, padding)
        yield from perform(written.device, request)


def _copy_pieces(
    record: CopyRecord, read: _Range, written: _Range, parts: list[tuple[int, int]]
) -> Generator[Submit | Work, Any, None]:
    """Copy (start, length) of the ranges, one after the other."""
    for start, part in parts:
        data = yield from read_bytes(read.device, read.offset + start, part)
        yield from _put(written.device, written.offset + start, data)
        record.transferred += part


def _before_shared(device: ClonesRanges, read: _Range, offset: int) -> int | None:
    """Bytes before the first that can be shared; None when none can.

    Partitions begin anywhere, but mostly at the same place of a chunk on both sides."""
    granularity = device.clone_granularity
    head = -offset % granularity
    if (read.offset - offset) % granularity or head >= read.length:
        return None
    return head


def _share(
    record: CopyRecord, device: ClonesRanges, read: _Range, offset: int, head: int
) -> Generator[Submit | Work, Any, int]:
    """Bytes that did not have to be copied, after the first `head`."""
    length = read.length - head
    shared = yield Work(
        lambda: device.clone_range(offset + head, read.device, read.offset + head, length)
    )
    assert isinstance(shared, int)
    assert 0 <= shared <= length
    record.transferred += shared
    return shared


def _put(device: BlockDevice, offset: int, data: bytes) -> Generator[Submit | Work, Any, None]:
    if is_zero(data):
        request = Request(OP_WRITE_ZEROES, offset, len(data))
    else:
        request = Request(OP_WRITE, offset, len(data), data)
    yield from perform(device, request)


# -- RECEIVE COPY RESULTS


def _answer(body: bytes, cdb: bytes) -> Result:
    """`body` behind its length, cut to the allocation length."""
    return Result(GOOD, ((len(body).to_bytes(4, "big") + body)[: u32(cdb, 10)],))


def _record(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> CopyRecord:
    record = unit.copies.get(nexus, cdb[2])
    if record is None:
        raise invalid_field(2)
    return record


def _finished_record(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> CopyRecord:
    record = _record(unit, nexus, cdb)
    if record.running:
        raise invalid_field(2)
    return record


def copy_status(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result:
    record = _record(unit, nexus, cdb)
    status = 0x00 if record.running else 0x01 if record.failure is None else 0x02
    body = bytes((status,)) + record.segments.to_bytes(2, "big") + bytes((_KIB,))
    return _answer(body + min(record.transferred >> 10, _MAX_COUNT).to_bytes(4, "big"), cdb)


def receive_data(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result:
    """No segment descriptor that we know holds data for the initiator."""
    _finished_record(unit, nexus, cdb)
    return _answer(b"", cdb)


def failed_segment_details(unit: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result:
    record = _finished_record(unit, nexus, cdb)
    if record.failure is None:
        return _answer(b"", cdb)
    encoded = record.failure.encode()
    body = bytes(52) + bytes((0x02, 0)) + len(encoded).to_bytes(2, "big") + encoded
    return _answer(body, cdb)


def operating_parameters(_: "LogicalUnit", __: Nexus, cdb: bytes) -> Result:
    types = (*copy_list.SEGMENT_TYPES, *copy_list.CSCD_TYPES)
    body = bytes((0x01, 0, 0, 0))  # SNLID: copies without a list identifier
    body += copy_list.MAX_CSCDS.to_bytes(2, "big") + copy_list.MAX_SEGMENTS.to_bytes(2, "big")
    body += copy_list.MAX_DESCRIPTOR_BYTES.to_bytes(4, "big") + MAX_SEGMENT_BYTES.to_bytes(4, "big")
    body += bytes(4 + 4 + 4 + 2)  # inline data, held data, stream transfers: none
    body += MAX_COPIES.to_bytes(2, "big") + bytes((MAX_COPIES,))
    body += bytes((9, 0, 0, 0, 0, 0))  # granularity of data: 2^9
    return _answer(body + bytes((len(types), *types)), cdb)


def _results_usage(action: int) -> bytes:
    return bytes((0x84, action, 0xFF)) + bytes(7) + b"\xff\xff\xff\xff\x00\x00"


OPCODES: Final = (
    Opcode(
        *(0x83, 0x00, "EXTENDED COPY (LID1)"),
        *(b"\x83\x00" + bytes(8) + b"\xff\xff\xff\xff\x00\x00", extended_copy),
    ),
    Opcode(
        *(0x84, _COPY_STATUS, "RECEIVE COPY STATUS (LID1)"),
        *(_results_usage(_COPY_STATUS), copy_status),
    ),
    Opcode(
        *(0x84, _RECEIVE_DATA, "RECEIVE COPY DATA (LID1)"),
        *(_results_usage(_RECEIVE_DATA), receive_data),
    ),
    Opcode(
        *(0x84, _OPERATING_PARAMETERS, "RECEIVE COPY OPERATING PARAMETERS"),
        *(_results_usage(_OPERATING_PARAMETERS), operating_parameters),
    ),
    Opcode(
        *(0x84, _FAILED_SEGMENT_DETAILS, "RECEIVE COPY FAILURE DETAILS (LID1)"),
        *(_results_usage(_FAILED_SEGMENT_DETAILS), failed_segment_details),
    ),
)
