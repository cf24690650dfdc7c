"""Certificates and keys for tests: a CA, server and client certificates, a PSK file.

Files have the names that libnbd expects in the folder of `tls-certificates=DIR`: ca-cert.pem,
client-cert.pem and client-key.pem for the client, server-cert.pem and server-key.pem beside them.
Keys are EC, which are quick to make.
"""

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_DAY = datetime.timedelta(days=1)
_DAYS = 90
_SERVER_NAMES = (
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, certificate: Path, key: Path) -> None:
        certificate.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        key.touch(mode=0o600)
        key.write_bytes(
            self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


class Authority:
    """A CA that issues certificates."""

    def __init__(self, name: str = "blockd test CA") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
        builder = _builder(self._name, self._name, self._key.public_key(), days=_DAYS)
        self.certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def server(self, common_name: str = "localhost", *, days: float = _DAYS) -> Issued:
        """For a server on this machine, for so many days from now."""
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        return self._issue(common_name, _SERVER_NAMES, usage, days=days)

    def client(self, common_name: str, *names: x509.GeneralName, expired: bool = False) -> Issued:
        usage = ExtendedKeyUsageOID.CLIENT_AUTH
        return self._issue(common_name, names, usage, days=-1 if expired else _DAYS)

    def _issue(
        self,
        common_name: str,
        names: tuple[x509.GeneralName, ...],
        usage: x509.ObjectIdentifier,
        *,
        days: float,
    ) -> Issued:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        builder = _builder(subject, self._name, key.public_key(), days=days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)
        return Issued(builder.sign(self._key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * _DAY)
        .not_valid_after(now + days * _DAY)
    )


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A folder with everything for one server and one client called `alice`."""

    folder: Path
    authority: Authority

    @property
    def ca(self) -> Path:
        return self.folder / "ca-cert.pem"

    @property
    def server_certificate(self) -> Path:
        return self.folder / "server-cert.pem"

    @property
    def server_key(self) -> Path:
        return self.folder / "server-key.pem"

    @property
    def client_certificate(self) -> Path:
        return self.folder / "client-cert.pem"

    @property
    def client_key(self) -> Path:
        return self.folder / "client-key.pem"

    @property
    def psk(self) -> Path:
        return self.folder / "keys.psk"


def make_tls_files(folder: Path) -> TlsFiles:
    """Write a CA, certificates and a PSK file into `folder`, which must exist."""
    files = TlsFiles(folder, Authority())
    pem = files.authority.certificate.public_bytes(serialization.Encoding.PEM)
    files.ca.write_bytes(pem)
    files.authority.server().write(files.server_certificate, files.server_key)
    files.authority.client("alice").write(files.client_certificate, files.client_key)
    write_psk_file(files.psk, {"alice": os.urandom(32)})
    return files


def write_psk_file(path: Path, keys: dict[str, bytes]) -> None:
    """A key file as psktool writes it, readable by its owner only."""
    path.touch(mode=0o600)
    path.write_text("".join(f"{name}:{key.hex()}\n" for name, key in keys.items()))
