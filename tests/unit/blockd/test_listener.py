"""The listener with real sockets: who is served, who is cut, what a stop waits for."""

import asyncio
import logging
import socket
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from blockd import client_protocol
from blockd.client_protocol import WRITE_HIGH_BYTES
from blockd.config import TcpAddress
from blockd.device import Done
from blockd.listener import ListenError
from blockd.log_limiter import BURST
from blockd.nbd import wire
from blockd.nbd.limits import Limits
from blockd.sockets import unacknowledged
from native import Request
from tests.clients import FindTool, run_tool
from tests.fakes import MemoryDevice
from tests.nbd_client import NbdClient, request
from tests.served import LONG_S, LOOPS, TIMEOUT_S, serving

MIB = 1 << 20

every_loop = pytest.mark.parametrize("loop", list(LOOPS))


def reset(client: NbdClient) -> None:
    """Vanish without a goodbye: the kernel sends RST."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


# --- where it listens ---------------------------------------------------------------------------


@every_loop
def test_clients_are_served_on_tcp_and_unix_sockets(loop: str, socket_dir: Path) -> None:
    path = socket_dir / "nbd.sock"
    with serving(loop, tcp=[TcpAddress("127.0.0.1", 0)], unix=path) as served:
        for address in (served.address, str(path)):
            with NbdClient(address) as client:
                client.greet()
                client.go("disk")
                client.write(4096, b"x" * 4096)
                assert client.read(0, 8192) == bytes(4096) + b"x" * 4096
                client.disconnect()


@every_loop
def test_unix_socket_is_private_and_goes_at_stop(loop: str, socket_dir: Path) -> None:
    path = socket_dir / "nbd.sock"
    with serving(loop, unix=path) as served:
        assert served.listener.addresses == [str(path)]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


@every_loop
def test_adopted_socket_is_served(loop: str) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    port = sock.getsockname()[1]
    with serving(loop, adopted=[sock]) as served:
        assert served.listener.addresses == [f"127.0.0.1:{port}"]
        with served.attached() as client:
            assert client.read(0, 512) == bytes(512)


def test_start_that_fails_leaves_nothing_bound(socket_dir: Path) -> None:
    path = socket_dir / "nbd.sock"
    path.write_text("precious")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with (
        pytest.raises(ListenError, match="not a socket"),
        serving(tcp=[TcpAddress("127.0.0.1", port)], unix=path),
    ):
        pass
    socket.create_server(("127.0.0.1", port)).close()
    assert path.read_text() == "precious"


# --- what operators see -------------------------------------------------------------------------


@every_loop
def test_connections_are_listed_while_they_last(loop: str) -> None:
    with serving(loop) as served:
        with served.attached() as client:
            client.write(0, bytes(4096))
            client.read(0, 512)
            (info,) = served.on_loop(served.listener.connections)
            host, port = client.socket.getsockname()
            assert info.peer == f"{host}:{port}"
            assert (info.export, info.tls, info.names, info.in_flight) == ("disk", False, (), 0)
            assert (info.read_count, info.read_bytes) == (1, 512)
            assert (info.write_count, info.write_bytes) == (1, 4096)
            assert served.on_loop(lambda: list(served.device.clients)) == [info.peer]
        served.until_empty()
        assert served.device.clients == []


# --- what a client gets -------------------------------------------------------------------------


@every_loop
def test_replies_of_one_batch_leave_in_one_write(loop: str) -> None:
    with serving(loop) as served, served.attached() as client:
        client.send_raw(b"".join(request(wire.CMD_READ, 0, 512, cookie=n) for n in range(32)))
        assert len(client.socket.recv(1 << 20)) == 32 * (16 + 512)
        assert served.device.batch_sizes == [32]


@every_loop
def test_half_closed_client_gets_its_replies(loop: str) -> None:
    device = MemoryDevice(deferred=True)
    with serving(loop, device=device) as served, served.attached() as client:
        client.send_request(wire.CMD_READ, 0, 512)
        served.until(lambda: device.waiting == 1)
        client.socket.shutdown(socket.SHUT_WR)
        served.until(lambda: served.listener.connections()[0].in_flight == 1)
        served.on_loop(device.finish)
        assert client.read_reply().data == bytes(512)
        assert client.at_eof()
        served.until_empty()


@every_loop
def test_disconnect_finishes_what_is_in_flight(loop: str) -> None:
    device = MemoryDevice(deferred=True)
    with serving(loop, device=device) as served, served.attached() as client:
        client.send_request(wire.CMD_WRITE, 0, 4, payload=b"data")
        client.send_disconnect()
        served.until(lambda: device.waiting == 1)
        served.on_loop(device.finish)
        assert client.read_reply().error == 0
        assert client.at_eof()
    assert device.read(0, 4) == b"data"


@every_loop
def test_device_keeps_a_vanished_client_until_its_requests_end(loop: str) -> None:
    device = MemoryDevice(deferred=True)
    with serving(loop, device=device) as served:
        client = served.attached()
        client.send_request(wire.CMD_WRITE, 0, 4, payload=b"data")
        served.until(lambda: device.waiting == 1)
        reset(client)
        with served.attached() as other:  # a later wake-up of the same loop
            other.send_disconnect()
        served.until(lambda: len(served.listener.connections()) == 1)
        assert served.on_loop(lambda: len(device.clients)) == 1
        served.on_loop(device.finish)
        served.until_empty()
        assert device.clients == []


# --- bounds -------------------------------------------------------------------------------------


@every_loop
def test_silent_client_is_cut_after_the_handshake_timeout(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING),
        serving(loop) as served,
    ):
        attached = served.attached()  # with as much time as a busy machine takes
        served.on_loop(lambda: setattr(served.listener, "handshake_timeout_s", 0.3))
        with served.client() as silent:
            assert silent.at_eof()
        assert attached.read(0, 512) == bytes(512)  # in transmission there is no such limit
        attached.disconnect()
        attached.close()
    assert reasons(caplog) == ["no export opened within 0.3 s"]


@every_loop
def test_connections_beyond_the_limit_are_closed_and_counted_back(loop: str) -> None:
    with serving(loop, limits=Limits(max_connections=2)) as served:
        first, second = served.attached(), served.attached()
        with NbdClient(served.address) as third:
            assert third.at_eof()
        reset(first)
        served.until(lambda: len(served.listener.connections()) == 1)
        with served.attached() as fourth:
            assert fourth.read(0, 512) == bytes(512)
        assert second.read(0, 512) == bytes(512)
        second.close()


@every_loop
def test_client_that_takes_no_replies_costs_bounded_memory_and_stalls_nobody(loop: str) -> None:
    device = MemoryDevice(size=64 * MIB)
    limits = Limits(max_payload=MIB, max_in_flight_bytes=4 * MIB)
    count = 64
    with serving(loop, device=device, limits=limits) as served, served.attached() as greedy:
        for _ in range(count):
            greedy.send_request(wire.CMD_READ, 0, MIB)
        served.until(lambda: served.listener.unsent_bytes > WRITE_HIGH_BYTES)
        with served.attached() as other:
            assert other.read(0, 512) == bytes(512)
        # Half of them would be more than the write buffer, the engine and the kernel take.
        assert served.on_loop(lambda: len(device.seen)) < count // 2
        assert served.on_loop(lambda: served.listener.unsent_bytes) < 16 * MIB
        for _ in range(count):
            assert greedy.read_reply().data == bytes(MIB)


@every_loop
def test_reply_timeout_cuts_a_client_that_takes_nothing(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = MemoryDevice(size=64 * MIB)
    with (
        caplog.at_level(logging.WARNING),
        serving(loop, device=device, reply_timeout_s=0.1) as served,
        served.attached() as stuck,
    ):
        for _ in range(32):
            stuck.send_request(wire.CMD_READ, 0, MIB)
        served.until_empty()
        assert device.clients == []
    assert reasons(caplog) == ["took none of its replies for 0.1 s"]


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [vars(record)["reason"] for record in caplog.records if hasattr(record, "reason")]


@every_loop
def test_bad_clients_do_not_fill_the_log(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), serving(loop) as served:
        for _ in range(BURST + 7):
            with served.client() as client:
                client.send_raw(bytes(16))
                assert client.at_eof()
        served.until_empty()
        served.on_loop(served.listener.limiter.report)
    assert len(reasons(caplog)) == BURST
    (summary,) = [vars(each) for each in caplog.records if each.msg == "log lines suppressed"]
    assert summary["count"] == 7


# --- bugs of ours -------------------------------------------------------------------------------


class BrokenDevice(MemoryDevice):
    """Raises for requests at offset 0."""

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        if batch[0].offset == 0:
            raise RuntimeError("the bug")
        super().submit(batch, done)


@every_loop
def test_exception_closes_one_connection_and_is_logged(
    loop: str, caplog: pytest.LogCaptureFixture
) -> None:
    device = BrokenDevice()
    with (
        caplog.at_level(logging.ERROR),
        serving(loop, device=device) as served,
        served.attached() as unlucky,
        served.attached() as other,
    ):
        unlucky.send_request(wire.CMD_READ, 0, 512)
        assert unlucky.at_eof()
        served.until(lambda: len(served.listener.connections()) == 1)
        assert served.on_loop(lambda: len(device.clients)) == 1
        assert other.read(4096, 512) == bytes(512)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the bug"


# --- stopping -----------------------------------------------------------------------------------


@every_loop
def test_stop_closes_idle_clients_at_once(loop: str) -> None:
    with serving(loop) as served:
        clients = [served.client(), served.attached(), NbdClient(served.address)]
        served.until(lambda: len(served.listener.connections()) == len(clients))
        stopping = served.begin(served.listener.stop(LONG_S))
        for client in clients:
            while not client.at_eof():
                pass  # the greeting that the last one did not read
            client.close()
        stopping.result(TIMEOUT_S)
        assert served.device.clients == []


@every_loop
def test_stop_waits_for_requests_in_flight(loop: str) -> None:
    device = MemoryDevice(deferred=True)
    with serving(loop, device=device) as served, served.attached() as client:
        client.send_request(wire.CMD_WRITE, 0, 4, payload=b"data")
        served.until(lambda: device.waiting == 1)
        address = served.address
        stopping = served.begin(served.listener.stop(LONG_S))
        served.until(lambda: not served.listener.addresses)
        client.send_request(wire.CMD_READ, 0, 512)
        assert client.read_reply().error == wire.ESHUTDOWN
        with pytest.raises(ConnectionRefusedError):
            NbdClient(address)
        served.on_loop(device.finish)
        assert client.read_reply().error == 0
        assert client.at_eof()
        client.close()
        stopping.result(TIMEOUT_S)


@every_loop
def test_stop_does_not_wait_for_clients_that_keep_their_end_open(
    loop: str,
    socket_dir: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They have all their replies, and nothing is gained by waiting for more from them."""
    monkeypatch.setattr(client_protocol, "LINGER_S", LONG_S)
    path = str(socket_dir / "nbd.sock")
    with serving(loop, tcp=[TcpAddress("127.0.0.1", 0)], unix=Path(path)) as served:
        clients = [NbdClient(address) for address in (served.address, path) * 2]
        for client in clients:
            client.greet()
            client.go("disk")
            assert client.read(0, 512) == bytes(512)
        for leaving in clients[:2]:
            leaving.send_disconnect()
            assert leaving.at_eof()
        with caplog.at_level(logging.WARNING):
            served.stop()
        assert served.listener.client_count == 0
        assert not caplog.records, "they had to be cut"
        for client in clients:
            assert client.at_eof()
            client.close()


