"""NBD options and requests as a client encodes them, and what it is told of an export.

The encoders derive nothing and check nothing: tests send with them what no real client would.
"""

import struct
from dataclasses import dataclass

from blockd.nbd import wire
from tests.nbd_reply import expect


class OptionError(Exception):
    """An option was answered with an error; `reply` is the REP_ERR_... code."""

    def __init__(self, reply: int, text: str) -> None:
        super().__init__(f"{reply:#x}: {text}")
        self.reply = reply
        self.text = text


@dataclass(frozen=True, slots=True)
class OptionReply:
    option: int
    reply: int
    data: bytes

    @property
    def is_error(self) -> bool:
        return bool(self.reply & wire.REP_ERR)


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """What INFO, GO or EXPORT_NAME told; None where the server did not tell."""

    size: int
    flags: int
    name: str | None = None
    description: str | None = None
    block_sizes: tuple[int, int, int] | None = None
    """Minimum, preferred, maximum."""


def option(number: int, data: bytes = b"") -> bytes:
    return wire.OPTION_HEADER.pack(wire.OPTION_MAGIC, number, len(data)) + data


def export_query(name: str, *items: int) -> bytes:
    """Payload of INFO and GO."""
    encoded = name.encode()
    return struct.pack(
        f">I{len(encoded)}sH{len(items)}H", len(encoded), encoded, len(items), *items
    )


def context_query(name: str, *queries: str) -> bytes:
    """Payload of LIST_META_CONTEXT and SET_META_CONTEXT."""
    sized = [struct.pack(">I", len(text.encode())) + text.encode() for text in queries]
    encoded = name.encode()
    head = struct.pack(">I", len(encoded)) + encoded + struct.pack(">I", len(queries))
    return head + b"".join(sized)


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    cookie: int = 0,
    payload: bytes = b"",
    extended: bool = False,
) -> bytes:
    """A request with exactly these fields; nothing is derived."""
    layout, magic = wire.REQUEST, wire.REQUEST_MAGIC
    if extended:
        layout, magic = wire.EXTENDED_REQUEST, wire.EXTENDED_REQUEST_MAGIC
    return layout.pack(magic, flags, command, cookie, offset, length) + payload


def export_info(replies: list[OptionReply]) -> ExportInfo:
    items: dict[int, bytes] = {}
    for reply in replies:
        expect(reply.reply == wire.REP_INFO, "INFO or GO answered with something else")
        (kind,) = wire.UINT16.unpack_from(reply.data)
        expect(kind not in items, f"information item {kind} twice")
        items[kind] = reply.data
    expect(wire.INFO_EXPORT in items, "no INFO_EXPORT")
    _, size, flags = wire.INFO_EXPORT_ITEM.unpack(items[wire.INFO_EXPORT])
    texts = [
        items[kind][2:].decode() if kind in items else None
        for kind in (wire.INFO_NAME, wire.INFO_DESCRIPTION)
    ]
    sizes: tuple[int, int, int] | None = None
    if wire.INFO_BLOCK_SIZE in items:
        _, *found = wire.INFO_BLOCK_SIZE_ITEM.unpack(items[wire.INFO_BLOCK_SIZE])
        sizes = (found[0], found[1], found[2])
    return ExportInfo(size, flags, texts[0], texts[1], sizes)
