"""Target port groups (SPC-4 5.15, 6.37): which ways to a unit are good.

Each portal group is a target port group with one port, and all of them are active/optimized all the
time, as every portal leads to the same volume in the same server. States change implicitly only
(TPGS 01b), so there is no SET TARGET PORT GROUPS.
"""

import struct
from typing import TYPE_CHECKING, Final

from blockd.scsi.cdb import Opcode, u32
from blockd.scsi.sense import invalid_field
from blockd.scsi.task import Result

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

TPGS_IMPLICIT: Final = 0x10
"""Byte 5 of standard INQUIRY data."""

_LENGTH_ONLY, _EXTENDED = range(2)  # parameter data format
_EXTENDED_HEADER: Final = bytes((0x10, 0, 0, 0))  # no implicit transition takes time
_ACTIVE_OPTIMIZED: Final = 0x00
_AO_SUP: Final = 0x01
# Preference and state, supported states, group, status code, ports; of each port: its identifier.
_GROUP: Final = struct.Struct(">BBHBBBB2xH")


def report_target_port_groups(_: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result:
    assert nexus.target is not None
    layout = cdb[1] >> 5
    if layout not in (_LENGTH_ONLY, _EXTENDED):
        raise invalid_field(1, 7)
    body = b"".join(
        _GROUP.pack(_ACTIVE_OPTIMIZED, _AO_SUP, group, 0, 0, 0, 1, group)
        for group in nexus.target.port_groups
    )
    if layout == _EXTENDED:
        body = _EXTENDED_HEADER + body
    data = len(body).to_bytes(4, "big") + body
    return Result(data=(data[: u32(cdb, 6)],))


OPCODES: Final = (
    Opcode(
        0xA3,
        0x0A,
        "REPORT TARGET PORT GROUPS",
        bytes.fromhex("a3ea00000000ffffffff0000"),
        report_target_port_groups,
        reservation="allowed",
    ),
)