@every_loop
def test_stop_waits_for_replies_that_have_not_arrived(
    loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = MemoryDevice(size=4 * MIB)
    looks = 0

    def look(transport: asyncio.BaseTransport) -> int:
        nonlocal looks
        looks += 1
        return unacknowledged(transport)

    monkeypatch.setattr(client_protocol, "unacknowledged", look)
    monkeypatch.setattr(client_protocol, "LINGER_LOOK_S", 0.001)
    with serving(loop, device=device) as served, served.attached() as slow:
        slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        for offset in range(0, device.size, MIB):
            slow.send_request(wire.CMD_READ, offset, MIB)
        served.until(lambda: sum(seen.length for seen in device.seen) == device.size)
        stopping = served.begin(served.listener.stop(LONG_S))
        served.until(lambda: looks > 10)
        for _ in range(0, device.size, MIB):
            assert slow.read_reply().data == bytes(MIB)
        assert slow.at_eof()
        stopping.result(TIMEOUT_S)


@every_loop
def test_stop_cuts_what_does_not_end(loop: str) -> None:
    """CVE-2024-7409: neither a silent half-open client nor a stuck device may hold up a stop."""
    device = MemoryDevice(deferred=True)
    with serving(loop, device=device) as served:
        stuck, vanished, silent = served.attached(), served.attached(), served.client()
        stuck.send_request(wire.CMD_READ, 0, 512)
        vanished.send_request(wire.CMD_READ, 0, 512)
        served.until(lambda: device.waiting == 2)
        reset(vanished)
        assert served.stop(0.1) < TIMEOUT_S
        assert served.listener.connections() == []
        assert device.clients == []
        served.on_loop(device.finish)  # too late for anybody, and no harm
        for client in (stuck, silent):
            assert client.at_eof()
            client.close()


@every_loop
def test_second_stop_hurries_the_first(loop: str) -> None:
    device = MemoryDevice(deferred=True)
    with serving(loop, device=device) as served, served.attached() as client:
        client.send_request(wire.CMD_READ, 0, 512)
        served.until(lambda: device.waiting == 1)
        first = served.begin(served.listener.stop(1000.0))
        served.until(lambda: not served.listener.addresses)
        served.stop(0.0)
        first.result(TIMEOUT_S)


# --- real clients -------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 4096 * 16)
    return path


@every_loop
def test_nbdcopy_there_and_back(
    loop: str, client_tool: FindTool, image: Path, tmp_path: Path, socket_dir: Path
) -> None:
    nbdcopy, back = client_tool("nbdcopy"), tmp_path / "back"
    device = MemoryDevice(size=image.stat().st_size)
    path = socket_dir / "nbd.sock"
    with serving(loop, device=device, tcp=[TcpAddress("localhost", 0)], unix=path) as served:
        host, port = served.address
        host = f"[{host}]" if ":" in host else host
        run_tool(nbdcopy, image, f"nbd://{host}:{port}/disk")
        run_tool(nbdcopy, f"nbd+unix:///disk?socket={path}", back)
        served.until_empty()
    assert back.read_bytes() == image.read_bytes()
