"""blockd.api.unix_http: one request over a unix socket."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockd.api.unix_http import TransferError, Unreachable, exchange

Answer = Callable[[socket.socket], None]


@contextmanager
def answered(path: Path, answer: Answer) -> Iterator[None]:
    """Whoever connects first is served by `answer`."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def serve() -> None:
            with listener.accept()[0] as client:
                answer(client)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def said(text: bytes) -> Answer:
    def answer(client: socket.socket) -> None:
        client.recv(65536)
        client.sendall(text)

    return answer


def test_an_answer_without_a_length_ends_with_the_connection(socket_dir: Path) -> None:
    path = socket_dir / "s"
    with (
        answered(path, said(b"HTTP/1.1 201 Created\r\nServer-Timing: a\r\n\r\nbody")),
        exchange(path, "GET", "/x", timeout_s=60) as response,
    ):
        assert (response.status, response.success) == (201, True)
        assert response.header("server-timing") == "a"
        assert response.header("other") == ""
        assert b"".join(response.pieces()) == b"body"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nshort\r\n",
    ],
)
def test_a_broken_answer_is_an_error(socket_dir: Path, text: bytes) -> None:
    def ask() -> bytes:
        with exchange(socket_dir / "s", "GET", "/x", timeout_s=60) as response:
            return response.read()

    with answered(socket_dir / "s", said(text)), pytest.raises(TransferError):
        ask()


def test_a_refusal_in_the_middle_of_the_content_is_heard(socket_dir: Path) -> None:
    refused = threading.Event()

    def answer(client: socket.socket) -> None:
        client.recv(100)
        client.sendall(b"HTTP/1.1 409 No\r\nContent-Length: 3\r\n\r\nwhy")
        client.close()
        refused.set()

    def content() -> Iterator[bytes]:
        yield b"a" * 1000
        assert refused.wait(60)
        for _ in range(1000):
            yield b"b" * 65536
        pytest.fail("goes on to send what nobody reads")

    path = socket_dir / "s"
    with (
        answered(path, answer),
        exchange(path, "POST", "/x", timeout_s=60, content=content()) as response,
    ):
        assert (response.status, response.read()) == (409, b"why")


def test_what_fails_while_the_content_is_made_goes_through(socket_dir: Path) -> None:
    def content() -> Iterator[bytes]:
        yield b"a"
        raise FileNotFoundError("the file is gone")

    def drained(client: socket.socket) -> None:
        while client.recv(65536):
            pass

    path = socket_dir / "s"
    with (
        answered(path, drained),
        pytest.raises(FileNotFoundError),
        exchange(path, "POST", "/x", timeout_s=60, content=content()),
    ):
        pass


def test_nobody_listens(socket_dir: Path) -> None:
    with pytest.raises(Unreachable), exchange(socket_dir / "s", "GET", "/", timeout_s=60):
        pass
