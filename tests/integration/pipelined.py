"""A small blocking NBD client that keeps many requests in flight, for tests that crash the server.

Simple replies only. What a reply says is known even if the server is gone by then: bytes that it
sent before it died are still read.
"""

import socket
import struct
from typing import Self

OPTION_MAGIC = b"IHAVEOPT"
CLIENT_FLAGS = 3  # FIXED_NEWSTYLE, NO_ZEROES
OPT_EXPORT_NAME = 1
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC = 0x25609513
REPLY = struct.Struct(">IIQ")
REPLY_MAGIC = 0x67446698
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
FUA = 1
REPLY_TIMEOUT_S = 60.0


class ServerGone(Exception):
    """The connection ended."""


class PipelinedClient:
    """One connection to `export`; a context manager. Cookies are the caller's."""

    def __init__(self, address: tuple[str, int], export: str) -> None:
        self._socket = socket.create_connection(address, REPLY_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.size, self.flags = self._attach(export)
        except BaseException:
            self._socket.close()
            raise

    def _attach(self, export: str) -> tuple[int, int]:
        """Size and transmission flags of the export."""
        greeting = self._receive(18)
        assert greeting[:16] == b"NBDMAGIC" + OPTION_MAGIC
        name = export.encode()
        self._socket.sendall(
            struct.pack(">I", CLIENT_FLAGS)
            + OPTION_MAGIC
            + struct.pack(">II", OPT_EXPORT_NAME, len(name))
            + name
        )
        size, flags = struct.unpack(">QH", self._receive(10))
        return size, flags

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def send(
        self, command: int, cookie: int, offset: int, length: int, data: bytes = b"", flags: int = 0
    ) -> None:
        """Send a request and do not wait. Raises ServerGone."""
        header = REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)
        try:
            self._socket.sendall(header + data)
        except OSError as error:
            raise ServerGone from error

    def reply(self) -> tuple[int, int]:
        """The (cookie, error) of the next reply that has no payload. Raises ServerGone."""
        magic, error, cookie = REPLY.unpack(self._receive(REPLY.size))
        assert magic == REPLY_MAGIC
        return cookie, error

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the volume; with nothing else in flight."""
        self.send(READ, 0, offset, length)
        cookie, error = self.reply()
        assert (cookie, error) == (0, 0), f"read of {length} at {offset}: error {error}"
        return self._receive(length)

    def _receive(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                piece = self._socket.recv(min(length - len(data), 1 << 20))
            except ConnectionError as error:
                raise ServerGone from error
            if not piece:
                raise ServerGone
            data += piece
        return bytes(data)
