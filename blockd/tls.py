"""TLS without sockets: what a server is configured with, and one channel per connection.

A `TlsChannel` takes ciphertext and gives plaintext, and the other way round; who moves the
ciphertext is not its business. X.509 and PSK (GnuTLS style: TLS 1.3 external PSK with (EC)DHE, and
the DHE-PSK and ECDHE-PSK suites of TLS 1.2) go through the same code, `native._tls` over OpenSSL.

A client proves who it is by certificate, when `client_ca` is set, or by the key that goes with its
PSK identity; either is enough when both are configured. What it may attach is decided elsewhere,
by its names. `TlsProvider` reads the files at the start, again when one of them has changed, and on
`reload()`; connections keep what they began with, and unusable new files leave the old ones in use.
Sessions are never resumed: a ticket would outlive a withdrawn certificate or key.
"""

import binascii
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from blockd.certificates import Certificate, read_end
from blockd.nbd.access import TlsIdentity
from blockd.secrets import SecretError, read_secret
from native import _tls
from native._tls import TlsError

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["TlsChannel", "TlsConfigError", "TlsError", "TlsProvider", "TlsSettings"]

logger = logging.getLogger(__name__)

VERSIONS = {"1.2": _tls.TLS1_2, "1.3": _tls.TLS1_3}  # older ones are broken, RFC 8996
# TLS 1.2 only with forward secrecy and AEAD. PSK first: a client that offers it has a key, and may
# have no certificate.
TLS12_CIPHERS = (
    "kECDHEPSK+CHACHA20:kDHEPSK+AESGCM:kDHEPSK+CHACHA20:ECDHE+AESGCM:ECDHE+CHACHA20:!AESCCM:!aNULL"
)
# SHA-256 first: an external PSK of TLS 1.3 is bound to a hash, by default this one (RFC 8446
# 4.2.11), and with a certificate at hand OpenSSL would rather drop the PSK than the cipher.
TLS13_SUITES = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384"
MAX_PSK_FILE = 4 << 20  # bytes: some 50,000 clients; more than that is not a key file
MAX_KEY_FILE = 1 << 20  # bytes: a private key has some 3 KiB, certificates may be beside it
MIN_PSK_KEY = 16  # bytes: a shorter key can be searched for, with one recorded handshake
MAX_PSK_KEY = 256  # bytes, OpenSSL's bound
MAX_PSK_IDENTITY = 128  # bytes, RFC 4279 5.3

Fingerprint = tuple[tuple[int, int, int, int] | None, ...]


class TlsConfigError(Exception):
    """TLS cannot be offered as configured; the message names the file and the way out."""

    code = "tls_config"


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """PEM files, and a key file as `psktool` writes it. A certificate, PSKs, or both."""

    certificate: Path | None = None
    """The server's certificate and those between it and the root."""
    key: Path | None = None
    """Its private key, without a passphrase; None when it is in `certificate`."""
    client_ca: Path | None = None
    """Clients must show a certificate signed by one of these (or a PSK)."""
    psk_file: Path | None = None
    """Lines of identity:hexkey."""
    min_version: str = "1.2"


class TlsChannel:
    """One connection's TLS, server side. Ciphertext that it wants sent waits in `output`."""

    def __init__(self, session: _tls.Session) -> None:
        self._session = session
        self.established = False
        self.identity = TlsIdentity(names=())

    def received(self, ciphertext: Buffer) -> None:
        """Take bytes from the peer; they are copied. Raises TlsError when too many wait."""
        self._session.feed(ciphertext)

    def handshake(self) -> bool:
        """Go on with the handshake; True once it is done and `identity` is known.

        Raises TlsError when it failed: the session is over, `output()` may hold an alert.
        """
        self.established = self._session.handshake()
        if self.established:
            self.identity = _identity(self._session)
        return self.established

    def read_into(self, target: Buffer) -> int:
        """Decrypt what is there into `target`; 0 when there is no more for now. Raises TlsError."""
        return self._session.read_into(target)

    def encrypt(self, plaintext: Sequence[Buffer]) -> bytes:
        """Ciphertext of the joined buffers: one record where it fits, else full ones. What
        `output()` held comes first. Raises TlsError."""
        return self._session.encrypt(plaintext)

    def output(self) -> bytes:
        """Ciphertext to send that nobody wrote: handshake messages, alerts, key updates."""
        return self._session.output()

    def close(self) -> bytes:
        """Ciphertext that says goodbye: close_notify, and what waited before it."""
        self._session.close()
        return self._session.output()

    @property
    def peer_closed(self) -> bool:
        """The peer said goodbye; nothing more can be read."""
        return self._session.peer_closed

    @property
    def protocol(self) -> str:
        """Version and cipher for operators, as `TLSv1.3 TLS_AES_128_GCM_SHA256`."""
        return f"{self._session.version} {self._session.cipher}"


