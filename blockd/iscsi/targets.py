"""Targets: names, who may log in, where they are reached.

Values that the daemon's target registry makes and login and discovery look at.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from blockd.access import networks
from blockd.device import BlockDevice
from blockd.iscsi import names
from blockd.iscsi.names import MAX_NAME_BYTES, normalised
from blockd.scsi.target import TargetDevice

IQN_PREFIX = "iqn.2026-11.io.blockd:"
VERSION_MARKS = (":at:", "@")
"""Between volume and version in a target's name. The first is made of what an iSCSI name may have
(4.2.7.2), and URLs of initiators can hold it; the second is how versions are written elsewhere."""


def past_version(name: str) -> str | None:
    """VOLUME@REF, of a target name that stands for a past version; None for other names."""
    if not normalised(name).startswith(IQN_PREFIX) or len(name.encode()) > MAX_NAME_BYTES:
        return None
    rest = name[len(IQN_PREFIX) :]
    for mark in VERSION_MARKS:
        volume, found, ref = rest.partition(mark)
        if found and volume and ref:
            return f"{volume}@{ref}"
    return None


@dataclass(frozen=True, slots=True)
class Credentials:
    """A CHAP name and its secret. The secret is shown by nothing, `repr` included."""

    user: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may log in to a target. An empty `initiators` lets in everybody whom CHAP lets in."""

    initiators: tuple[str, ...] = ()
    """iSCSI names; a trailing * matches any rest."""
    addresses: tuple[str, ...] = ()
    """Networks as 192.0.2.0/24; empty: all. ValueError for others when the list is made, so that
    none comes up in a login."""
    chap: tuple[Credentials, ...] = ()
    """Any of these proves the initiator. Empty: no authentication is asked for."""
    mutual: Credentials | None = None
    """What the target proves itself by when the initiator asks for that."""

    def __post_init__(self) -> None:
        for each in self.addresses:
            networks.network(each, strict=False)

    def admits(self, initiator: str, address: str) -> bool:
        """Whether name and address are on the lists; CHAP comes after this."""
        return self._admits_name(normalised(initiator)) and self._admits_address(address)

    def _admits_name(self, initiator: str) -> bool:
        listed = self.initiators
        return not listed or any(names.matches(each, initiator) for each in listed)

    def _admits_address(self, address: str) -> bool:
        if not self.addresses:
            return True
        found = networks.address(address)
        return found is not None and any(
            found in networks.network(each, strict=False) for each in self.addresses
        )


@dataclass(frozen=True, slots=True)
class Portal:
    """An address that a portal group is reached at."""

    host: str
    port: int
    group: int
    """Target portal group tag, 1 to 65535."""

    def __str__(self) -> str:
        """As TargetAddress has it: HOST:PORT,TPGT; IPv6 in brackets (RFC 7143 13.8)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port},{self.group}"


@dataclass(eq=False, slots=True)
class Target:
    """One iSCSI target node."""

    name: str
    """IQN."""
    access: Access
    device: TargetDevice
    alias: str = ""
    redirect: str | None = None
    """TargetAddress (host:port) that logins are sent to, with "target moved temporarily"."""
    volume: BlockDevice | None = None
    """What it is the target of by itself: there is no such target for whom the volume's access list
    keeps out. None: it was configured, and shows everybody what he may have of its units."""


class Targets(Protocol):
    """All targets. Quick: called on the event loop."""

    @property
    def discovery(self) -> Access:
        """Who may log in for discovery."""

    def get(self, name: str) -> Target | None:
        """The target of that IQN that is there already, or None."""

    def all(self) -> Sequence[Target]:
        """In listing order."""

    def volume_of(self, name: str) -> BlockDevice | None:
        """The volume that target `name` stands for a past version of, whether there is such a
        version or not."""

    def portals(self, arrived_at: Portal, target: Target) -> Sequence[Portal]:
        """Where a target is reached, as seen by a client that reached us at `arrived_at`: a
        portal that listens on a wildcard address is shown under the address the client used. Those
        of other nodes that export the same are behind this one's."""
