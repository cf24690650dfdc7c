"""CDBs: which there are, how long they are, which bits of them mean something.

Every module with commands has a tuple `OPCODES` of `Opcode`; `blockd.scsi.opcodes` puts them
together into the table that units dispatch by and REPORT SUPPORTED OPERATION CODES tells.
Fields are read with `int.from_bytes` or the functions below; a CDB is always `MAX_CDB` bytes here,
padded with zeros, so that no reader looks beyond its end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blockd.scsi.sense import invalid_field
from blockd.scsi.task import Prepared, Result, Single

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

MAX_CDB: Final = 260  # SPC-4 4.2.1: the longest variable length CDB

Prepare = Callable[["LogicalUnit", "Nexus", bytes], Result | Single | Prepared]


@dataclass(frozen=True, slots=True)
class Opcode:
    """One command, or one service action of one."""

    code: int
    action: int | None
    """Service action; None for commands without (or where all are one entry)."""
    name: str
    usage: bytes
    """CDB usage data (SPC-4 6.35.3): its length is the CDB's; a bit is 1 where the field is looked
    at. Bits that are 0 in here and 1 in a CDB make INVALID FIELD IN CDB. The first byte is the
    operation code, the service action is as it stands in a CDB."""
    prepare: Prepare
    changes_medium: bool = False
    """Writes: refused when the unit is read-only."""
    changes_unit: bool = False
    """Changes what holds for other initiators as well, beside blocks: refused to who may only
    read."""
    reservation: str = "write"
    """What it takes under a persistent reservation of somebody else (SPC-4 5.13.4): "allowed",
    "read" (allowed for Write Exclusive types), "write" (a conflict)."""
    skips_attention: bool = False
    """INQUIRY, REPORT LUNS, REQUEST SENSE: a pending unit attention stays pending."""
    reserved: int = field(init=False, repr=False)
    """The bits of a CDB that mean nothing, as one number: every command is checked for them."""

    def __post_init__(self) -> None:
        reserved = ~int.from_bytes(self.usage, "big") & ((1 << 8 * len(self.usage)) - 1)
        object.__setattr__(self, "reserved", reserved)


def check_reserved(opcode: Opcode, cdb: bytes) -> None:
    """Refuse a CDB with bits set that mean nothing: CheckCondition names the first of them."""
    length = len(opcode.usage)
    wrong = int.from_bytes(cdb[:length], "big") & opcode.reserved
    if wrong:
        # NACA is among them: ACA is not supported.
        highest = wrong.bit_length() - 1
        raise invalid_field(length - 1 - highest // 8, highest % 8)


def u16(cdb: bytes, at: int) -> int:
    return int.from_bytes(cdb[at : at + 2], "big")


def u32(cdb: bytes, at: int) -> int:
    return int.from_bytes(cdb[at : at + 4], "big")


def u64(cdb: bytes, at: int) -> int:
    return int.from_bytes(cdb[at : at + 8], "big")
