"""The parameter list of EXTENDED COPY (LID1), decoded (SPC-4 6.4.3 to 6.4.6).

    offset  header (16 bytes)              then CSCD descriptors, 32 bytes each:
     0      list identifier                 0  E4h: named by a designator
     1      STR, list id usage, priority    1  LU ID type, null, peripheral device type
     2..3   length of the CSCD list         4  code set, association, designator, 24 bytes
     8..11  length of the segment list      28 PAD
    12..15  length of the inline data       29..31  block length
                                           then segment descriptors, 28 bytes each:
     0      02h: blocks to blocks           8..11   number of blocks, in its lower half
     1      DC, CAT                        12..19   first block of the source
     4..7   indexes of source and           20..27  first block of the destination
            destination in the CSCD list

STR is about tapes, priority is a hint, and SPC-4 took the LU ID type back: all are ignored. Other
descriptors and inline data are refused. Whether the devices that descriptors name exist is found
out when a segment needs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from blockd.scsi import sense
from blockd.scsi.cdb import u16, u32, u64
from blockd.scsi.sense import ILLEGAL_REQUEST, CheckCondition, Sense, invalid_field

HEADER_BYTES: Final = 16
MAX_CSCDS: Final = 16
"""VPD 8F and RECEIVE COPY RESULTS tell these: more than any initiator sends in one list."""
MAX_SEGMENTS: Final = 64
MAX_DESCRIPTOR_BYTES: Final = MAX_CSCDS * 32 + MAX_SEGMENTS * 28
CSCD_TYPES: Final = (0xE4,)
SEGMENT_TYPES: Final = (0x02,)

HOLD: Final = 0  # LIST ID USAGE
DISCARD: Final = 2
NO_LIST_ID: Final = 3

_CSCD_BYTES: Final = 32
_SEGMENT_BYTES: Final = 28
_SEGMENT_LENGTH: Final = _SEGMENT_BYTES - 4  # as the descriptor has it

_TOO_MANY_CSCDS: Final = Sense(ILLEGAL_REQUEST, 0x26, 0x06)
_UNKNOWN_CSCD: Final = Sense(ILLEGAL_REQUEST, 0x26, 0x07)
_TOO_MANY_SEGMENTS: Final = Sense(ILLEGAL_REQUEST, 0x26, 0x08)
_UNKNOWN_SEGMENT: Final = Sense(ILLEGAL_REQUEST, 0x26, 0x09)
_INLINE_DATA: Final = Sense(ILLEGAL_REQUEST, 0x26, 0x0B)


@dataclass(frozen=True, slots=True)
class Cscd:
    """A copy source or copy destination."""

    designator: bytes
    """As VPD page 83h has it."""
    null: bool
    """Stands for no device."""
    pad: bool
    block_length: int
    """What the initiator believes; 0 when it left that out."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Blocks to be copied from one CSCD to another."""

    source: int
    """Index in the list of CSCDs, which may have no such entry; so has `destination`."""
    destination: int
    count: int
    """In blocks of the source, or of the destination."""
    in_destination_blocks: bool
    """DC."""
    kept_residual: bool
    """CAT: what does not fill a block goes to the next segment."""
    source_lba: int
    destination_lba: int


@dataclass(frozen=True, slots=True)
class CopyList:
    list_id: int | None
    """None when no results are to be kept."""
    cscds: tuple[Cscd, ...]
    segments: tuple[Segment, ...]


def decode(parameters: bytes) -> CopyList:
    """CheckCondition for what is cut off, wrong or not supported."""
    if len(parameters) < HEADER_BYTES:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    list_id, usage = parameters[0], parameters[1] >> 3 & 3
    cscd_bytes, segment_bytes = u16(parameters, 2), u32(parameters, 8)
    if usage not in (HOLD, DISCARD, NO_LIST_ID):
        raise invalid_field(1, 4, in_cdb=False)
    if usage == NO_LIST_ID and list_id:
        raise invalid_field(0, in_cdb=False)
    if u32(parameters, 12):
        raise CheckCondition(_INLINE_DATA)
    segments_at = HEADER_BYTES + cscd_bytes
    end = segments_at + segment_bytes
    if end > len(parameters) or end > HEADER_BYTES + MAX_DESCRIPTOR_BYTES:
        raise CheckCondition(sense.PARAMETER_LIST_LENGTH)
    return CopyList(
        None if usage == NO_LIST_ID else list_id,
        tuple(_cscds(parameters, HEADER_BYTES, segments_at)),
        tuple(_segments(parameters, segments_at, end)),
    )


def _cscds(parameters: bytes, at: int, end: int) -> Iterator[Cscd]:
    if (end - at) % _CSCD_BYTES:
        raise invalid_field(2, in_cdb=False)
    if (end - at) // _CSCD_BYTES > MAX_CSCDS:
        raise CheckCondition(_TOO_MANY_CSCDS)
    for start in range(at, end, _CSCD_BYTES):
        yield _cscd(parameters[start : start + _CSCD_BYTES], start)


def _cscd(descriptor: bytes, at: int) -> Cscd:
    """`at`: where it is in the list, to point at."""
    disk = descriptor[1] & 0x1F == 0
    if descriptor[0] not in CSCD_TYPES or not disk:
        raise CheckCondition(_UNKNOWN_CSCD)
    length = descriptor[7]
    if length > 20:
        raise invalid_field(at + 7, in_cdb=False)
    return Cscd(
        designator=descriptor[8 : 8 + length],
        null=bool(descriptor[1] & 0x20),
        pad=bool(descriptor[28] & 0x04),
        block_length=int.from_bytes(descriptor[29:32], "big"),
    )


def _segments(parameters: bytes, at: int, end: int) -> Iterator[Segment]:
    if (end - at) // _SEGMENT_BYTES > MAX_SEGMENTS:
        raise CheckCondition(_TOO_MANY_SEGMENTS)
    while at < end:
        if parameters[at] not in SEGMENT_TYPES:
            raise CheckCondition(_UNKNOWN_SEGMENT)
        if end - at < _SEGMENT_BYTES or u16(parameters, at + 2) != _SEGMENT_LENGTH:
            raise invalid_field(at + 2, in_cdb=False)
        yield Segment(
            source=u16(parameters, at + 4),
            destination=u16(parameters, at + 6),
            count=u16(parameters, at + 10),
            in_destination_blocks=bool(parameters[at + 1] & 0x02),
            kept_residual=bool(parameters[at + 1] & 0x01),
            source_lba=u64(parameters, at + 12),
            destination_lba=u64(parameters, at + 20),
        )
        at += _SEGMENT_BYTES
