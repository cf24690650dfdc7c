"""READ CAPACITY (10, 16) and READ DEFECT DATA (10, 12): how large a unit is, and that it is whole.

Physical blocks are told as the logical ones (SBC-3 5.16): a write of one block reads nothing first.
That 4 KiB are a better size is told as the granularity of transfers (VPD B0).
"""

import struct
from typing import TYPE_CHECKING, Final

from blockd.scsi.cdb import Opcode, u16, u32
from blockd.scsi.sense import invalid_field
from blockd.scsi.task import Result

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

_CAPACITY_10: Final = struct.Struct(">II")
_CAPACITY_16: Final = struct.Struct(">QIBBBB16x")
_MAX_LBA_10: Final = (1 << 32) - 1
_LBPME: Final = 0x80  # byte 14: UNMAP works
_LBPRZ: Final = 0x40  # and what is unmapped reads zeros

_LISTS: Final = 0x18  # REQ_PLIST, REQ_GLIST, and PLISTV, GLISTV in the answer
_FORMAT: Final = 0x07
_RESERVED_FORMAT: Final = 0x07


def read_capacity_10(unit: "LogicalUnit", _nexus: "Nexus", _cdb: bytes) -> Result:
    """A last LBA of FFFFFFFFh says: ask by READ CAPACITY (16)."""
    last_lba = min(unit.block_count - 1, _MAX_LBA_10)
    return Result(data=(_CAPACITY_10.pack(last_lba, unit.block_size),))


def read_capacity_16(unit: "LogicalUnit", _: "Nexus", cdb: bytes) -> Result:
    # One logical block for each physical one: no write reads anything first, however small it is.
    data = _CAPACITY_16.pack(unit.block_count - 1, unit.block_size, 0, 0, _LBPME | _LBPRZ, 0)
    return Result(data=(data[: u32(cdb, 10)],))


def _lists(flags: int, field: int) -> int:
    """Flags of the answer: the lists that were asked for are there, in the format asked for. They
    are empty, which looks the same in every format."""
    if flags & _FORMAT == _RESERVED_FORMAT:
        raise invalid_field(field, 2)
    return flags & (_LISTS | _FORMAT)


def read_defect_data_10(_unit: "LogicalUnit", _: "Nexus", cdb: bytes) -> Result:
    data = bytes((0, _lists(cdb[2], 2), 0, 0))
    return Result(data=(data[: u16(cdb, 7)],))


def read_defect_data_12(_unit: "LogicalUnit", _: "Nexus", cdb: bytes) -> Result:
    data = bytes((0, _lists(cdb[1], 1), 0, 0, 0, 0, 0, 0))
    return Result(data=(data[: u32(cdb, 6)],))


OPCODES: Final = (
    Opcode(
        0x25,
        None,
        "READ CAPACITY (10)",
        bytes.fromhex("25000000000000000000"),
        read_capacity_10,
        reservation="allowed",
    ),
    Opcode(
        0x9E,
        0x10,
        "READ CAPACITY (16)",
        bytes.fromhex("9e100000000000000000ffffffff0000"),
        read_capacity_16,
        reservation="allowed",
    ),
    Opcode(
        0x37,
        None,
        "READ DEFECT DATA (10)",
        bytes.fromhex("37001f00000000ffff00"),
        read_defect_data_10,
        reservation="read",
    ),
    Opcode(
        0xB7,
        None,
        "READ DEFECT DATA (12)",
        bytes.fromhex("b71fffffffffffffffff0000"),
        read_defect_data_12,
        reservation="read",
    ),
)
