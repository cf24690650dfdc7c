"""Replies: simple ones, and chunks with structured or extended headers.

Both kinds append buffers to one output list, in the order in which they are to be sent; data of a
READ goes out as the device's own bytes object, uncopied. Which kind a connection uses is settled
by negotiation:

- `SimpleReplies`: nothing negotiated. No error texts, no BLOCK_STATUS.
- `ChunkReplies`: structured replies or extended headers. A READ is always answered in chunks, an
  error as an ERROR or ERROR_OFFSET chunk with a text. A success without data is a simple reply
  under structured replies (16 bytes, which every client takes) and a NONE chunk under extended
  headers (which forbid simple replies).

Every chunk is sent after all of its data is known, so the last one can carry DONE. Sparse reads:
runs of aligned 4 KiB blocks that are all zero become OFFSET_HOLE chunks, unless DF.
"""

from dataclasses import dataclass
from typing import Final, Protocol

from typing_extensions import Buffer

from blockd.nbd import contexts, wire
from blockd.nbd.contexts import Context
from blockd.nbd.errors import message_bytes, wire_error
from native import (
    FLAG_FAST_ZERO,
    OP_BLOCK_STATUS,
    OP_READ,
    OP_WRITE,
    Request,
    is_zero,
)

HOLE_BLOCK: Final = 4096  # alignment and least length of a hole in a sparse read
MAX_FRAGMENTS: Final = 1024
"""Chunks of one READ; beyond that a hole saves less than its header and handling cost."""

_simple_reply = wire.SIMPLE_REPLY.pack
_DONE: Final = wire.REPLY_FLAG_DONE


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a request is answered without asking the device: a wire error and a text for people."""

    error: int
    message: str
    at: int | None = None
    """First byte that cannot be served, when one inside the request is known."""


@dataclass(slots=True, eq=False)
class Aside:
    """What a reply needs to know beyond the Request: kept for READ with DF and BLOCK_STATUS.

    A BLOCK_STATUS is one device request for each thing that its contexts ask about; all of them
    share the Aside, and the last one that finishes makes the reply.
    """

    unfragmented: bool = False
    contexts: tuple[Context, ...] = ()
    requests: tuple[Request, ...] = ()
    """For each of `contexts` the request that answers it."""
    waiting: int = 1
    """Requests that are not finished."""
    only_first: bool = False
    charge: int = 0
    """Bytes that the reply may take, reserved against the connection's limit."""


class Replies(Protocol):
    """Appends to the output list it was made with. `errors` counts error replies."""

    errors: int

    def finish(self, requests: list[Request], asides: dict[Request, Aside]) -> tuple[int, int]:
        """Answer finished requests; their asides are taken out. Returns the bytes charged for the
        replies made, and how many these are."""

    def acknowledge(self, op: int, cookie: int, offset: int) -> None:
        """Success of a request that never reached the device."""

    def refuse(self, cookie: int, offset: int, refused: Refused) -> None:
        """Error for a request that never reached the device."""


class SimpleReplies:
    """16-byte replies; see the module's text."""

    def __init__(self, out: list[Buffer]) -> None:
        self._out = out
        self.errors = 0

    def finish(self, requests: list[Request], asides: dict[Request, Aside]) -> tuple[int, int]:
        append = self._out.append
        charged = 0
        for request in requests:
            op = request.op
            if op == OP_READ:
                charged += request.length
                if not request.error:
                    data = request.data
                    assert isinstance(data, bytes)
                    assert len(data) == request.length
                    append(_simple_reply(wire.SIMPLE_REPLY_MAGIC, 0, request.cookie))
                    append(data)
                    continue
            elif op == OP_WRITE:
                charged += request.length
            error = request.error
            if error:
                error = _error_of(request, None)
                self.errors += 1
            append(_simple_reply(wire.SIMPLE_REPLY_MAGIC, error, request.cookie))
        return charged, len(requests)

    def acknowledge(self, op: int, cookie: int, offset: int) -> None:
        self._out.append(_simple_reply(wire.SIMPLE_REPLY_MAGIC, 0, cookie))

    def refuse(self, cookie: int, offset: int, refused: Refused) -> None:
        self.errors += 1
        self._out.append(_simple_reply(wire.SIMPLE_REPLY_MAGIC, refused.error, cookie))


