"""Section [iscsi]."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from blockd.config.addresses import Portal
from blockd.config.values import Count, MiB, Seconds
from blockd.toml_decode import SizeText


@dataclass(frozen=True, slots=True)
class IscsiConfig:
    """[iscsi]: where initiators log in and what one may cost. Targets are made at runtime."""

    listen: tuple[Portal, ...] = ()
    """Portals, as 192.0.2.1:3260 or 192.0.2.1:3260,2 with the tag of its portal group. Portals
    without one have a group each: two of them are two paths to a unit."""
    insecure: bool = False
    """Allows logins without CHAP on addresses that other machines reach."""
    chap: Path | None = None
    """File of CHAP users, lines of user:secret; any of them may discover, and log in to targets
    that have no users of their own."""
    mutual_chap: Path | None = None
    """File with one line user:secret: what such targets, and discovery, prove themselves by."""
    auto_targets: bool | None = None
    """Whether every volume has a target by itself; None: while only this machine reaches us, or
    `insecure` says that it does not matter who does."""
    ignore_isids: bool = False
    """Persistent reservations are those of an initiator, not of one of its sessions: for initiators
    that take another ISID at each login, as Linux does, and look for their own afterwards."""
    login_timeout_s: Seconds = 15.0
    """An initiator whose login takes longer is cut."""
    keepalive_s: Seconds = 30.0
    """An initiator that is silent for so long is asked, and cut after as long again; 0: never."""
    reply_timeout_s: Seconds = 0.0
    """As in [nbd]."""
    max_connections: Count = 1024
    """Of all initiators together, those that still log in included."""
    max_sessions: Count = 1024
    """Of all initiators together."""
    max_in_flight_bytes: Annotated[int, SizeText(low=MiB)] = 64 * MiB
    """Of one session: data-out being collected and data-in promised."""
    sanitize_rate: Annotated[int, SizeText(low=MiB)] = 256 * MiB
    """Bytes per second that SANITIZE writes, of all units together; clients keep theirs."""

    @property
    def exposed(self) -> list[str]:
        """Addresses that other machines reach."""
        return [str(each.address) for each in self.listen if not each.address.loopback]

    @property
    def has_auto_targets(self) -> bool:
        if self.auto_targets is None:
            return self.insecure or not self.exposed
        return self.auto_targets