class TlsProvider:
    """Makes channels from settings, with the newest usable state of the files."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read the files. Raises TlsConfigError."""
        self.settings = settings
        self._fingerprint = _fingerprint(settings)
        self._context = _context(settings)
        self._certificates = _certificates(settings)

    def reload(self) -> None:
        """Read the files again, for connections from now on. Raises TlsConfigError, and then goes
        on with what it had."""
        self._fingerprint = _fingerprint(self.settings)  # before the files: a race reads twice
        self._context = _context(self.settings)
        self._certificates = _certificates(self.settings)

    def channel(self) -> TlsChannel:
        """A channel for a new connection. Looks at the files' times, and reads them when changed;
        an error is logged once per change."""
        self._refresh()
        return TlsChannel(self._context.session())

    def certificates(self) -> tuple[Certificate, ...]:
        """Those that the next connection is served with. Looks at the files as `channel` does."""
        self._refresh()
        return self._certificates

    def _refresh(self) -> None:
        if _fingerprint(self.settings) != self._fingerprint:
            try:
                self.reload()
            except TlsConfigError as error:
                logger.warning("tls files changed, old ones stay", extra={"reason": str(error)})
            else:
                logger.info("tls files read again")


def _paths(settings: TlsSettings) -> list[Path]:
    named = (settings.certificate, settings.key, settings.client_ca, settings.psk_file)
    return [path for path in named if path is not None]


def _fingerprint(settings: TlsSettings) -> Fingerprint:
    return tuple(_file_state(path) for path in _paths(settings))


def _file_state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _context(settings: TlsSettings) -> _tls.Context:
    version = _check(settings)
    for path in (settings.certificate, settings.client_ca):
        _check_readable(path)
    key = settings.key or settings.certificate
    pem = None if key is None else _secret(key, "tls key", MAX_KEY_FILE)
    psk = None if settings.psk_file is None else read_psk_file(settings.psk_file)
    try:
        return _tls.Context(
            certificate=_text(settings.certificate),
            key=pem,
            client_ca=_text(settings.client_ca),
            psk=psk,
            min_version=version,
            ciphers=TLS12_CIPHERS,
            suites=TLS13_SUITES,
        )
    except TlsError as error:
        step, _, reason = str(error).partition(": ")
        path_of = {"certificate": settings.certificate, "key": key, "client_ca": settings.client_ca}
        hint = "must be the certificate's private key, PEM, without passphrase"
        raise TlsConfigError(
            f"tls {step} {path_of.get(step)}: {reason}; it "
            + (hint if step == "key" else "must be a PEM file of one or more certificates")
        ) from error


def _certificates(settings: TlsSettings) -> tuple[Certificate, ...]:
    """Of files that OpenSSL has taken."""
    files = {"server": settings.certificate, "client_ca": settings.client_ca}
    found = []
    for use, path in files.items():
        if path is None:
            continue
        try:
            found.append(Certificate(use, path, read_end(path)))
        except (OSError, ValueError) as error:
            facts = {"file": path, "reason": str(error)}
            logger.warning("when a tls certificate ends is not known", extra=facts)
    return tuple(found)


def _check_readable(path: Path | None) -> None:
    """Of files that are no secret; OpenSSL does not say well what keeps it from reading."""
    if path is None:
        return
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise TlsConfigError(
            f"tls file {path}: {error.strerror}; check the path and its permissions"
        ) from error


