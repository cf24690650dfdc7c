"""Who may open which export.

A listener runs in one of three TLS modes (protocol text, "Server-side requirements"): OFF is its
NOTLS, ALLOW its SELECTIVETLS, REQUIRE its FORCEDTLS. On top each export has a policy: TLS only,
a list of client names that may open it, read-only.

What a client may learn: in the clear it cannot tell an export that needs TLS from one that does
not exist. In ALLOW both are ERR_TLS_REQD for INFO and GO, and ERR_UNKNOWN for the context options
(which may not say ERR_TLS_REQD); in OFF, where ERR_TLS_REQD is forbidden, both are ERR_UNKNOWN.
LIST leaves out what the client could not open. An export with a client list needs TLS, since only
TLS says who the client is.

A volume's access list (`blockd.access`) comes first: an export that it does not let the client have
is one that does not exist, whatever is asked of it, and LIST leaves it out.

VOLUME@REF is a version of a volume, under the list and the policy of the volume and read-only. Who
may not open the volume is refused before anybody looks whether there is such a version.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, Protocol

from blockd.access.book import VolumeAccess
from blockd.access.rules import Client, Grant
from blockd.device import BlockDevice, Exports, Versions
from blockd.nbd import wire
from volume import refs

VERSION_MARK: Final = "@"  # between volume and version; neither's name has one
AGO: Final = "-"  # begins a ref that is so long ago: "-10m"
MAX_REF: Final = refs.MAX_NAME_LENGTH
"""Characters: a snapshot's name is the longest thing that names a version."""


class TlsMode(Enum):
    """Whether a listener offers TLS; the same for the whole life of a connection."""

    OFF = "off"
    ALLOW = "allow"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Whom TLS proved the client to be: common name, subject alternative names or PSK identity."""

    names: tuple[str, ...]
    fingerprint: str | None = None
    """SHA-256 of the certificate, in hexadecimal."""
    by_psk: bool = False
    """`names` is the identity of a pre-shared key."""


@dataclass(frozen=True, slots=True)
class ExportPolicy:
    """What the configuration says of one export. Empty `clients` lets every client in."""

    tls_required: bool = False
    clients: tuple[str, ...] = ()
    read_only: bool = False


class Policies(Protocol):
    """The policies of all exports."""

    def policy(self, export_name: str) -> ExportPolicy:
        """The policy of the export whose canonical name (`BlockDevice.name`) is given."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an export cannot be opened: an option reply type and a text for people."""

    reply: int
    message: str
    barred: str | None = None
    """The volume whose access list is the reason, which the client is not to learn."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """The client may open `device` on these terms, or rather its version `version`."""

    device: BlockDevice
    """The volume's head."""
    policy: ExportPolicy
    version: str | None = None
    """Canonical name of the version, which may not be there; None for the head."""


@dataclass(slots=True)
class Gate:
    """Decides for one connection; `tls_active` and `identity` change when TLS starts."""

    exports: Exports
    policies: Policies
    access: VolumeAccess
    client: Client
    mode: TlsMode
    tls_active: bool = False
    identity: TlsIdentity | None = None

    def tls_started(self, identity: TlsIdentity | None) -> None:
        """TLS is up, and has proved who the client is."""
        self.tls_active = True
        self.identity = identity
        if identity is not None:
            self.client = replace(
                self.client,
                certificate=() if identity.by_psk else identity.names,
                psk=identity.names[0] if identity.by_psk else None,
                fingerprint=identity.fingerprint,
            )

    @property
    def has_versions(self) -> bool:
        return isinstance(self.exports, Versions)

    def admit(self, name: str) -> Admitted | Refusal:
        """The export called `name` and its policy, or why not. Refusals suit INFO and GO."""
        device, ref = self.exports.get(name), None
        if device is None and VERSION_MARK in name and self.has_versions:
            volume, ref = refs.split(name)
            device = self.exports.get(volume)
        grant = Grant.NOTHING if device is None else self.access.grant(device, self.client)
        barred = None
        if device is not None and not grant:
            barred, device = device.name, None
        policy = None if device is None else self.policies.policy(device.name)
        if not self.tls_active and (policy is None or policy.tls_required or policy.clients):
            if self.mode is TlsMode.OFF:
                message = f"export {name!r}: there is none here"
                return Refusal(wire.REP_ERR_UNKNOWN, message, barred)
            message = f"export {name!r}: needs TLS, or there is none; start TLS first"
            return Refusal(wire.REP_ERR_TLS_REQD, message, barred)
        if device is None or policy is None:
            return _unknown(name, barred)
        if policy.clients and not self._listed(policy):
            return Refusal(
                wire.REP_ERR_POLICY,
                f"export {name!r}: not for this client; its names ({self._names()}) are not on "
                "the export's list of clients",
            )
        if grant is Grant.READ:
            policy = replace(policy, read_only=True)
        if ref is None:
            return Admitted(device, policy)
        if not may_be_ref(ref):
            return _unknown(name)
        return Admitted(
            device, replace(policy, read_only=True), f"{device.name}{VERSION_MARK}{ref}"
        )

    def may_list(self, name: str) -> bool:
        """Whether LIST shows `name`, of a volume or a version: whether this client could open it
        now."""
        volume = refs.split(name)[0]
        device = self.exports.get(volume)
        if device is None or not self.access.grant(device, self.client):
            return False
        policy = self.policies.policy(volume)
        if policy.clients:
            return self.tls_active and self._listed(policy)
        return self.tls_active or not policy.tls_required

    def _listed(self, policy: ExportPolicy) -> bool:
        return self.identity is not None and not set(policy.clients).isdisjoint(self.identity.names)

    def _names(self) -> str:
        if self.identity is None or not self.identity.names:
            return "none: it showed no certificate"
        return ", ".join(self.identity.names[:4])


def may_be_ref(text: str) -> bool:
    """Whether `text` can name a version at all; what cannot is not worth looking up."""
    return 0 < len(text) <= MAX_REF and text.isprintable() and VERSION_MARK not in text


def _unknown(name: str, barred: str | None = None) -> Refusal:
    message = f"export {name!r}: there is none; LIST shows what there is"
    return Refusal(wire.REP_ERR_UNKNOWN, message, barred)
