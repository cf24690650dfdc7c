"""I_T nexus: one initiator port at one target port, as units know it (SAM-5 4.8)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from blockd.scsi.target import TargetDevice

TRANSPORT_ID_ISCSI_NAME: Final = 0x05  # SPC-4 7.6.4.6: format 00b, protocol iSCSI: device name
TRANSPORT_ID_ISCSI_PORT: Final = 0x45  # format 01b: name, ",i,0x", ISID


@dataclass(eq=False, slots=True)
class Nexus:
    """Compared by identity: a session that logs in again is another nexus. Units keep what they
    know of a nexus (unit attentions) by it; persistent reservations go by `port`."""

    initiator: str
    """iSCSI name."""
    isid: bytes
    """6 bytes."""
    port_group: int
    """Target portal group tag; also the relative target port identifier."""
    target: "TargetDevice | None" = field(default=None, repr=False)
    """The device that it is a way to; `TargetDevice.attach` sets it."""

    @property
    def port(self) -> str:
        """SCSI initiator port name (RFC 7143 4.2.7.4 and 9.4.2): name,i,0xISID."""
        return f"{self.initiator},i,0x{self.isid.hex()}"

    def transport_id(self) -> bytes:
        """TransportID of the initiator port, as PERSISTENT RESERVE IN shows it."""
        text = self.port.encode() + b"\0"
        text += bytes(-len(text) % 4)
        return bytes((TRANSPORT_ID_ISCSI_PORT, 0)) + len(text).to_bytes(2, "big") + text
