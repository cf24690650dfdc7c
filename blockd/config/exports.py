"""Sections [exports."NAME"]."""

from collections.abc import Mapping
from dataclasses import dataclass

from blockd.config.tls import TlsChoice, TlsConfig
from blockd.toml_decode import ConfigError


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """[exports."NAME"]: who may attach volume NAME, and how."""

    tls_required: bool = False
    """Clients have to use TLS for this volume, whatever `mode` says."""
    clients: tuple[str, ...] = ()
    """Names in the TLS certificate or of the PSK; empty lets everybody attach."""
    read_only: bool = False
    """Nobody writes to it over NBD."""


def check_exports(exports: Mapping[str, ExportConfig], tls: TlsConfig) -> None:
    """Whether `tls` can do what they ask for, and that they are volumes. Raises ConfigError."""
    for name, export in exports.items():
        if export.tls_required and tls.mode is TlsChoice.OFF:
            raise ConfigError(
                f'exports."{name}": tls_required, but TLS is off; use --tls allow or require'
            )
        if export.clients and tls.client_ca is None and tls.psk is None:
            raise ConfigError(
                f'exports."{name}": clients are named, but nothing proves a client\'s name; '
                "use --tls-client-ca or --tls-psk"
            )
    for name in exports:
        volume, mark, _ = name.partition("@")
        if mark:
            raise ConfigError(
                f'exports."{name}": versions have the settings of their volume; '
                f'use exports."{volume}"'
            )
