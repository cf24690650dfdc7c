"""HTTP over a unix socket, as the client of the control API needs it.

One connection for each request: that is 0.1 ms on a unix socket, and nothing has to be known about
connections that the daemon may have closed meanwhile. The standard library's client does the rest;
a larger one would take as long to load as all else that a command does.
"""

import http.client
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

PIECE_BYTES = 256 * 1024


class TransferError(Exception):
    """Talking to the server failed on the way; the message is short, and may name the kind only."""


class Unreachable(TransferError):
    """Nobody listens there."""


class Response:
    """The beginning of an answer. `read` and `pieces` raise TransferError."""

    def __init__(self, got: http.client.HTTPResponse) -> None:
        self._got = got
        self.status = got.status
        self.success = 200 <= got.status < 300

    def header(self, name: str) -> str:
        """ "" when it is not there."""
        return self._got.getheader(name) or ""

    def read(self) -> bytes:
        with _failures():
            return self._got.read()

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes, PIECE_BYTES at a time."""
        while True:
            with _failures():
                piece = self._got.read(PIECE_BYTES)
            if not piece:
                return
            yield piece


@contextmanager
def exchange(
    path: Path,
    method: str,
    target: str,
    *,
    timeout_s: float,
    query: Mapping[str, str] | None = None,
    body: object = None,
    content: Iterable[bytes] | None = None,
) -> Iterator[Response]:
    """The answer of the server at socket `path`, while the block runs. `body` goes as JSON,
    `content` piece by piece; what making a piece raises goes through. `timeout_s` is for each wait.
    Raises TransferError."""
    connection = _Connection(path, timeout_s)
    try:
        try:
            connection.connect()
        except OSError as error:
            raise Unreachable(_said(error)) from error
        target = f"{target}?{urlencode(query)}" if query else target
        if content is None:
            with _failures():
                _send(connection, method, target, body)
        else:
            _send_pieces(connection, method, target, content)
        with _failures():
            got = connection.getresponse()
        yield Response(got)
    finally:
        connection.close()


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("blockd", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(os.fspath(self._path))


def _send(connection: _Connection, method: str, target: str, body: object) -> None:
    headers = {"Connection": "close"}
    if body is None:
        connection.request(method, target, headers=headers)
    else:
        headers["Content-Type"] = "application/json"
        connection.request(method, target, json.dumps(body).encode(), headers)


def _send_pieces(
    connection: _Connection, method: str, target: str, content: Iterable[bytes]
) -> None:
    """A server that refuses stops reading; what it says has to be read all the same."""
    with _failures():
        connection.putrequest(method, target)
        connection.putheader("Connection", "close")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
    for piece in content:
        if piece and not _sent(connection, b"%x\r\n%b\r\n" % (len(piece), piece)):
            return
    _sent(connection, b"0\r\n\r\n")


def _sent(connection: _Connection, data: bytes) -> bool:
    """False: nobody reads it any more."""
    try:
        with _failures():
            connection.send(data)
    except TransferError as error:
        if isinstance(error.__cause__, (BrokenPipeError, ConnectionResetError)):
            return False
        raise
    return True


def _said(error: Exception) -> str:
    if isinstance(error, http.client.RemoteDisconnected):
        return "disconnected without an answer"
    return str(error) or type(error).__name__


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise TransferError(_said(error)) from error
