"""TargetDevice: the units of one target by LUN, and the answers for LUNs that are not there.

SAM-5 5.12, SPC-4 6.6.2 and 6.33: INQUIRY to an absent LUN answers with peripheral qualifier 011b,
REPORT LUNS works on any LUN (and on the well-known unit C101h), REQUEST SENSE tells 25/00 as
parameter data with GOOD, everything else ends with 25/00.

A target device has one target port in each of its portal groups. Nexuses are attached to it once
they have logged in, and through it to those of its units that access lists let them have: the
others are not there for them. A unit may be part of several target devices:
what it tells of ports is about the device that a nexus came through (`Nexus.target`).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from blockd.access.rules import Grant
from blockd.scsi import inquiry, readiness, sense
from blockd.scsi.cdb import MAX_CDB, Opcode, check_reserved, u32
from blockd.scsi.nexus import Nexus
from blockd.scsi.sense import CheckCondition, invalid_field
from blockd.scsi.task import CHECK_CONDITION, Prepared, Result, Single

if TYPE_CHECKING:
    from blockd.scsi.unit import LogicalUnit

MAX_LUN: Final = 0x3FFF
"""What flat space addressing holds (SAM-5 4.7.5)."""
REPORT_LUNS_UNIT: Final = 0xC101
"""The well-known unit that tells which LUNs there are (SPC-4 8.2)."""

_PERIPHERAL_LUNS: Final = 0x100  # below it: peripheral device addressing, as all initiators do
_FLAT: Final = 0x4000
_ALL_BUT_WELL_KNOWN, _WELL_KNOWN, _ALL = range(3)  # SELECT REPORT


@dataclass(eq=False, slots=True)
class TargetDevice:
    """A SCSI target device as one target of the transport shows it."""

    units: "dict[int, LogicalUnit]" = field(default_factory=dict)
    """By LUN, 0 to `MAX_LUN`. Whoever changes it calls `luns_changed`."""
    name: str = ""
    """SCSI device name: the IQN."""
    port_groups: tuple[int, ...] = (1,)
    """Tags of the portal groups that it is reached through, ascending."""
    _nexuses: "dict[Nexus, dict[LogicalUnit, None]]" = field(default_factory=dict)
    """With the units that know each."""

    @property
    def used(self) -> bool:
        """Whether any nexus leads to it."""
        return bool(self._nexuses)

    def attach(self, nexus: Nexus) -> None:
        """A nexus that logged in: the units that it may have know it from now on."""
        assert nexus.target is None, "a nexus has one target device"
        nexus.target = self
        self._nexuses[nexus] = {}
        self._show_units(nexus)

    def detach(self, nexus: Nexus) -> None:
        """The nexus is gone."""
        for unit in self._nexuses.pop(nexus, ()):
            unit.detach(nexus)

    def luns_changed(self) -> None:
        """Tell every nexus: 3F/0E."""
        for nexus in self._nexuses:
            self._show_units(nexus)
            _tell_of_units(nexus)

    def access_changed(self, nexus: Nexus) -> bool:
        """Show the nexus what it may have now, and tell it (3F/0E) if that is something else. False
        when it may not do what it could: nothing has changed then, and it has to go."""
        seen = dict(nexus.units)
        units, read_only = self._granted(nexus)
        if any(units.get(lun) is not unit for lun, unit in seen.items()):
            return False
        if any(unit in read_only and unit not in nexus.read_only for unit in seen.values()):
            return False
        if (units, read_only) != (seen, nexus.read_only):
            self._show_units(nexus)
            _tell_of_units(nexus)
        return True

    def _show_units(self, nexus: Nexus) -> None:
        """Units that the nexus has from now on get to know it, those that it has not forget it."""
        nexus.units, nexus.read_only = self._granted(nexus)
        before, present = self._nexuses[nexus], dict.fromkeys(nexus.units.values())
        for gone in before.keys() - present.keys():
            gone.detach(nexus)
        for unit in present.keys() - before.keys():
            unit.attach(nexus)
        self._nexuses[nexus] = present

    def _granted(self, nexus: Nexus) -> "tuple[dict[int, LogicalUnit], frozenset[LogicalUnit]]":
        """The units that it may have, and those of them that it may only read."""
        if nexus.grant is None:
            return self.units, frozenset()
        grants = {unit: nexus.granted(unit) for unit in self.units.values()}
        units = {lun: unit for lun, unit in self.units.items() if grants[unit]}
        return units, frozenset(unit for unit in units.values() if grants[unit] is Grant.READ)

    # -- commands

    def prepare(self, nexus: Nexus, lun: int | None, cdb: bytes) -> Result | Single | Prepared:
        """As `LogicalUnit.prepare`, for whatever is at `lun` (as `decode_lun` gave it)."""
        unit = None if lun is None else nexus.units.get(lun)
        if unit is not None:
            return unit.prepare(nexus, cdb)
        cdb = cdb[:MAX_CDB].ljust(MAX_CDB, b"\0")
        try:
            if lun == REPORT_LUNS_UNIT:
                return self._well_known(nexus, cdb)
            return self._absent(nexus, cdb)
        except CheckCondition as error:
            return Result(CHECK_CONDITION, sense=error.sense)

    def _absent(self, nexus: Nexus, cdb: bytes) -> Result:
        opcode = _WITHOUT_UNIT.get(cdb[0])
        if opcode is None:
            raise CheckCondition(sense.UNIT_NOT_SUPPORTED)
        check_reserved(opcode, cdb)
        if opcode is inquiry.INQUIRY:
            return inquiry.absent(cdb)
        if opcode is readiness.REQUEST_SENSE:
            return readiness.sensed(sense.UNIT_NOT_SUPPORTED, cdb)
        return self.report_luns(nexus, cdb)

    def _well_known(self, nexus: Nexus, cdb: bytes) -> Result:
        """SPC-4 8.2.2: what this unit takes, beside REPORT LUNS."""
        opcode = _WELL_KNOWN_TAKES.get(cdb[0])
        if opcode is None:
            raise CheckCondition(sense.INVALID_OPCODE)
        check_reserved(opcode, cdb)
        if opcode is inquiry.INQUIRY:
            return inquiry.well_known(nexus, cdb)
        if opcode is readiness.REQUEST_SENSE:
            return readiness.sensed(sense.NOTHING, cdb)
        if opcode is readiness.TEST_UNIT_READY:
            return Result()
        return self.report_luns(nexus, cdb)

    def report_luns(self, nexus: Nexus, cdb: bytes) -> Result:
        """Also takes back what the initiator finds out by it (SPC-4 6.33)."""
        select = cdb[2]
        if select > _ALL:
            raise invalid_field(2)
        luns: list[bytes] = []
        if select != _WELL_KNOWN:
            luns += [encode_lun(lun) for lun in sorted(nexus.units)]
        if select != _ALL_BUT_WELL_KNOWN:
            luns.append(encode_lun(REPORT_LUNS_UNIT))
        for unit in nexus.units.values():
            unit.forget_attention(sense.LUNS_CHANGED, nexus)
        listed = b"".join(luns)
        data = len(listed).to_bytes(4, "big") + bytes(4) + listed
        return Result(data=(data[: u32(cdb, 6)],))


def _tell_of_units(nexus: Nexus) -> None:
    for unit in nexus.units.values():
        unit.attention(sense.LUNS_CHANGED, to=nexus)


def decode_lun(field: bytes) -> int | None:
    """The number in an 8-byte LUN field (SAM-5 4.7): peripheral (one byte, bus 0) or flat space
    addressing, at the first level only. None for what no unit can have; the well-known REPORT LUNS
    unit is `REPORT_LUNS_UNIT`."""
    first = int.from_bytes(field[:2], "big")
    if any(field[2:]):
        return None
    if first < _PERIPHERAL_LUNS:
        return first
    if first & ~MAX_LUN == _FLAT:
        return first & MAX_LUN
    return first if first == REPORT_LUNS_UNIT else None


def encode_lun(lun: int) -> bytes:
    """The 8-byte field that `decode_lun` reads."""
    if lun >= _PERIPHERAL_LUNS and lun != REPORT_LUNS_UNIT:
        lun |= _FLAT
    return lun.to_bytes(2, "big") + bytes(6)


def report_luns(_: "LogicalUnit", nexus: Nexus, cdb: bytes) -> Result:
    assert nexus.target is not None
    return nexus.target.report_luns(nexus, cdb)


_REPORT_LUNS: Final = Opcode(
    0xA0,
    None,
    "REPORT LUNS",
    bytes.fromhex("a000ff000000ffffffff0000"),
    report_luns,
    reservation="allowed",
    skips_attention=True,
)
_WITHOUT_UNIT: Final = {
    opcode.code: opcode for opcode in (_REPORT_LUNS, inquiry.INQUIRY, readiness.REQUEST_SENSE)
}
_WELL_KNOWN_TAKES: Final = _WITHOUT_UNIT | {
    readiness.TEST_UNIT_READY.code: readiness.TEST_UNIT_READY
}

OPCODES: Final = (_REPORT_LUNS,)
