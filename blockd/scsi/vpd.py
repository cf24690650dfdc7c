"""Vital product data (SPC-4 7.8, SBC-3 6.6): identity, ports, limits.

    00      supported pages
    80      serial number: the volume's uuid
    83      identifiers of unit, port, port group and target device
    86      extended INQUIRY data
    87      mode page policy: one set of pages for all initiators
    88      all ports of the target device
    8F      third-party copy
    B0      block limits
    B1      no rotating medium
    B2      thin provisioning
    B3      referrals: there are none

**Identifiers are for ever.** Page 83 has an NAA 6 designator made from the uuid, so that all paths
to a volume, through whatever target, are seen as one disk, and a volume that gets another name or
another LUN stays the same disk. The 24 bits where a vendor's IEEE company identifier would be are
a locally administered one (the bit 02h of its first octet says so).

**Limits are kept.** Page B0 tells the very constants that the commands check.
"""

import struct
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from blockd.scsi import alua, atomic, copy, copy_list, disk, provisioning
from blockd.scsi.modes import THRESHOLD_SET_BYTES

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.target import TargetDevice
    from blockd.scsi.unit import LogicalUnit

Page = Callable[["LogicalUnit", "Nexus"], bytes]
"""Makes the body of a page: what is behind its header."""

VENDOR: Final = b"BLOCKD  "
"""T10 vendor identification, 8 bytes."""

# Peripheral qualifier and device type, as byte 0 of all INQUIRY data has them.
DISK: Final = 0x00
WELL_KNOWN: Final = 0x1E
ABSENT: Final = 0x7F

_COMPANY: Final = 0x02B10C  # see the module's text
_NAA_6: Final = 0x6
_ALLOCATION_BYTES: Final = 64 << 10  # a chunk of a volume that was made without asking for another
_PAGE_BYTES: Final = 4096  # has one checksum in the store
_MAX_UNMAP_BLOCKS: Final = 1 << 20
"""More of them than initiators believe: iscsi-test-cu fails a target that tells more. UNMAP takes
what it can (`provisioning.MAX_UNMAP_BYTES`), which is not less."""

assert _MAX_UNMAP_BLOCKS * 4096 <= provisioning.MAX_UNMAP_BYTES


def page(code: int, body: bytes, peripheral: int = DISK) -> bytes:
    return bytes((peripheral, code)) + len(body).to_bytes(2, "big") + body


def naa(uuid: bytes) -> bytes:
    """The 16 bytes that a unit is known by all over the world: NAA 6, company, and the last 100
    bits of its uuid."""
    rest = int.from_bytes(uuid, "big") & ((1 << 100) - 1)
    return (_NAA_6 << 124 | _COMPANY << 100 | rest).to_bytes(16, "big")


# -- 00, 80, 83, 88: names

_BINARY, _ASCII, _UTF_8 = 1, 2, 3  # code sets
_T10, _NAA, _RELATIVE_PORT, _PORT_GROUP, _NAME = 1, 3, 4, 5, 8  # designator types
_OF_UNIT, _OF_PORT, _OF_DEVICE = 0x00, 0x10, 0x20  # associations
_PIV: Final = 0x80
_ISCSI: Final = 0x50


def _designator(association: int, code_set: int, kind: int, value: bytes) -> bytes:
    protocol, valid = (0, 0) if association == _OF_UNIT else (_ISCSI, _PIV)
    return bytes((protocol | code_set, valid | association | kind, 0, len(value))) + value


def _name(association: int, name: str) -> bytes:
    """A SCSI name string: ends with zeros, so that 4 divides its length (SPC-4 7.8.6.11)."""
    value = name.encode() + b"\0"
    return _designator(association, _UTF_8, _NAME, value + bytes(-len(value) % 4))


def _port_name(target: "TargetDevice", group: int) -> bytes:
    """RFC 7143 4.2.7.4: the name of the node, and its portal group tag."""
    return _name(_OF_PORT, f"{target.name},t,0x{group:04x}")


def port_designators(nexus: "Nexus", group: int | None = None) -> bytes:
    """Of the port that a command came through, of its target port group, which has the port's
    number unless it is given, and of the target device that has it."""
    assert nexus.target is not None
    port = nexus.port_group
    number = (port if group is None else group).to_bytes(4, "big")
    return (
        _designator(_OF_PORT, _BINARY, _RELATIVE_PORT, port.to_bytes(4, "big"))
        + _designator(_OF_PORT, _BINARY, _PORT_GROUP, number)
        + _port_name(nexus.target, nexus.port_group)
        + _name(_OF_DEVICE, nexus.target.name)
    )


def _supported(_unit: "LogicalUnit", _nexus: "Nexus") -> bytes:
    return bytes(sorted(PAGES))


def _serial(unit: "LogicalUnit", _: "Nexus") -> bytes:
    return unit.identity.uuid.hex().encode()


def _identification(unit: "LogicalUnit", nexus: "Nexus") -> bytes:
    uuid = unit.identity.uuid
    return (
        _designator(_OF_UNIT, _BINARY, _NAA, naa(uuid))
        + _designator(_OF_UNIT, _ASCII, _T10, VENDOR + uuid.hex().encode())
        + port_designators(nexus, alua.group_of(unit, nexus))
    )


