"""Who may open which export.

A listener runs in one of three TLS modes (protocol text, "Server-side requirements"): OFF is its
NOTLS, ALLOW its SELECTIVETLS, REQUIRE its FORCEDTLS. On top each export has a policy: TLS only,
a list of client names that may open it, read-only.

What a client may learn: in the clear it cannot tell an export that needs TLS from one that does
not exist. In ALLOW both are ERR_TLS_REQD for INFO and GO, and ERR_UNKNOWN for the context options
(which may not say ERR_TLS_REQD); in OFF, where ERR_TLS_REQD is forbidden, both are ERR_UNKNOWN.
LIST leaves out what the client could not open. An export with a client list needs TLS, since only
TLS says who the client is.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from blockd.device import BlockDevice, Exports
from blockd.nbd import wire


class TlsMode(Enum):
    """Whether a listener offers TLS; the same for the whole life of a connection."""

    OFF = "off"
    ALLOW = "allow"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Whom TLS proved the client to be: common name, subject alternative names or PSK identity."""

    names: tuple[str, ...]


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


@dataclass(slots=True)
class Gate:
    """Decides for one connection; `tls_active` and `identity` change when TLS starts."""

    exports: Exports
    policies: Policies
    mode: TlsMode
    tls_active: bool = False
    identity: TlsIdentity | None = None

    def open(self, name: str) -> tuple[BlockDevice, ExportPolicy] | Refusal:
        """The device called `name` and its policy, or why not. Refusals suit INFO and GO."""
        device = self.exports.get(name)
        policy = None if device is None else self.policies.policy(device.name)
        if not self.tls_active and (policy is None or policy.tls_required or policy.clients):
            if self.mode is TlsMode.OFF:
                return Refusal(wire.REP_ERR_UNKNOWN, f"export {name!r}: there is none here")
            return Refusal(
                wire.REP_ERR_TLS_REQD,
                f"export {name!r}: needs TLS, or there is none; start TLS first",
            )
        if device is None or policy is None:
            return Refusal(
                wire.REP_ERR_UNKNOWN, f"export {name!r}: there is none; LIST shows what there is"
            )
        if policy.clients and not self._listed(policy):
            return Refusal(
                wire.REP_ERR_POLICY,
                f"export {name!r}: not for this client; its names ({self._names()}) are not on "
                "the export's list of clients",
            )
        return device, policy

    def may_list(self, name: str) -> bool:
        """Whether LIST shows `name`: whether this client could open it now."""
        policy = self.policies.policy(name)
        if policy.clients:
            return self.tls_active and self._listed(policy)
        return self.tls_active or not policy.tls_required

    def _listed(self, policy: ExportPolicy) -> bool:
        return self.identity is not None and not set(policy.clients).isdisjoint(self.identity.names)

    def _names(self) -> str:
        if self.identity is None or not self.identity.names:
            return "none: it showed no certificate"
        return ", ".join(self.identity.names[:4])
