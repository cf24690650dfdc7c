"""TLS channels against Python's own TLS client, in memory; PSK against libnbd in test_listener."""

import contextlib
import dataclasses
import logging
import random
import ssl
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.certificates import read_end
from blockd.tls import (
    TlsChannel,
    TlsConfigError,
    TlsError,
    TlsProvider,
    TlsSettings,
    certificate_names,
    read_psk_file,
)
from tests.tls_fixtures import Authority, TlsFiles, make_tls_files, write_psk_file

RECORD_BYTES = 16384


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


def settings_of(files: TlsFiles) -> TlsSettings:
    return TlsSettings(certificate=files.server_certificate, key=files.server_key)


class Client:
    """Python's TLS client over memory, trusting the test's CA."""

    def __init__(
        self, files: TlsFiles, *, certificate: bool = False, version: str | None = None
    ) -> None:
        context = ssl.create_default_context(cafile=str(files.ca))
        if certificate:
            context.load_cert_chain(files.client_certificate, files.client_key)
        if version is not None:
            context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def step(self, from_server: bytes) -> bytes:
        """Go on with the handshake; what to send to the server."""
        self.incoming.write(from_server)
        with contextlib.suppress(ssl.SSLWantReadError):
            self.object.do_handshake()
        return self.outgoing.read()

    def encrypt(self, plaintext: bytes) -> bytes:
        self.object.write(plaintext)
        return self.outgoing.read()

    def decrypt(self, ciphertext: bytes) -> bytes:
        self.incoming.write(ciphertext)
        pieces = []
        try:
            while piece := self.object.read(1 << 20):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            pass
        return b"".join(pieces)


def shake_hands(channel: TlsChannel, client: Client) -> None:
    to_client = b""
    for _ in range(4):
        channel.received(client.step(to_client))
        done = channel.handshake()
        to_client = channel.output()
        if done:
            break
    client.step(to_client)


def connected(settings: TlsSettings, client: Client) -> TlsChannel:
    channel = TlsProvider(settings).channel()
    shake_hands(channel, client)
    assert channel.established
    return channel


def read(channel: TlsChannel, room: int = 1 << 20) -> bytes:
    target = bytearray(room)
    return bytes(target[: channel.read_into(target)])


def record_count(ciphertext: bytes) -> int:
    count = offset = 0
    while offset < len(ciphertext):
        offset += 5 + int.from_bytes(ciphertext[offset + 3 : offset + 5])
        count += 1
    assert offset == len(ciphertext)
    return count


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_bytes_pass_both_ways(files: TlsFiles, version: str) -> None:
    client = Client(files, version=version)
    channel = connected(settings_of(files), client)
    channel.received(client.encrypt(b"question"))
    assert read(channel) == b"question"
    assert read(channel) == b""
    assert client.decrypt(channel.encrypt([b"ans", b"wer"])) == b"answer"
    assert channel.protocol.startswith(version.replace("_", "."))


def test_handshake_works_byte_by_byte(files: TlsFiles) -> None:
    client = Client(files)
    channel = TlsProvider(settings_of(files)).channel()
    to_client = b""
    while not channel.established:
        for byte in client.step(to_client):
            channel.received(bytes([byte]))
            channel.handshake()
        to_client = channel.output()
    channel.received(client.encrypt(b"x"))
    assert read(channel) == b"x"


def test_small_reply_is_one_record(files: TlsFiles) -> None:
    channel = connected(settings_of(files), Client(files))
    assert record_count(channel.encrypt([bytes(16), bytes(4096)])) == 1


def test_large_reply_uses_full_records(files: TlsFiles) -> None:
    client = Client(files)
    channel = connected(settings_of(files), client)
    header, payload = b"h" * 16, random.Random(1).randbytes(1 << 20)
    ciphertext = channel.encrypt([header, payload])
    assert record_count(ciphertext) == (16 + (1 << 20)) // RECORD_BYTES + 1
    assert client.decrypt(ciphertext) == header + payload


