"""TargetDevice: the units of one target by LUN, and the answers for LUNs that are not there.

SAM-5 5.12, SPC-4 6.6.2 and 6.33: INQUIRY to an absent LUN answers with peripheral qualifier 011b,
REPORT LUNS works on any LUN (and on the well-known unit C101h), REQUEST SENSE tells 25/00 as
parameter data with GOOD, everything else ends with 25/00.
"""

from dataclasses import dataclass, field

from blockd.scsi.nexus import Nexus
from blockd.scsi.task import Prepared, Result, Single
from blockd.scsi.unit import LogicalUnit


@dataclass(eq=False, slots=True)
class TargetDevice:
    """A SCSI target device as one target of the transport shows it."""

    units: dict[int, LogicalUnit] = field(default_factory=dict)
    """By LUN, 0 to 16383. Whoever changes it calls `luns_changed`."""

    def luns_changed(self) -> None:
        """Tell every nexus: 3F/0E."""
        raise AssertionError  # written with its users

    def prepare(self, nexus: Nexus, lun: int, cdb: bytes) -> Result | Single | Prepared:
        """As `LogicalUnit.prepare`, for whatever is at `lun`; REPORT LUNS is answered here."""
        raise AssertionError  # written with its users


def decode_lun(field: bytes) -> int | None:
    """The number in an 8-byte LUN field (SAM-5 4.7): peripheral (one byte, bus 0) or flat space
    addressing, at the first level only. None for what no unit can have; the well-known REPORT LUNS
    unit is `REPORT_LUNS_UNIT`."""
    raise AssertionError  # written with its users


REPORT_LUNS_UNIT = 0xC101
