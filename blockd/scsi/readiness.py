"""TEST UNIT READY, REQUEST SENSE, START STOP UNIT: whether a unit works, and what is the matter.

A unit whose volume this node serves is always ready: its medium cannot be taken out, and it does
not stop for one of its initiators while others use the same volume. START STOP UNIT with START at
zero therefore makes everything durable, as before a disk is switched off, and leaves the unit as it
is (SBC-3 5.25).
There are no power conditions, and nothing to load or eject.
"""

from typing import TYPE_CHECKING, Final

from blockd.scsi import alua, sense
from blockd.scsi.cdb import Opcode
from blockd.scsi.disk import finished
from blockd.scsi.sense import Sense
from blockd.scsi.task import Result, Single
from native import OP_FLUSH, Request

if TYPE_CHECKING:
    from blockd.scsi.nexus import Nexus
    from blockd.scsi.unit import LogicalUnit

_DESC: Final = 0x01  # byte 1 of REQUEST SENSE
_NO_FLUSH: Final = 0x04  # byte 4 of START STOP UNIT
_START: Final = 0x01


def unit_ready(_unit: "LogicalUnit", _nexus: "Nexus", _cdb: bytes) -> Result:
    return Result()


def sensed(what: Sense, cdb: bytes) -> Result:
    """Sense data as parameter data: in the format that the CDB asks for, whatever D_SENSE says."""
    data = what.encode(descriptor=bool(cdb[1] & _DESC))
    return Result(data=(data[: cdb[4]],))


def request_sense(unit: "LogicalUnit", nexus: "Nexus", cdb: bytes) -> Result:
    """SPC-4 6.39: a unit attention, which is cleared by this, before anything else."""
    what = unit.next_attention(nexus) or alua.condition(unit.port_groups)
    return sensed(what or unit.sanitizing.condition or sense.NOTHING, cdb)


def start_stop_unit(unit: "LogicalUnit", _: "Nexus", cdb: bytes) -> Result | Single:
    if cdb[4] & (_START | _NO_FLUSH):
        return Result()
    return Single(unit.device, Request(OP_FLUSH), 0, finished)


TEST_UNIT_READY: Final = Opcode(
    0x00, None, "TEST UNIT READY", bytes(6), unit_ready, reservation="allowed"
)
REQUEST_SENSE: Final = Opcode(
    0x03,
    None,
    "REQUEST SENSE",
    bytes.fromhex("03010000ff00"),
    request_sense,
    reservation="allowed",
    skips_attention=True,
)
OPCODES: Final = (
    TEST_UNIT_READY,
    REQUEST_SENSE,
    Opcode(0x1B, None, "START STOP UNIT", bytes.fromhex("1b0100000500"), start_stop_unit),
)
