"""Stub of the TLS extension: OpenSSL's server side over memory, for certificates and PSK alike.

A session belongs to one thread at a time; using it from two at once raises RuntimeError. Buffers
passed in are borrowed for the call. Handshake, decryption and encryption release the GIL.
"""

from collections.abc import Sequence
from typing import Final, final

from typing_extensions import Buffer

TLS1_2: Final = 0x0303
TLS1_3: Final = 0x0304

class TlsError(Exception):
    """`<step>: <reason>`; step is certificate, key, client_ca, min_version, ciphers, suites,
    handshake, read or write. After an error of a session only `output()` (it may hold an alert) is
    useful."""

@final
class Context:
    """Keys and rules for many sessions. Files are PEM and read once, here.

    `certificate` and `key` go together; `key` is no path but PEM text, borrowed for the call, with
    a private key somewhere in it. With `client_ca` a client must show a certificate that this CA
    signed, unless it is keyed by PSK. `psk` maps identities to keys and is copied. `ciphers` is
    OpenSSL's list for TLS 1.2, `suites` the one for TLS 1.3, in the server's order.
    """
    def __new__(
        cls,
        certificate: str | None,
        key: bytes | None,
        client_ca: str | None,
        psk: dict[bytes, bytes] | None,
        min_version: int,
        ciphers: str,
        suites: str,
    ) -> Context: ...
    def session(self) -> Session: ...

@final
class Session:
    """One connection, server side, made by `Context.session()`."""

    def feed(self, data: Buffer) -> None:
        """Copy ciphertext in. TlsError when more than 4 MiB of it wait to be read."""

    def handshake(self) -> bool:
        """Go on with what was fed; True once done. Send `output()` after each call, also after
        a TlsError."""

    def read_into(self, target: Buffer) -> int:
        """Decrypt as much as fits; 0 when more ciphertext is needed or the peer has closed."""

    def encrypt(self, buffers: Sequence[Buffer]) -> bytes:
        """Ciphertext of the joined buffers, in records as full as possible, behind anything that
        `output()` would have returned."""

    def output(self) -> bytes:
        """Ciphertext that waits to be sent; b"" when none."""

    def close(self) -> None:
        """Queue close_notify, if the handshake was completed."""

    @property
    def peer_certificate(self) -> bytes | None:
        """The client's verified certificate, DER."""

    @property
    def psk_identity(self) -> bytes | None:
        """The identity whose key this session is keyed by; None before the handshake is done."""

    @property
    def version(self) -> str: ...
    @property
    def cipher(self) -> str: ...
    @property
    def peer_closed(self) -> bool:
        """The peer sent close_notify."""