@settings(deadline=None)  # a busy machine says nothing about the test
@given(lengths=st.lists(st.integers(0, 3 * RECORD_BYTES), max_size=8), room=st.integers(1, 9000))
def test_any_split_of_buffers_arrives_joined(
    files: TlsFiles, lengths: Sequence[int], room: int
) -> None:
    client = Client(files)
    channel = connected(settings_of(files), client)
    buffers = [bytes([index + 1]) * length for index, length in enumerate(lengths)]
    whole = b"".join(buffers)
    assert client.decrypt(channel.encrypt(buffers)) == whole
    if whole:
        channel.received(client.encrypt(whole))
    assert b"".join(iter(lambda: read(channel, room), b"")) == whole


def test_client_certificate_gives_names(files: TlsFiles) -> None:
    settings = dataclasses.replace(settings_of(files), client_ca=files.ca)
    channel = connected(settings, Client(files, certificate=True))
    assert channel.identity.names == ("alice",)


def test_without_client_ca_nobody_has_a_name(files: TlsFiles) -> None:
    channel = connected(settings_of(files), Client(files, certificate=True))
    assert channel.identity.names == ()


def test_all_names_of_a_certificate_count_once() -> None:
    issued = Authority().client(
        "alice",
        x509.DNSName("alice"),
        x509.DNSName("vm1.example"),
        x509.RFC822Name("alice@example.org"),
        x509.UniformResourceIdentifier("spiffe://example.org/vm1"),
    )
    assert certificate_names(issued.certificate) == (
        "alice",
        "vm1.example",
        "spiffe://example.org/vm1",
        "alice@example.org",
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda files: None, "did not return a certificate"),
        (lambda files: Authority().client("mallory"), "client certificate refused"),
        (lambda files: files.authority.client("alice", expired=True), "has expired"),
        (lambda files: files.authority.server("alice"), "unsuitable certificate purpose"),
    ],
    ids=["none", "other authority", "expired", "server certificate"],
)
def test_unfit_client_certificate_is_refused(
    files: TlsFiles, tmp_path: Path, spoil: Callable[[TlsFiles], object], reason: str
) -> None:
    mine = TlsFiles(tmp_path, files.authority)
    mine.ca.write_bytes(files.ca.read_bytes())
    issued = spoil(files)
    if issued is not None:
        issued.write(mine.client_certificate, mine.client_key)  # type: ignore[attr-defined]
    settings = dataclasses.replace(settings_of(files), client_ca=files.ca)
    channel = TlsProvider(settings).channel()
    with pytest.raises(TlsError, match=reason):
        shake_hands(channel, Client(mine, certificate=issued is not None))
    assert channel.output()  # the alert
    assert not channel.established
    assert channel.identity.names == ()


def test_tls_1_1_is_refused(files: TlsFiles) -> None:
    hello = bytes.fromhex("16030100610100005d0302") + bytes(32) + bytes.fromhex("00")
    hello += bytes.fromhex("0004c014c0130100") + bytes(0x61 - 47)
    channel = TlsProvider(settings_of(files)).channel()
    channel.received(hello)
    with pytest.raises(TlsError, match="handshake"):
        channel.handshake()


def test_min_version_1_3_refuses_1_2(files: TlsFiles) -> None:
    settings = dataclasses.replace(settings_of(files), min_version="1.3")
    channel = TlsProvider(settings).channel()
    with pytest.raises(TlsError, match="unsupported protocol"):
        shake_hands(channel, Client(files, version="TLSv1_2"))


@given(garbage=st.binary(min_size=1, max_size=64))
def test_garbage_never_completes_a_handshake(files: TlsFiles, garbage: bytes) -> None:
    channel = TlsProvider(settings_of(files)).channel()
    channel.received(garbage)
    try:
        assert not channel.handshake()
    except TlsError:
        assert not channel.established