class ChunkReplies:
    """Structured replies, or extended ones when `extended`; see the module's text."""

    def __init__(self, out: list[Buffer], *, extended: bool) -> None:
        self._out = out
        self._extended = extended
        self.errors = 0

    def finish(self, requests: list[Request], asides: dict[Request, Aside]) -> tuple[int, int]:
        charged = unanswered = 0
        for request in requests:
            op = request.op
            aside = asides.pop(request, None) if asides else None
            if op in (OP_READ, OP_WRITE):
                charged += request.length
            elif aside is not None:
                aside.waiting -= 1
                if aside.waiting:
                    unanswered += 1
                    continue
                charged += aside.charge
                request = _failed_part(aside) or request
            if request.error:
                refused = Refused(_error_of(request, aside), request.message or "")
                self.refuse(request.cookie, request.offset, refused)
            elif op == OP_READ:
                self._data(request, aside)
            elif op == OP_BLOCK_STATUS:
                assert aside is not None
                self._status(request, aside)
            else:
                self.acknowledge(op, request.cookie, request.offset)
        return charged, len(requests) - unanswered

    def acknowledge(self, op: int, cookie: int, offset: int) -> None:
        if self._extended or op == OP_READ:  # a READ must get chunks, even one of no bytes
            self._chunk(_DONE, wire.REPLY_TYPE_NONE, cookie, offset, b"")
        else:
            self._out.append(_simple_reply(wire.SIMPLE_REPLY_MAGIC, 0, cookie))

    def refuse(self, cookie: int, offset: int, refused: Refused) -> None:
        self.errors += 1
        message = message_bytes(refused.message)
        payload = wire.CHUNK_ERROR.pack(refused.error, len(message)) + message
        kind = wire.REPLY_TYPE_ERROR
        if refused.at is not None:
            kind = wire.REPLY_TYPE_ERROR_OFFSET
            payload += wire.CHUNK_OFFSET.pack(refused.at)
        self._chunk(_DONE, kind, cookie, offset, payload)

    def _data(self, request: Request, aside: Aside | None) -> None:
        """A READ's bytes as OFFSET_DATA and OFFSET_HOLE chunks."""
        data = request.data
        assert isinstance(data, bytes)
        assert len(data) == request.length
        cookie, offset = request.cookie, request.offset
        if aside is not None and aside.unfragmented:
            fragments = [(0, len(data), False)]
        else:
            fragments = find_holes(data, offset)
        for start, end, hole in fragments:
            flags = _DONE if end == len(data) else 0
            if hole:
                payload = wire.CHUNK_HOLE.pack(offset + start, end - start)
                self._chunk(flags, wire.REPLY_TYPE_OFFSET_HOLE, cookie, offset, payload)
                continue
            where = wire.CHUNK_OFFSET.pack(offset + start)
            self._chunk(flags, wire.REPLY_TYPE_OFFSET_DATA, cookie, offset, where, end - start)
            self._out.append(data if len(fragments) == 1 else memoryview(data)[start:end])

    def _status(self, request: Request, aside: Aside) -> None:
        """One status chunk for each context; the last is the final chunk."""
        kind, encode = wire.REPLY_TYPE_BLOCK_STATUS, contexts.status_chunk
        if self._extended:
            kind, encode = wire.REPLY_TYPE_BLOCK_STATUS_EXT, contexts.status_chunk_ext
        for context, part in zip(aside.contexts, aside.requests, strict=True):
            extents = part.data
            assert isinstance(extents, list)
            found = contexts.descriptors(
                context, extents, request.length, only_first=aside.only_first
            )
            flags = _DONE if context is aside.contexts[-1] else 0
            self._chunk(flags, kind, request.cookie, request.offset, encode(context, found))

    def _chunk(
        self, flags: int, kind: int, cookie: int, offset: int, payload: bytes, more: int = 0
    ) -> None:
        """A chunk's header and `payload`; the caller appends `more` further bytes of payload."""
        length = len(payload) + more
        if self._extended:
            header = wire.EXTENDED_REPLY.pack(
                wire.EXTENDED_REPLY_MAGIC, flags, kind, cookie, offset, length
            )
        else:
            header = wire.STRUCTURED_REPLY.pack(
                wire.STRUCTURED_REPLY_MAGIC, flags, kind, cookie, length
            )
        self._out.append(header + payload if payload else header)


def find_holes(data: bytes, offset: int) -> list[tuple[int, int, bool]]:
    """`data` read at `offset`, cut into (start, end, is hole), in order and without gaps.

    Holes start and end at multiples of HOLE_BLOCK within the export. Cheap on ordinary data: most
    blocks are told by their first or last byte.
    """
    found: list[tuple[int, int, bool]] = []
    length = len(data)
    done = 0  # everything before is in `found`
    hole = -1  # where the hole we are in began, or -1
    first = -offset % HOLE_BLOCK
    view = memoryview(data)
    for at in range(first, length - HOLE_BLOCK + 1, HOLE_BLOCK):
        after = at + HOLE_BLOCK
        zero = not data[at] and not data[after - 1] and is_zero(view[at:after])
        if zero and hole < 0:
            if len(found) >= MAX_FRAGMENTS - 2:
                break
            if at > done:
                found.append((done, at, False))
            done = hole = at
        elif not zero and hole >= 0:
            found.append((hole, at, True))
            done, hole = at, -1
        if zero:
            done = after
    if hole >= 0:
        found.append((hole, done, True))
    if done < length:
        found.append((done, length, False))
    return found


def _failed_part(aside: Aside) -> Request | None:
    """A request of the BLOCK_STATUS that failed, and with it the whole."""
    return next((part for part in aside.requests if part.error), None)


def _error_of(request: Request, aside: Aside | None) -> int:
    return wire_error(
        request.error,
        fast_zero=bool(request.flags & FLAG_FAST_ZERO),
        unfragmented=aside is not None and aside.unfragmented,
    )