def _ports(unit: "LogicalUnit", nexus: "Nexus") -> bytes:
    target = nexus.target
    assert target is not None
    body = b""
    groups = unit.port_groups
    ports = [port for each in groups.all() for port in each.ports] if groups else target.port_groups
    for group in ports:
        name = _port_name(target, group)
        body += struct.pack(">2xH2xH2xH", group, 0, len(name)) + name
    return body


# -- 86, 87: what a unit does with commands and mode pages

_SIMPSUP: Final = 0x01  # byte 5
_V_SUP: Final = 0x01  # byte 6: a volatile cache
_LUICLR: Final = 0x01  # byte 7: unit attentions go by nexus
_MAX_SENSE_BYTES: Final = 40  # header, information, command-specific, and key-specific descriptor


def _extended(_unit: "LogicalUnit", _nexus: "Nexus") -> bytes:
    body = bytearray(60)
    body[1] = _SIMPSUP
    body[2] = _V_SUP
    body[3] = _LUICLR
    body[9] = _MAX_SENSE_BYTES
    return bytes(body)


def _mode_policy(_unit: "LogicalUnit", _nexus: "Nexus") -> bytes:
    return bytes((0x3F, 0xFF, 0x00, 0x00))  # all pages and subpages: shared


# -- 8F: third-party copy

_COPY_GRANULARITY: Final = 9  # 2^9 bytes


def _third_party(kind: int, value: bytes) -> bytes:
    """A descriptor of page 8F: 4 divides the length of its value."""
    value += bytes(-len(value) % 4)
    return struct.pack(">HH", kind, len(value)) + value


def _listed(values: Iterable[int]) -> bytes:
    values = bytes(values)
    return bytes((len(values),)) + values


def _third_party_copy(_unit: "LogicalUnit", _nexus: "Nexus") -> bytes:
    commands = b"\x83" + _listed((0x00,)) + b"\x84" + _listed(copy.RESULT_ACTIONS)
    parameters = struct.pack(
        ">4xHHII12x", copy_list.MAX_CSCDS, copy_list.MAX_SEGMENTS, copy_list.MAX_DESCRIPTOR_BYTES, 0
    )
    operations = struct.pack(
        *(">IIIBB18x", copy.MAX_COPIES, copy.MAX_COPIES, copy.MAX_SEGMENT_BYTES),
        *(_COPY_GRANULARITY, 0),
    )
    return (
        _third_party(0x0001, _listed(commands))
        + _third_party(0x0004, parameters)
        + _third_party(0x0008, _listed((*copy_list.SEGMENT_TYPES, *copy_list.CSCD_TYPES)))
        + _third_party(0x000C, bytes(2))  # identifiers of CSCDs that need no descriptor: none
        + _third_party(0x8001, operations)
    )


# -- B0 to B3: the medium

_LIMITS: Final = struct.Struct(">BBHIIIIIIIQIIIII")
_UGAVALID: Final = 1 << 31


def _block_limits(unit: "LogicalUnit", _: "Nexus") -> bytes:
    size = unit.block_size
    return _LIMITS.pack(
        0,  # WSNZ: WRITE SAME of 0 blocks goes up to the last one
        atomic.MAX_COMPARE_AND_WRITE_BLOCKS,
        max(_PAGE_BYTES // size, 1),  # optimal transfer length granularity
        disk.MAX_TRANSFER_BYTES // size,
        disk.OPTIMAL_TRANSFER_BYTES // size,
        0,  # PRE-FETCH: no limit
        min(provisioning.MAX_UNMAP_BYTES // size, _MAX_UNMAP_BLOCKS),
        provisioning.MAX_UNMAP_DESCRIPTORS,
        max(_ALLOCATION_BYTES // size, 1),  # optimal unmap granularity
        _UGAVALID,  # counted from LBA 0
        provisioning.MAX_WRITE_SAME_BLOCKS,
        atomic.MAX_ATOMIC_BYTES // size,
        *(0, 0),  # atomic alignment and granularity: any
        *(0, 0),  # atomic boundaries: none
    )


def _characteristics(_unit: "LogicalUnit", _nexus: "Nexus") -> bytes:
    # Does not rotate; reads after a block erase or a crypto erase work (WABEREQ, WACEREQ: 01b).
    return b"\x00\x01\x00\x50".ljust(60, b"\0")


_LBPU, _LBPWS, _LBPWS10, _LBPRZ = 0x80, 0x40, 0x20, 0x04  # byte 5
_THIN: Final = 0x02  # provisioning type


def _thin_provisioning(unit: "LogicalUnit", _: "Nexus") -> bytes:
    exponent = (THRESHOLD_SET_BYTES // unit.block_size).bit_length() - 1
    return bytes((exponent, _LBPU | _LBPWS | _LBPWS10 | _LBPRZ, _THIN, 0))


def _referrals(_unit: "LogicalUnit", _nexus: "Nexus") -> bytes:
    return bytes(12)  # no user data segments


PAGES: Final[dict[int, Page]] = {
    0x00: _supported,
    0x80: _serial,
    0x83: _identification,
    0x86: _extended,
    0x87: _mode_policy,
    0x88: _ports,
    0x8F: _third_party_copy,
    0xB0: _block_limits,
    0xB1: _characteristics,
    0xB2: _thin_provisioning,
    0xB3: _referrals,
}
