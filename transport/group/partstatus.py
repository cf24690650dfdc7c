"""How a volume is at one of its members, as that one tells it."""

from dataclasses import dataclass

from transport.group.changing import ChangeStatus
from transport.group.link import MemberStatus


@dataclass(frozen=True, slots=True)
class PartStatus:
    """A volume as one of its members knows it."""

    volume: bytes
    name: str
    doing: str
    """"following", a step of a takeover, "leading" or "serving"."""
    epoch: int
    """The newest one that has begun here."""
    promised: int
    received: int
    durable: int
    quiet_s: float
    """No primary was answered for so long."""
    members: tuple[MemberStatus, ...]
    """What the primary knows of each; empty elsewhere."""
    last_failure: str
    """Of the newest takeover that ended without a primary."""
    change: ChangeStatus | None = None
    """Of members, at the primary."""
