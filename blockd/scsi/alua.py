"""Target port groups (SPC-4 5.15, 6.37): which ways to a unit are good.

**A volume of this node alone.** Each portal group is a target port group with one port, and all of
them are active/optimized all the time, as every portal leads to the same volume in the same server.

**A volume that several nodes have.** Each node is one target port group, with its portals as ports,
and every node tells of all of them. One node serves the volume: that group is active/optimized.

    standby         the others: a unit is there, says what it is, and does nothing with the medium
    transitioning   a node that is taking the volume over, or served it and is not sure any more
    unavailable     a node that cannot be reached from here

What a unit may do in each state is in `check`. On standby that is what SPC-4 5.15.2.4.5 has, and
the capacity beside it, as LIO does: Linux asks for the size of each path when it finds it.

States change implicitly only (TPGS 01b), so there is no SET TARGET PORT GROUPS. Whenever one
changes, every session is told (2A/06). Persistent reservations are the volume's, on whichever node
it is served (`blockd.scsi.shared_reservations`); on standby they can be read, and initiators can
register there. RESERVE and RELEASE are of one nexus, and a takeover would lose them: units of such
volumes do not have them (20/00, and not listed).
"""

import enum
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from blockd.scsi import sense
from blockd.scsi.cdb import Opcode, u32
from blockd.scsi.sense import CheckCondition, Sense, invalid_field
from blockd.scsi.task import Result

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

TPGS_IMPLICIT: Final = 0x10
"""Byte 5 of standard INQUIRY data."""


class Access(enum.IntEnum):
    """Asymmetric access state (SPC-4 table 247)."""

    OPTIMIZED = 0x0
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    TRANSITIONING = 0xF


@dataclass(frozen=True, slots=True)
class PortGroup:
    """A target port group."""

    number: int
    """1 to 65535."""
    access: Access
    ports: tuple[int, ...]
    """Relative target port identifiers."""


class PortGroups(Protocol):
    """The ways to a unit whose volume several nodes have. Quick."""

    @property
    def here(self) -> Access:
        """Of this node's group."""

    @property
    def own(self) -> int:
        """Number of this node's group."""

    def all(self) -> tuple[PortGroup, ...]:
        """Ascending; this node's among them."""


_LENGTH_ONLY, _EXTENDED = range(2)  # parameter data format
_EXTENDED_HEADER: Final = bytes((0x10, 0, 0, 0))  # no implicit transition takes time
_AO_SUP: Final = 0x01
_SUPPORTED: Final = 0x80 | 0x08 | 0x04 | _AO_SUP  # and transitioning, unavailable, standby
_IMPLICIT: Final = 0x02  # status code: altered by implicit asymmetric access
# Preference and state, supported states, group, status code, count of ports; then the ports.
_GROUP: Final = struct.Struct(">BBHBBBB")
_PORT: Final = struct.Struct(">2xH")

# Without a service action: INQUIRY, REQUEST SENSE, REPORT LUNS, and all of MAINTENANCE IN.
_ALWAYS: Final = frozenset((0x12, 0x03, 0xA0, 0xA3))
# LOG SENSE, MODE SELECT and SENSE, READ CAPACITY, PERSISTENT RESERVE IN.
_ON_STANDBY: Final = _ALWAYS | {0x4C, 0x4D, 0x15, 0x55, 0x1A, 0x5A, 0x25, 0x5E}
# READ CAPACITY (16); REGISTER, REGISTER AND IGNORE EXISTING KEY.
_ACTIONS_ON_STANDBY: Final = frozenset(((0x9E, 0x10), (0x5F, 0x00), (0x5F, 0x06)))
_RESERVING: Final = frozenset((0x16, 0x56, 0x17, 0x57))

_CONDITIONS: Final = {
    Access.STANDBY: sense.PORT_STANDBY,
    Access.UNAVAILABLE: sense.PORT_UNAVAILABLE,
    Access.TRANSITIONING: sense.ACCESS_TRANSITION,
}


def condition(groups: PortGroups | None) -> Sense | None:
    """Why the medium cannot be had through this node; None: it can."""
    return None if groups is None else _CONDITIONS.get(groups.here)


def check(groups: PortGroups, opcode: Opcode) -> None:
    """Refuse what cannot be done in the present state. CheckCondition."""
    access = groups.here
    if access is Access.OPTIMIZED or opcode.code in _ALWAYS:
        return
    if not (access is Access.STANDBY and without_medium(opcode)):
        raise CheckCondition(_CONDITIONS[access])


def without_medium(opcode: Opcode) -> bool:
    """Whether it does nothing with the medium: it is for standby as well."""
    return opcode.code in _ON_STANDBY or (opcode.code, opcode.action) in _ACTIONS_ON_STANDBY


Table = Mapping[int, "Opcode | dict[int, Opcode]"]


def without_reserve(table: Table) -> "dict[int, Opcode | dict[int, Opcode]]":
    """The commands of units whose volume several nodes have; see the module's text."""
    return {code: entry for code, entry in table.items() if code not in _RESERVING}


def group_of(unit: "LogicalUnit", nexus: "Nexus") -> int:
    """Number of the target port group that a nexus came through."""
    groups = unit.port_groups
    return nexus.port_group if groups is None else groups.own


def report_target_port_groups(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result:
    assert nexus.target is not None
    layout = cdb[1] >> 5
    if layout not in (_LENGTH_ONLY, _EXTENDED):
        raise invalid_field(1, 7)
    groups = unit.port_groups
    if groups is None:
        found = [PortGroup(each, Access.OPTIMIZED, (each,)) for each in nexus.target.port_groups]
        body = b"".join(_descriptor(each, _AO_SUP, 0) for each in found)
    else:
        body = b"".join(_descriptor(each, _SUPPORTED, _IMPLICIT) for each in groups.all())
    if layout == _EXTENDED:
        body = _EXTENDED_HEADER + body
    data = len(body).to_bytes(4, "big") + body
    return Result(data=(data[: u32(cdb, 6)],))


def _descriptor(group: PortGroup, supported: int, status: int) -> bytes:
    head = _GROUP.pack(group.access, supported, group.number, 0, status, 0, len(group.ports))
    return head + b"".join(map(_PORT.pack, group.ports))


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
