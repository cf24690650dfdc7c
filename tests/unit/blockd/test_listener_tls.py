"""STARTTLS over real sockets: what is refused, what is forgotten, who the client is."""

import logging
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.config import TcpAddress
from blockd.nbd import wire
from blockd.nbd.access import ExportPolicy, TlsMode
from blockd.nbd.limits import Limits
from blockd.tls import TlsProvider, TlsSettings
from tests.clients import FindTool, run_tool
from tests.fakes import MemoryDevice
from tests.nbd_client import NbdClient, OptionError, option, request
from tests.served import LONG_S, LOOPS, TIMEOUT_S, Served, serving
from tests.tls_fixtures import TlsFiles, make_tls_files, write_psk_file

MIB = 1 << 20

every_loop = pytest.mark.parametrize("loop", list(LOOPS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return make_tls_files(tmp_path_factory.mktemp("tls"))


def provider(files: TlsFiles, *, client_ca: bool = False, psk: bool = False) -> TlsProvider:
    return TlsProvider(
        TlsSettings(
            certificate=files.server_certificate,
            key=files.server_key,
            client_ca=files.ca if client_ca else None,
            psk_file=files.psk if psk else None,
        )
    )


def trusting(files: TlsFiles, *, certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.ca))
    if certificate:
        context.load_cert_chain(files.client_certificate, files.client_key)
    return context


@pytest.fixture(params=list(LOOPS))
def served(request: pytest.FixtureRequest, files: TlsFiles) -> Iterator[Served]:
    """TLS required, any client."""
    with serving(request.param, tls_mode=TlsMode.REQUIRE, tls=provider(files)) as served:
        yield served


@pytest.fixture
def client(served: Served, files: TlsFiles) -> Iterator[NbdClient]:
    """In transmission, under TLS."""
    with served.client() as client:
        client.starttls(trusting(files), "localhost")
        client.go("disk")
        yield client


def test_reads_and_writes_of_every_size(client: NbdClient) -> None:
    for length in (1, 512, 16368, 16384, 100_000, MIB):
        data = bytes([length % 251]) * length
        client.write(0, data)
        assert client.read(0, length) == data


def test_pipelined_requests_are_served_in_few_batches(served: Served, client: NbdClient) -> None:
    client.send_raw(b"".join(request(wire.CMD_READ, 0, 512, cookie=n) for n in range(32)))
    assert len(client._receive(32 * (16 + 512))) == 32 * (16 + 512)
    assert served.device.batch_sizes == [32]


def test_disconnect_ends_with_close_notify(client: NbdClient) -> None:
    client.disconnect()
    assert isinstance(client.socket, ssl.SSLSocket)
    client.socket.unwrap()  # raises when the server just closed


def test_large_transfer_in_both_directions(files: TlsFiles) -> None:
    device = MemoryDevice(size=64 * MIB)
    limits = Limits(max_payload=8 * MIB, max_in_flight_bytes=8 * MIB)
    with (
        serving(
            device=device, tls_mode=TlsMode.ALLOW, tls=provider(files), limits=limits
        ) as served,
        served.client() as client,
    ):
        client.starttls(trusting(files), "localhost")
        client.go("disk")
        data = bytes(range(256)) * (8 * MIB // 256)
        for number in range(4):
            client.write(number * 8 * MIB, data)
        for number in range(8):  # more than the limits at once: reading goes on as replies leave
            client.send_request(wire.CMD_READ, number % 4 * 8 * MIB, 8 * MIB)
        for _ in range(8):
            assert client.read_reply().data == data


def test_plain_option_is_refused_where_tls_is_required(served: Served) -> None:
    with served.client() as client, pytest.raises(OptionError) as caught:
        client.go("disk")
    assert caught.value.reply == wire.REP_ERR_TLS_REQD


def test_bytes_in_the_clear_behind_starttls_are_thrown_away(
    served: Served, files: TlsFiles
) -> None:
    """CVE-2021-3716 and its kind: what a man in the middle appends must have no effect."""
    with served.client() as client:
        client.send_raw(option(wire.OPT_STARTTLS) + option(wire.OPT_LIST) + b"\x16\x03\x01")
        assert client.read_option_reply().reply == wire.REP_ACK
        client.socket = trusting(files).wrap_socket(client.socket, server_hostname="localhost")
        assert client.list_exports() == ["disk"]  # once, and encrypted


def test_plain_bytes_in_place_of_a_handshake_end_the_session(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), served.client() as client:
        client.option(wire.OPT_STARTTLS)
        client.send_raw(option(wire.OPT_LIST))
        answer = client.socket.recv(4096)
        assert answer[:1] in (b"", b"\x15")  # at most an alert
        assert not answer or client.at_eof()
    assert "tls handshake" in vars(caplog.records[0])["reason"]


def test_plain_bytes_after_the_handshake_end_the_session(served: Served, client: NbdClient) -> None:
    plain = socket.socket(fileno=client.socket.detach())
    plain.settimeout(TIMEOUT_S)
    with plain:
        plain.sendall(request(wire.CMD_WRITE, 0, 4, payload=b"evil"))
        while plain.recv(4096):
            pass
    assert served.device.seen == []


def test_vanishing_without_close_notify_detaches(served: Served, client: NbdClient) -> None:
    client.socket.shutdown(socket.SHUT_RDWR)
    client.close()
    served.until_empty()
    assert served.device.clients == []


def test_handshake_timeout_covers_the_tls_handshake(files: TlsFiles) -> None:
    limits = Limits(handshake_timeout_s=0.2)
    with (
        serving(tls_mode=TlsMode.ALLOW, tls=provider(files), limits=limits) as served,
        served.client() as client,
    ):
        client.option(wire.OPT_STARTTLS)
        assert client.at_eof()


def test_stop_says_goodbye_under_tls(served: Served, client: NbdClient) -> None:
    stopping = served.begin(served.listener.stop(LONG_S))
    assert client.at_eof()
    assert isinstance(client.socket, ssl.SSLSocket)
    client.socket.unwrap().close()
    stopping.result(TIMEOUT_S)


# --- who the client is --------------------------------------------------------------------------


@every_loop
def test_client_certificate_opens_what_it_is_listed_for(loop: str, files: TlsFiles) -> None:
    policies = {"disk": ExportPolicy(clients=("alice",))}
    with (
        serving(
            loop, policies=policies, tls_mode=TlsMode.REQUIRE, tls=provider(files, client_ca=True)
        ) as served,
        served.client() as client,
    ):
        client.starttls(trusting(files, certificate=True), "localhost")
        client.go("disk")
        (info,) = served.on_loop(served.listener.connections)
        assert (info.tls, info.names) == (True, ("alice",))


@every_loop
def test_client_without_certificate_is_cut_where_one_is_needed(
    loop: str, files: TlsFiles, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        serving(loop, tls_mode=TlsMode.REQUIRE, tls=provider(files, client_ca=True)) as served,
        served.client() as client,
    ):
        # Under TLS 1.3 the client believes to be done before the server has looked.
        client.starttls(trusting(files), "localhost")
        with pytest.raises((ssl.SSLError, EOFError, ConnectionError)):
            client.go("disk")
        assert served.device.clients == []
    assert "did not return a certificate" in vars(caplog.records[0])["reason"]


def test_export_that_needs_tls_is_open_under_it_alone(files: TlsFiles) -> None:
    policies = {"disk": ExportPolicy(tls_required=True)}
    with serving(policies=policies, tls_mode=TlsMode.ALLOW, tls=provider(files)) as served:
        with served.client() as plain, pytest.raises(OptionError):
            plain.go("disk")
        with served.client() as client:
            client.starttls(trusting(files), "localhost")
            client.go("disk")


@every_loop
@pytest.mark.parametrize("beside", ["alone", "beside certificates"])
def test_nbdcopy_with_a_pre_shared_key(
    loop: str, beside: str, client_tool: FindTool, files: TlsFiles, tmp_path: Path
) -> None:
    nbdcopy = client_tool("nbdcopy")
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(bytes(range(256)) * (8 * MIB // 256))
    keys = TlsProvider(TlsSettings(psk_file=files.psk))
    tls = keys if beside == "alone" else provider(files, client_ca=True, psk=True)
    with serving(
        loop,
        device=MemoryDevice(size=8 * MIB),
        policies={"disk": ExportPolicy(clients=("alice",))},
        tcp=[TcpAddress("localhost", 0)],
        tls_mode=TlsMode.REQUIRE,
        tls=tls,
    ) as served:
        uri = f"nbds://alice@localhost:{served.address[1]}/disk?tls-psk-file={files.psk}"
        run_tool(nbdcopy, image, uri)
        run_tool(nbdcopy, uri, back)
    assert back.read_bytes() == image.read_bytes()


# --- PSK against OpenSSL's client, without NBD ---------------------------------------------------


def psk_handshake(
    openssl: str, tls: TlsProvider, identity: str, key: bytes, version: str
) -> tuple[str, tuple[str, ...]] | str:
    """Protocol and names after a handshake with `openssl s_client`, or why it failed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        where = f"127.0.0.1:{listening.getsockname()[1]}"
        command = [openssl, "s_client", "-connect", where, f"-{version}", "-psk_identity", identity]
        process = subprocess.Popen(
            [*command, "-psk", key.hex(), "-quiet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            listening.settimeout(TIMEOUT_S)
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                channel = tls.channel()
                try:
                    while not channel.established:
                        channel.received(connection.recv(65536))
                        channel.handshake()
                        connection.sendall(channel.output())
                except Exception as error:
                    return str(error)
                return channel.protocol, channel.identity.names
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def psk(tmp_path_factory: pytest.TempPathFactory) -> TlsProvider:
    path = tmp_path_factory.mktemp("psk") / "keys"
    write_psk_file(path, {"alice": bytes(range(32)), "bob": bytes(16)})
    return TlsProvider(TlsSettings(psk_file=path))


@pytest.mark.parametrize(("version", "protocol"), [("tls1_2", "TLSv1.2 "), ("tls1_3", "TLSv1.3 ")])
def test_pre_shared_key_names_the_client(
    client_tool: FindTool, psk: TlsProvider, version: str, protocol: str
) -> None:
    openssl = client_tool("openssl")
    for name, key in (("alice", bytes(range(32))), ("bob", bytes(16))):
        found = psk_handshake(openssl, psk, name, key, version)
        assert found[1] == (name,)
        assert found[0].startswith(protocol)


@pytest.mark.parametrize("version", ["tls1_2", "tls1_3"])
@pytest.mark.parametrize(
    ("identity", "key"),
    [("alice", bytes(32)), ("mallory", bytes(range(32))), ("bob", bytes(range(32)))],
    ids=["wrong key", "unknown identity", "another's key"],
)
def test_wrong_pre_shared_key_is_refused(
    client_tool: FindTool, psk: TlsProvider, version: str, identity: str, key: bytes
) -> None:
    failure = psk_handshake(client_tool("openssl"), psk, identity, key, version)
    assert isinstance(failure, str)
    assert failure.startswith("handshake: ")