def test_altered_ciphertext_is_an_error(files: TlsFiles) -> None:
    client = Client(files)
    channel = connected(settings_of(files), client)
    ciphertext = bytearray(client.encrypt(b"question"))
    ciphertext[-1] ^= 1
    channel.received(ciphertext)
    with pytest.raises(TlsError, match="read"):
        read(channel)


def test_too_much_unread_ciphertext_is_an_error(files: TlsFiles) -> None:
    channel = connected(settings_of(files), Client(files))
    for _ in range(4):
        channel.received(bytes(1 << 20))
    with pytest.raises(TlsError, match="bytes of ciphertext wait"):
        channel.received(bytes(1))


def test_goodbye_is_seen_on_both_sides(files: TlsFiles) -> None:
    client = Client(files)
    channel = connected(settings_of(files), client)
    client.incoming.write(channel.close())
    assert client.object.read(1) == b""
    client.object.unwrap()
    channel.received(client.outgoing.read())
    assert read(channel) == b""
    assert channel.peer_closed


def test_session_is_never_resumed(files: TlsFiles) -> None:
    client = Client(files)
    connected(settings_of(files), client)
    session = client.object.session
    assert session is None or not session.has_ticket


def test_changed_certificate_serves_new_connections(files: TlsFiles, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    files.authority.server("first").write(certificate, key)
    provider = TlsProvider(TlsSettings(certificate=certificate, key=key))
    files.authority.server("second").write(certificate, key)
    client = Client(files)
    shake_hands(provider.channel(), client)
    subject = client.object.getpeercert()
    assert subject is not None
    assert subject["subject"] == ((("commonName", "second"),),)


def test_unusable_new_files_leave_the_old_ones(
    files: TlsFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    files.authority.server().write(certificate, key)
    provider = TlsProvider(TlsSettings(certificate=certificate, key=key))
    key.write_text("no key")
    with caplog.at_level(logging.WARNING):
        shake_hands(provider.channel(), Client(files))
        shake_hands(provider.channel(), Client(files))
    assert [record.getMessage() for record in caplog.records] == [
        "tls files changed, old ones stay"
    ]
    with pytest.raises(TlsConfigError, match="key"):
        provider.reload()
    shake_hands(provider.channel(), Client(files))


def test_certificate_and_key_may_share_a_file(files: TlsFiles, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_bytes(files.server_key.read_bytes() + files.server_certificate.read_bytes())
    connected(TlsSettings(certificate=both), Client(files))


def test_the_ends_of_certificates_in_use_are_known(files: TlsFiles, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    files.authority.server(days=40).write(certificate, key)
    provider = TlsProvider(TlsSettings(certificate, key, client_ca=files.ca))
    first = provider.certificates()
    assert [(each.use, each.file) for each in first] == [
        ("server", certificate),
        ("client_ca", files.ca),
    ]
    assert first[0].ends == read_end(certificate)
    assert first[0].ends < first[1].ends
    files.authority.server(days=80).write(certificate, key)
    renewed = provider.certificates()  # nobody has connected since
    assert renewed[0].ends - first[0].ends > timedelta(days=39)
    certificate.write_text("none")
    assert provider.certificates() == renewed  # those that are still served


def test_keys_alone_have_no_end(files: TlsFiles) -> None:
    assert TlsProvider(TlsSettings(psk_file=files.psk)).certificates() == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"certificate": None, "key": None}, "neither a certificate nor a psk file"),
        (
            {"certificate": None, "psk_file": Path("/keys")},
            "server-key.pem: of no use without a server certificate",
        ),
        ({"certificate": Path("/nonexistent/cert.pem")}, "/nonexistent/cert.pem: No such file"),
        ({"client_ca": Path("/dev/null")}, "client_ca /dev/null: "),
        ({"certificate": Path("/dev/null")}, "certificate /dev/null: no start line"),
        ({"min_version": "1.1"}, "min_version '1.1': unknown; use 1.2 or 1.3"),
    ],
)
def test_unusable_settings_name_the_file_and_the_way_out(
    files: TlsFiles, change: dict[str, object], message: str
) -> None:
    settings = dataclasses.replace(settings_of(files), **change)  # type: ignore[arg-type]
    with pytest.raises(TlsConfigError, match=message):
        TlsProvider(settings)


