"""The command table, and what tells it: REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT
FUNCTIONS (SPC-4 6.35, 6.36).

`TABLE` has every command that units carry out, by operation code, and by service action where the
code has several. A command that is not in there ends with 20/00, so what is told and what works
cannot differ.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from blockd.scsi import (
    alua,
    atomic,
    capacity,
    copy,
    disk,
    inquiry,
    logs,
    modes,
    provisioning,
    readiness,
    reservations,
    sanitize,
    target,
    verify,
)
from blockd.scsi.cdb import Opcode, u16, u32
from blockd.scsi.sense import invalid_field
from blockd.scsi.task import Result

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

Table = dict[int, Opcode | dict[int, Opcode]]

_RCTD: Final = 0x80  # byte 2 of REPORT SUPPORTED OPERATION CODES
_ALL: Final = 0  # reporting options
_ONE_CODE: Final = 1
_ONE_ACTION: Final = 2
_ONE_EITHER: Final = 3
_SERVACTV: Final = 0x01  # byte 5 of a command descriptor
_CTDP: Final = 0x02
_CTDP_ONE: Final = 0x80  # byte 1 of the one-command format
_NOT_SUPPORTED: Final = 0x01
_SUPPORTED: Final = 0x03  # as a standard says
# No command has a timeout to recommend: how long one takes is a matter of the store's disks.
_TIMEOUTS: Final = struct.pack(">HBBII", 10, 0, 0, 0, 0)
_DESCRIPTOR: Final = struct.Struct(">BBHBBH")

_REPD: Final = 0x80  # byte 2 of REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS
# ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET; the others have no iSCSI function,
# and target resets are none of SAM-5.
_FUNCTIONS: Final = 0x80 | 0x40 | 0x10 | 0x08


def build(opcodes: Iterable[Opcode]) -> Table:
    """A table of commands; no two of them may be the same."""
    table: Table = {}
    for opcode in opcodes:
        if opcode.action is None:
            assert opcode.code not in table, opcode.name
            table[opcode.code] = opcode
            continue
        actions = table.setdefault(opcode.code, {})
        assert isinstance(actions, dict), opcode.name
        assert opcode.action not in actions, opcode.name
        actions[opcode.action] = opcode
    return table


def _every(table: Table) -> Iterator[Opcode]:
    """All commands by ascending code and service action."""
    for _, entry in sorted(table.items(), key=lambda item: item[0]):
        if isinstance(entry, Opcode):
            yield entry
        else:
            yield from (entry[action] for action in sorted(entry))


def _all_commands(table: Table, *, timeouts: bool) -> bytes:
    descriptors = b"".join(
        _DESCRIPTOR.pack(
            opcode.code,
            0,
            opcode.action or 0,
            0,
            _SERVACTV * (opcode.action is not None) | _CTDP * timeouts,
            len(opcode.usage),
        )
        + _TIMEOUTS * timeouts
        for opcode in _every(table)
    )
    return len(descriptors).to_bytes(4, "big") + descriptors


def _find(table: Table, options: int, code: int, action: int) -> Opcode | None:
    """The command that REPORT SUPPORTED OPERATION CODES asks about (SPC-4 table 245)."""
    entry = table.get(code)
    if entry is None:
        return None
    if isinstance(entry, Opcode):
        if options == _ONE_ACTION:
            raise invalid_field(2, 2)
        return entry if options == _ONE_CODE or action == 0 else None
    if options == _ONE_CODE:
        raise invalid_field(2, 2)
    return entry.get(action)


def _one_command(opcode: Opcode | None, *, timeouts: bool) -> bytes:
    if opcode is None:
        return bytes((0, _NOT_SUPPORTED, 0, 0))
    flags = _SUPPORTED | _CTDP_ONE * timeouts
    size = len(opcode.usage).to_bytes(2, "big")
    return bytes((0, flags)) + size + opcode.usage + _TIMEOUTS * timeouts


def report_supported_operation_codes(unit: "LogicalUnit", _: "Nexus", cdb: bytes) -> Result:
    options = cdb[2] & 0x07
    timeouts = bool(cdb[2] & _RCTD)
    if options == _ALL:
        data = _all_commands(unit.opcodes, timeouts=timeouts)
    elif options <= _ONE_EITHER:
        data = _one_command(_find(unit.opcodes, options, cdb[3], u16(cdb, 4)), timeouts=timeouts)
    else:
        raise invalid_field(2, 2)
    return Result(data=(data[: u32(cdb, 6)],))


def report_supported_functions(_unit: "LogicalUnit", _: "Nexus", cdb: bytes) -> Result:
    data = bytes((_FUNCTIONS, 0, 0, 0))
    if cdb[2] & _REPD:  # the extended format, with timeouts, of which there are none
        data = bytes((_FUNCTIONS, 0, 0, 12)).ljust(16, b"\0")
    return Result(data=(data[: u32(cdb, 6)],))


OPCODES: Final = (
    Opcode(
        0xA3,
        0x0C,
        "REPORT SUPPORTED OPERATION CODES",
        bytes.fromhex("a30c87ffffffffffffff0000"),
        report_supported_operation_codes,
        reservation="read",
    ),
    Opcode(
        0xA3,
        0x0D,
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        bytes.fromhex("a30d80000000ffffffff0000"),
        report_supported_functions,
        reservation="read",
    ),
)

TABLE: Final = build(
    opcode
    for opcodes in (
        disk.OPCODES,
        verify.OPCODES,
        provisioning.OPCODES,
        atomic.OPCODES,
        copy.OPCODES,
        sanitize.OPCODES,
        reservations.OPCODES,
        inquiry.OPCODES,
        readiness.OPCODES,
        capacity.OPCODES,
        modes.OPCODES,
        logs.OPCODES,
        alua.OPCODES,
        target.OPCODES,
        OPCODES,
    )
    for opcode in opcodes
)
