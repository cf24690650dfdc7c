"""The payloads of options, decoded strictly.

Every inner length must fit into the option, and nothing may be left over; sums are Python integers
and cannot wrap. Strings are UTF-8 without NUL, at most 4096 bytes (protocol text, "Conventions").
`InvalidOption` carries the text for the error reply; it never leaves the handshake.
"""

from dataclasses import dataclass

from blockd.nbd import wire


class InvalidOption(Exception):
    """The payload breaks the protocol's layout: the option is answered with ERR_INVALID."""


@dataclass(frozen=True, slots=True)
class ExportQuery:
    """Payload of INFO and GO."""

    name: str
    items: frozenset[int]
    """Information items asked for (INFO_...), known to us or not."""


@dataclass(frozen=True, slots=True)
class ContextQuery:
    """Payload of LIST_META_CONTEXT and SET_META_CONTEXT."""

    name: str
    queries: tuple[str, ...]


def decode_name(data: bytes, what: str) -> str:
    """An NBD string, or InvalidOption naming `what`."""
    if len(data) > wire.MAX_STRING:
        raise InvalidOption(
            f"{what}: {len(data)} bytes long; the protocol allows {wire.MAX_STRING}"
        )
    if b"\0" in data:
        raise InvalidOption(f"{what}: has a NUL byte; strings must not")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidOption(f"{what}: not UTF-8") from None


def decode_export_query(payload: bytes) -> ExportQuery:
    """INFO and GO: 32 bit name length, name, 16 bit count, that many 16 bit items."""
    reader = _Reader(payload)
    name = decode_name(reader.sized(), "export name")
    count = reader.uint16()
    items = [reader.uint16() for _ in range(reader.fitting(count, 2, "information items"))]
    reader.finish()
    return ExportQuery(name, frozenset(items))


def decode_context_query(payload: bytes) -> ContextQuery:
    """32 bit name length, name, 32 bit count, that many queries of 32 bit length and string."""
    reader = _Reader(payload)
    name = decode_name(reader.sized(), "export name")
    count = reader.uint32()
    queries = [
        decode_name(reader.sized(), "context query")
        for _ in range(reader.fitting(count, 4, "context queries"))
    ]
    reader.finish()
    return ContextQuery(name, tuple(queries))


class _Reader:
    """Takes fields off the front of an option's payload."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._at = 0

    def _take(self, length: int) -> bytes:
        left = len(self._payload) - self._at
        if length > left:
            raise InvalidOption(f"a field of {length} bytes where the option has {left} bytes left")
        self._at += length
        return self._payload[self._at - length : self._at]

    def uint16(self) -> int:
        value: int = wire.UINT16.unpack(self._take(2))[0]
        return value

    def uint32(self) -> int:
        value: int = wire.UINT32.unpack(self._take(4))[0]
        return value

    def sized(self) -> bytes:
        """A 32 bit length and that many bytes."""
        return self._take(self.uint32())

    def fitting(self, count: int, least: int, what: str) -> int:
        """`count`, if that many things of at least `least` bytes can follow at all."""
        left = len(self._payload) - self._at
        if count * least > left:
            raise InvalidOption(f"{count} {what} announced where the option has {left} bytes left")
        return count

    def finish(self) -> None:
        left = len(self._payload) - self._at
        if left:
            raise InvalidOption(f"{left} bytes left over at the end of the option")
