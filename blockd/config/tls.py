"""Section [tls]."""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from blockd.toml_decode import ConfigError

if TYPE_CHECKING:
    from blockd.tls import TlsSettings


class TlsChoice(enum.StrEnum):
    """Whether NBD clients may, or must, start TLS."""

    OFF = "off"
    ALLOW = "allow"
    REQUIRE = "require"


class TlsVersion(enum.StrEnum):
    """The oldest TLS that is spoken; older ones than these are broken (RFC 8996)."""

    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """[tls]: PEM files, read at start and at each SIGHUP."""

    mode: TlsChoice = TlsChoice.OFF
    """Plain text only, either, or TLS only."""
    cert: Path | None = None
    """The server's certificate, with those between it and its authority."""
    key: Path | None = None
    """The certificate's private key; None when it is in the same file."""
    client_ca: Path | None = None
    """Clients must show a certificate of this authority."""
    psk: Path | None = None
    """File of pre-shared keys, lines of identity:hexkey as psktool writes them."""
    min_version: TlsVersion = TlsVersion.TLS_1_2
    """The oldest that is spoken."""

    def settings(self) -> "TlsSettings":
        """As the listener takes them. Loads OpenSSL, so only when TLS is on."""
        from blockd.tls import TlsSettings

        return TlsSettings(
            certificate=self.cert,
            key=self.key,
            client_ca=self.client_ca,
            psk_file=self.psk,
            min_version=self.min_version.value,
        )


def check_tls(tls: TlsConfig) -> None:
    """Refuse settings that do not go together. Raises ConfigError."""
    if tls.key and not tls.cert:
        raise ConfigError(f"tls: key {tls.key} is of no use alone; add --tls-cert")
    if tls.mode is not TlsChoice.OFF and tls.cert is None and tls.psk is None:
        raise ConfigError(
            f"tls: mode {tls.mode} needs a certificate (--tls-cert and --tls-key) "
            "or pre-shared keys (--tls-psk)"
        )
