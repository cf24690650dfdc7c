"""How the control API's server stops: what it waits for, and what a client sees of it."""

import asyncio
import logging
import socket
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from blockd.api import server
from blockd.api.server import HttpServer
from blockd.sockets import CONTROL, UnixListener
from tests import aio

REQUEST = b"GET / HTTP/1.1\r\nHost: blockd\r\n\r\n"


class App:
    """Answers in two pieces; the second waits for `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.go.wait()
        await send({"type": "http.response.body", "body": b"last", "more_body": False})


class Served:
    """An HttpServer around an App, and one client that has got the first piece."""

    def __init__(self, folder: Path) -> None:
        self.app = App()
        self.path = folder / "control.sock"
        self.server = HttpServer(
            self.app, [UnixListener(self.path, use=CONTROL).sock], "control API"
        )

    async def begin(self) -> None:
        await self.server.start()
        self.reader, self.writer = await asyncio.open_unix_connection(self.path)
        self.writer.write(REQUEST)
        await self.reader.readuntil(b"first\r\n")

    async def stop_accepting(self) -> "asyncio.Task[None]":
        """Begin to stop."""
        stopping = asyncio.create_task(self.server.stop())
        while True:  # until nobody listens any more
            try:
                _, writer = await asyncio.open_unix_connection(self.path)
            except ConnectionRefusedError:
                return stopping
            writer.close()
            await writer.wait_closed()


def test_a_stop_closes_connections_that_are_kept_alive(
    socket_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def live() -> None:
        served = Served(socket_dir)
        served.app.go.set()
        await served.begin()
        assert await served.reader.readuntil(b"0\r\n\r\n") == b"4\r\nlast\r\n0\r\n\r\n"
        await served.server.stop()
        assert await served.reader.read() == b""
        served.writer.close()

    with caplog.at_level(logging.WARNING):
        aio.run(live())
    assert not caplog.records


def test_a_stop_waits_for_requests_in_progress(socket_dir: Path) -> None:
    async def live() -> None:
        served = Served(socket_dir)
        await served.begin()
        stopping = await served.stop_accepting()
        assert not stopping.done()
        served.app.go.set()
        assert await served.reader.read() == b"4\r\nlast\r\n0\r\n\r\n"
        await stopping
        served.writer.close()

    aio.run(live())


def test_a_stream_that_does_not_end_is_cut_and_not_completed(
    socket_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "STOP_S", 0.01)

    async def live() -> None:
        served = Served(socket_dir)
        await served.begin()
        await served.server.stop()
        assert await served.reader.read() == b""  # without the last chunk: an error
        served.writer.close()

    with caplog.at_level(logging.WARNING):
        aio.run(live())
    assert "requests cut at stop" in caplog.messages


def test_a_server_that_never_started_closes_its_sockets(socket_dir: Path) -> None:
    served = App()
    sock = UnixListener(socket_dir / "control.sock", use=CONTROL).sock
    aio.run(HttpServer(served, [sock], "control API").stop())
    with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_dir / "control.sock"))
