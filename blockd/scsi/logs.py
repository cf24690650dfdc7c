"""LOG SENSE (SPC-4 6.8, 7.3): which log pages there are, and how full the store is.

    00, 00/FF   Supported Log Pages (and Subpages)
    0C          Logical Block Provisioning (SBC-3 6.4.5): available and used space

Space is that of the store, which all volumes share, counted in threshold sets (VPD B2) of 1 MiB.
"""

import struct
from typing import TYPE_CHECKING, Final

from blockd.scsi.cdb import Opcode, u16
from blockd.scsi.modes import THRESHOLD_SET_BYTES
from blockd.scsi.sense import invalid_field
from blockd.scsi.task import Result

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

_SUPPORTED: Final = 0x00
_PROVISIONING: Final = 0x0C
_ALL_SUBPAGES: Final = 0xFF
_SPF: Final = 0x40
_CUMULATIVE: Final = 1  # PC: current values
_PAGES: Final = ((0x00, 0x00), (0x00, 0xFF), (0x0C, 0x00))

_AVAILABLE: Final = 0x0001  # parameter codes
_USED: Final = 0x0002
_BINARY_LIST: Final = 0x03  # format and linking
_SHARED: Final = 0x02  # scope: other units may take from it as well
_PARAMETER: Final = struct.Struct(">HBBIB3x")
_MAX_COUNT: Final = (1 << 32) - 1


def _supported(subpage: int) -> bytes:
    if subpage == _ALL_SUBPAGES:
        return bytes(number for page in _PAGES for number in page)
    return bytes(page for page, sub in _PAGES if sub == 0)


def _resources(unit: "LogicalUnit", pointer: int) -> bytes:
    """Parameters from code `pointer` on."""
    space = unit.surroundings.space()
    counts = (
        (_AVAILABLE, space.available_bytes // THRESHOLD_SET_BYTES),
        (_USED, -(-space.used_bytes // THRESHOLD_SET_BYTES)),
    )
    if pointer > counts[-1][0]:
        raise invalid_field(5)
    return b"".join(
        _PARAMETER.pack(code, _BINARY_LIST, _PARAMETER.size - 4, min(count, _MAX_COUNT), _SHARED)
        for code, count in counts
        if code >= pointer
    )


def log_sense(unit: "LogicalUnit", _: "Nexus", cdb: bytes) -> Result:
    page, subpage, pointer = cdb[2] & 0x3F, cdb[3], u16(cdb, 5)
    if (page, subpage) not in _PAGES:
        known = any(page == code for code, _sub in _PAGES)
        raise invalid_field(3, 7) if known else invalid_field(2, 5)
    if page == _SUPPORTED:  # a list without parameters: PC means nothing
        if pointer:
            raise invalid_field(5)
        body = _supported(subpage)
    else:
        if cdb[2] >> 6 != _CUMULATIVE:
            raise invalid_field(2, 7)
        body = _resources(unit, pointer)
    header = bytes((page | (_SPF if subpage else 0), subpage)) + len(body).to_bytes(2, "big")
    return Result(data=((header + body)[: u16(cdb, 7)],))


OPCODES: Final = (
    Opcode(
        0x4D,
        None,
        "LOG SENSE",
        bytes.fromhex("4d00ffff00ffffffff00"),
        log_sense,
        reservation="allowed",
    ),
)
