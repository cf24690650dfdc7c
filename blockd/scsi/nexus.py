"""I_T nexus: one initiator port at one target port, as units know it (SAM-5 4.8)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blockd.access.rules import Grant

if TYPE_CHECKING:
    from blockd.scsi.target import TargetDevice
    from blockd.scsi.unit import LogicalUnit


@dataclass(eq=False, slots=True)
class Nexus:
    """Compared by identity: a session that logs in again is another nexus. Units keep what they
    know of a nexus (unit attentions) by it; persistent reservations go by what is in it."""

    initiator: str
    """iSCSI name."""
    isid: bytes
    """6 bytes."""
    port_group: int
    """Target portal group tag; also the relative target port identifier."""
    target: "TargetDevice | None" = field(default=None, repr=False)
    """The device that it is a way to; `TargetDevice.attach` sets it."""
    grant: "Callable[[LogicalUnit], Grant] | None" = field(default=None, repr=False)
    """What the initiator may do with a unit; None: everything, with every unit."""
    units: "Mapping[int, LogicalUnit]" = field(default_factory=dict, repr=False)
    """The units of `target` that the initiator may have, by LUN; `TargetDevice` sets it."""
    read_only: "frozenset[LogicalUnit]" = field(default=frozenset(), repr=False)
    """Those of them that it may only read, whatever they let others do."""
    interrupt: Callable[[], None] | None = field(default=None, repr=False)
    """Set while somebody else carries out commands of it that are plain and find nothing out of the
    ordinary (`LogicalUnit.ordinary`): units call it when that is over. On return nothing begins
    there any more."""

    def granted(self, unit: "LogicalUnit") -> Grant:
        """What the initiator may do with a unit, of whatever target."""
        return Grant.WRITE if self.grant is None else self.grant(unit)

    @property
    def port(self) -> str:
        """SCSI initiator port name (RFC 7143 4.2.7.4 and 9.4.2): name,i,0xISID."""
        return f"{self.initiator},i,0x{self.isid.hex()}"
