"""One NBD reply as tests.nbd_client judges it, from one message or from many chunks.

`Parts` collects the chunks of a reply and raises ProtocolError where the protocol text forbids what
the server sent: overlaps, gaps, empty descriptors, a context answered twice, an offset outside of
the request.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from blockd.nbd import wire

Extent = tuple[int, int]  # length, status
_WITHOUT_CHUNKS_OK = (wire.REPLY_TYPE_NONE, wire.REPLY_TYPE_ERROR, wire.REPLY_TYPE_ERROR_OFFSET)


class ProtocolError(Exception):
    """The server sent what it must not send."""


class RequestError(Exception):
    """A request was answered with an error; `reply.error` is the NBD errno."""

    def __init__(self, reply: "Reply") -> None:
        super().__init__(f"error {reply.error}: {reply.message}")
        self.reply = reply


@dataclass(frozen=True, slots=True)
class Sent:
    """A request that waits for its reply."""

    command: int
    offset: int
    length: int
    flags: int


@dataclass(slots=True)
class Reply:
    """The whole answer to one request."""

    cookie: int
    sent: Sent
    error: int = 0
    message: str = ""
    error_offset: int | None = None
    data: bytes | None = None
    """The bytes of a READ that succeeded, holes filled in."""
    chunks: list[int] = field(default_factory=list)
    """Types of its chunks; empty for a simple reply."""
    extents: dict[int, list[Extent]] = field(default_factory=dict)
    """BLOCK_STATUS: descriptors by context id."""


class Parts:
    """A reply in chunks as it comes together; checks the rules between its chunks."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._content: list[tuple[int, bytes]] = []  # offset, bytes

    def add(self, kind: int, payload: bytes, extended: bool) -> None:
        reply, sent = self._reply, self._reply.sent
        reply.chunks.append(kind)
        if kind == wire.REPLY_TYPE_NONE:
            expect(not payload, "NONE with a payload")
        elif kind == wire.REPLY_TYPE_OFFSET_DATA:
            expect(sent.command == wire.CMD_READ and len(payload) > 8, "OFFSET_DATA")
            self._content.append((wire.CHUNK_OFFSET.unpack_from(payload)[0], payload[8:]))
        elif kind == wire.REPLY_TYPE_OFFSET_HOLE:
            offset, length = wire.CHUNK_HOLE.unpack(payload)
            expect(sent.command == wire.CMD_READ and length > 0, "OFFSET_HOLE")
            self._content.append((offset, bytes(length)))
        elif kind in (wire.REPLY_TYPE_ERROR, wire.REPLY_TYPE_ERROR_OFFSET):
            self._error(kind, payload)
        elif kind == wire.REPLY_TYPE_BLOCK_STATUS:
            expect(not extended, "BLOCK_STATUS under extended headers")
            (number,) = wire.CHUNK_STATUS.unpack_from(payload)
            self._status(number, list(wire.STATUS_EXTENT.iter_unpack(payload[4:])))
        elif kind == wire.REPLY_TYPE_BLOCK_STATUS_EXT:
            expect(extended, "BLOCK_STATUS_EXT without extended headers")
            number, count = wire.CHUNK_STATUS_EXT.unpack_from(payload)
            extents = list(wire.STATUS_EXTENT_EXT.iter_unpack(payload[8:]))
            expect(count in (0, len(extents)), "descriptor count")
            self._status(number, extents)
        else:
            raise ProtocolError(f"chunk type {kind}")

    def _error(self, kind: int, payload: bytes) -> None:
        reply = self._reply
        reply.error, length = wire.CHUNK_ERROR.unpack_from(payload)
        expect(reply.error != 0, "an error chunk without an error")
        rest = payload[wire.CHUNK_ERROR.size + length :]
        reply.message = payload[wire.CHUNK_ERROR.size :][:length].decode()
        if kind == wire.REPLY_TYPE_ERROR:
            expect(not rest, "bytes left over in ERROR")
            return
        (reply.error_offset,) = wire.CHUNK_OFFSET.unpack(rest)
        sent = reply.sent
        inside = sent.offset <= reply.error_offset < sent.offset + sent.length
        expect(inside, "ERROR_OFFSET outside the request")

    def _status(self, number: int, extents: list[Extent]) -> None:
        reply, sent = self._reply, self._reply.sent
        expect(sent.command == wire.CMD_BLOCK_STATUS, "a status chunk")
        expect(number not in reply.extents, "a context answered twice")
        expect(0 < len(extents) <= 1 << 20, "count of descriptors")
        expect(all(length for length, _ in extents), "an empty descriptor")
        if not sent.flags & wire.CMD_FLAG_PAYLOAD_LEN:
            before_last = sum(length for length, _ in extents[:-1])
            expect(before_last < sent.length, "descriptors beyond the request")
            if sent.flags & wire.CMD_FLAG_REQ_ONE:
                expect(len(extents) == 1 and extents[0][0] <= sent.length, "REQ_ONE")
        reply.extents[number] = extents

    def finish(self, context_count: int) -> Reply:
        reply, sent = self._reply, self._reply.sent
        if reply.error:
            return reply
        if sent.command == wire.CMD_READ:
            if sent.flags & wire.CMD_FLAG_DF:
                expect(len(self._content) <= 1, "a fragmented reply to DF")
            reply.data = _assembled(self._content, sent)
        elif sent.command == wire.CMD_BLOCK_STATUS:
            if not sent.flags & wire.CMD_FLAG_PAYLOAD_LEN:
                expect(len(reply.extents) == context_count, "a context without an answer")
        else:
            expect(all(kind in _WITHOUT_CHUNKS_OK for kind in reply.chunks), "chunk types")
        return reply


def _assembled(content: Iterable[tuple[int, bytes]], sent: Sent) -> bytes:
    at = sent.offset
    data = bytearray()
    for offset, part in sorted(content):
        expect(offset == at, "content chunks overlap or leave a gap")
        data += part
        at += len(part)
    expect(at == sent.offset + sent.length, "content chunks do not cover the request")
    return bytes(data)


def succeeded(reply: Reply) -> Reply:
    if reply.error:
        raise RequestError(reply)
    return reply


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise ProtocolError(what)
