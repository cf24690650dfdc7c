"""INQUIRY (SPC-4 6.6): what is there, in standard form. Vital product data is in `vpd`.

A unit claims SPC-4 and SBC-3. Vendor, product and what the identifiers in VPD 83 are made of never
change: initiators know a disk again by them.
"""

import importlib.metadata
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from blockd.scsi import vpd
from blockd.scsi.alua import TPGS_IMPLICIT
from blockd.scsi.cdb import Opcode, u16
from blockd.scsi.sense import invalid_field
from blockd.scsi.task import Result

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

PRODUCT: Final = "volume"

_EVPD: Final = 0x01  # byte 1
_SPC_4: Final = 0x06  # version
_HISUP: Final = 0x10  # byte 3: LUNs may be flat ones
_FORMAT: Final = 0x02
_3PC: Final = 0x08  # byte 5: EXTENDED COPY
_MULTIP: Final = 0x10  # byte 6: more than one port, maybe
_CMDQUE: Final = 0x02  # byte 7
_STANDARD: Final = struct.Struct(">BBBBBBBB8s16s4s22x8H22x")
_SAM_5, _SPC_4_VERSION, _SBC_3, _ISCSI = 0x00A0, 0x0460, 0x04C0, 0x0960  # SPC-4 table 144


def _revision() -> bytes:
    """The release, in 4 characters: "0.1"."""
    major_minor = importlib.metadata.version("blockd").split(".")[:2]
    return ".".join(major_minor).encode()[:4].ljust(4)


_REVISION: Final = _revision()


def _standard(peripheral: int, standards: tuple[int, ...]) -> bytes:
    return _STANDARD.pack(
        *(peripheral, 0, _SPC_4, _HISUP | _FORMAT, _STANDARD.size - 5),
        *(TPGS_IMPLICIT | _3PC, _MULTIP, _CMDQUE),
        *(vpd.VENDOR, PRODUCT.encode().ljust(16), _REVISION),
        *(standards + (0,) * 8)[:8],
    )


_DISK_DATA: Final = _standard(vpd.DISK, (_SAM_5, _SPC_4_VERSION, _SBC_3, _ISCSI))
_WELL_KNOWN_DATA: Final = _standard(vpd.WELL_KNOWN, (_SAM_5, _SPC_4_VERSION, _ISCSI))
_ABSENT_DATA: Final = _standard(vpd.ABSENT, (_SAM_5, _SPC_4_VERSION, _ISCSI))


def _answer(cdb: bytes, standard: bytes, pages: Mapping[int, bytes | vpd.Page]) -> bytes | vpd.Page:
    """What the CDB asks for."""
    if not cdb[1] & _EVPD:
        if cdb[2]:
            raise invalid_field(2)
        return standard
    found = pages.get(cdb[2])
    if found is None:
        raise invalid_field(2)
    return found


def _cut(data: bytes, cdb: bytes) -> Result:
    return Result(data=(data[: u16(cdb, 3)],))


def inquiry(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result:
    answer = _answer(cdb, _DISK_DATA, vpd.PAGES)
    data = answer if isinstance(answer, bytes) else vpd.page(cdb[2], answer(unit, nexus))
    return _cut(data, cdb)


def absent(cdb: bytes) -> Result:
    """Of a LUN that no unit has: peripheral qualifier 011b."""
    pages = {0x00: vpd.page(0x00, bytes((0x00,)), vpd.ABSENT)}
    answer = _answer(cdb, _ABSENT_DATA, pages)
    assert isinstance(answer, bytes)
    return _cut(answer, cdb)


def well_known(nexus: "Nexus", cdb: bytes) -> Result:
    """Of the well-known unit that REPORT LUNS can be sent to."""
    pages = {
        0x00: vpd.page(0x00, bytes((0x00, 0x83)), vpd.WELL_KNOWN),
        0x83: vpd.page(0x83, vpd.port_designators(nexus), vpd.WELL_KNOWN),
    }
    answer = _answer(cdb, _WELL_KNOWN_DATA, pages)
    assert isinstance(answer, bytes)
    return _cut(answer, cdb)


INQUIRY: Final = Opcode(
    0x12,
    None,
    "INQUIRY",
    bytes.fromhex("1201ffffff00"),
    inquiry,
    reservation="allowed",
    skips_attention=True,
)
OPCODES: Final = (INQUIRY,)