def _secret(path: Path, what: str, max_bytes: int) -> bytes:
    try:
        return read_secret(path, what, max_bytes)
    except SecretError as error:
        raise TlsConfigError(str(error)) from error


def _text(path: Path | None) -> str | None:
    return None if path is None else os.fspath(path)


def _check(settings: TlsSettings) -> int:
    """The lowest version to accept, as a number. Raises TlsConfigError for settings that do not
    go together."""
    if settings.certificate is None and settings.psk_file is None:
        raise TlsConfigError(
            "tls: neither a certificate nor a psk file is set; "
            "give --tls-cert and --tls-key, or --tls-psk, or switch TLS off"
        )
    if settings.certificate is None and (settings.key or settings.client_ca):
        given = settings.key or settings.client_ca
        raise TlsConfigError(
            f"tls file {given}: of no use without a server certificate; "
            "give --tls-cert as well, or leave it out"
        )
    version = VERSIONS.get(settings.min_version)
    if version is None:
        raise TlsConfigError(
            f"tls min_version {settings.min_version!r}: unknown; use {' or '.join(VERSIONS)}"
        )
    return version


def read_psk_file(path: Path) -> dict[bytes, bytes]:
    """Identities and keys of a GnuTLS key file: lines of identity:hexkey, where an identity that
    begins with # is itself in hex. Raises TlsConfigError, which never shows a key."""
    keys: dict[bytes, bytes] = {}
    lines = _secret(path, "psk file", MAX_PSK_FILE).splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            identity, key = _psk_line(line.strip())
            if identity in keys:
                raise ValueError("the identity is there twice")
        except ValueError as error:
            raise TlsConfigError(
                f"psk file {path}, line {number}: {error}; "
                f"make a line with: psktool -u NAME -p {path}"
            ) from None  # its cause would show the line
        keys[identity] = key
    if not keys:
        raise TlsConfigError(f"psk file {path}: no keys in it; run: psktool -u NAME -p {path}")
    return keys


def _psk_line(line: bytes) -> tuple[bytes, bytes]:
    identity, colon, hexkey = line.rpartition(b":")
    if not colon:
        raise ValueError("not of the form identity:hexkey")
    try:
        key = binascii.unhexlify(hexkey)
        if identity.startswith(b"#"):
            identity = binascii.unhexlify(identity[1:])
    except ValueError:
        raise ValueError("not of the form identity:hexkey") from None
    if not 1 <= len(identity) <= MAX_PSK_IDENTITY or b"\0" in identity:
        raise ValueError(f"an identity is 1 to {MAX_PSK_IDENTITY} bytes without NUL")
    if not MIN_PSK_KEY <= len(key) <= MAX_PSK_KEY:
        raise ValueError(f"a key is {MIN_PSK_KEY} to {MAX_PSK_KEY} bytes, this one {len(key)}")
    return identity, key


def _identity(session: _tls.Session) -> TlsIdentity:
    """What the client has proved to be called: its PSK identity, or the names in its certificate
    (common name, then the DNS, URI and e-mail names)."""
    identity = session.psk_identity
    if identity is not None:
        return TlsIdentity((identity.decode("utf-8", "backslashreplace"),), by_psk=True)
    der = session.peer_certificate
    if der is None:
        return TlsIdentity(())
    from cryptography import x509  # not for those who have no TLS

    fingerprint = hashlib.sha256(der).hexdigest()
    try:
        names = certificate_names(x509.load_der_x509_certificate(der))
        return TlsIdentity(names, fingerprint)
    except ValueError as error:
        raise TlsError(f"handshake: client certificate refused: {error}") from error


def certificate_names(certificate: "x509.Certificate") -> tuple[str, ...]:
    """Common name, then subject alternative names (DNS, URI, e-mail), each once."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    names = [
        value
        for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        if isinstance(value := attribute.value, str)
    ]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return tuple(names)
    alternative = extension.value
    names += alternative.get_values_for_type(x509.DNSName)
    names += alternative.get_values_for_type(x509.UniformResourceIdentifier)
    names += alternative.get_values_for_type(x509.RFC822Name)
    return tuple(dict.fromkeys(names))