def test_key_of_another_certificate_is_refused(files: TlsFiles) -> None:
    settings = dataclasses.replace(settings_of(files), key=files.client_key)
    with pytest.raises(TlsConfigError, match=r"client-key\.pem: key values mismatch; it must be"):
        TlsProvider(settings)


def test_psk_file_as_gnutls_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    key = bytes(range(32))
    write_psk_file(path, {"alice": key, "host:7": key, "#c3bf": key})
    assert read_psk_file(path) == {b"alice": key, b"host:7": key, b"\xc3\xbf": key}


def test_psk_file_open_to_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    write_psk_file(path, {"alice": bytes(16)})
    path.chmod(0o640)
    with pytest.raises(TlsConfigError, match=f"psk file .* run: chmod 600 {path}"):
        read_psk_file(path)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "beside the certificate"])
def test_private_key_open_to_others_is_refused(
    files: TlsFiles, tmp_path: Path, shared: bool
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    files.authority.server().write(certificate, key)
    if shared:
        key.write_bytes(key.read_bytes() + certificate.read_bytes())
    settings = TlsSettings(key) if shared else TlsSettings(certificate, key)
    TlsProvider(settings)
    key.chmod(0o644)
    with pytest.raises(TlsConfigError, match=f"tls key {key}: mode 0644 .* chmod 600 {key}"):
        TlsProvider(settings)


def test_key_with_a_passphrase_is_refused_and_nobody_asked(files: TlsFiles, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued = files.authority.server()
    issued.write(certificate, key)
    key.write_bytes(
        issued.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(TlsConfigError, match=r"key\.pem: .*; it must be .* without passphrase"):
        TlsProvider(TlsSettings(certificate, key))


def test_key_file_without_a_key_is_refused(files: TlsFiles, tmp_path: Path) -> None:
    (empty := tmp_path / "empty.pem").touch(mode=0o600)
    with pytest.raises(TlsConfigError, match=r"tls key .*empty\.pem: \w+; it must be"):
        TlsProvider(TlsSettings(files.server_certificate, empty))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no keys in it"),
        ("alice\n", "line 1: not of the form"),
        ("\nalice:deadbeefx\n", "line 2: not of the form"),
        ("alice:deadbeef\n", "a key is 16 to 256 bytes, this one 4"),
        (f":{'00' * 16}\n", "an identity is 1 to 128 bytes"),
        (f"#00:{'00' * 16}\n", "without NUL"),
        (f"{'a' * 129}:{'00' * 16}\n", "an identity is 1 to 128 bytes"),
        (f"alice:{'00' * 16}\nalice:{'11' * 16}\n", "line 2: the identity is there twice"),
    ],
)
def test_bad_psk_line_is_named_without_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.touch(mode=0o600)
    path.write_text(text)
    with pytest.raises(TlsConfigError, match=message) as caught:
        read_psk_file(path)
    assert "deadbeef" not in str(caught.value)


def test_psk_only_server_refuses_a_client_without_psk(files: TlsFiles) -> None:
    channel = TlsProvider(TlsSettings(psk_file=files.psk)).channel()
    with pytest.raises(TlsError, match="handshake"):
        shake_hands(channel, Client(files))


def test_psk_beside_certificates_leaves_certificates_working(files: TlsFiles) -> None:
    settings = dataclasses.replace(settings_of(files), psk_file=files.psk, client_ca=files.ca)
    channel = connected(settings, Client(files, certificate=True))
    assert channel.identity.names == ("alice",)
