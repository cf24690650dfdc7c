"""A message as frames: the head (header and fields), then payload frames, which are not copied.

Header, 40 bytes, little-endian:

    0  magic "BPER"  4  version  5  type  6  payload frames (u16)  8  from (u64)  16  to (u64)
    24 request (u64) 32 length of the fields (u32)                 36 crc32c of all of the head

`from` and `to` are the incarnations of the two sides of a session: what comes from another session
than the present one is old and ignored. `to` is 0 in a HELLO, whose sender does not know it yet.

The checksum finds our own mistakes and bad memory: who may send at all is CURVE's affair. Payload
has its own checks (records a crc32c, chunks their ids), made by those who use it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Final, get_args, get_origin, get_type_hints

from typing_extensions import Buffer

from native import crc32c
from transport.errors import BadMessage
from transport.peer.fields import Kind

MAGIC: Final = b"BPER"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4s B B H Q Q Q I")
CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = HEADER.size + CRC.size

MAX_FIELDS_BYTES: Final = 512 << 10  # the longest list of ids, and then some
MAX_FRAME_BYTES: Final = 4 << 20
MAX_FRAMES: Final = 256
MAX_PAYLOAD_BYTES: Final = 8 << 20
MAX_MESSAGE_BYTES: Final = HEADER_BYTES + MAX_FIELDS_BYTES + MAX_PAYLOAD_BYTES

Frames = Sequence[Buffer]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a message travels in. `request` is 0 where nothing is asked and nothing answered."""

    sender: int
    to: int
    request: int


class Message:
    """A message: a frozen dataclass with an `Annotated` kind for each field.

    One with payload has as last field `payload`, a tuple of buffers of FRAMES[0] to FRAMES[1]
    frames. Those of a decoded message are views of the received frames and live as long."""

    __slots__ = ()

    TYPE: ClassVar[int]
    FRAMES: ClassVar[tuple[int, int]] = (0, 0)

    def check(self) -> None:
        """BadMessage when fields do not go together."""

    @property
    def frames(self) -> tuple[Buffer, ...]:
        """Its payload."""
        payload: tuple[Buffer, ...] = getattr(self, "payload", ())
        return payload


_layouts: dict[type[Message], tuple[tuple[str, Kind], ...]] = {}


def layout(kind: type[Message]) -> tuple[tuple[str, Kind], ...]:
    """The fields of a message in their order, without the payload."""
    if kind not in _layouts:
        _layouts[kind] = _layout(kind)
    return _layouts[kind]


def _layout(kind: type[Message]) -> tuple[tuple[str, Kind], ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in fields(kind):  # type: ignore[arg-type]
        hint = hints[field.name]
        if get_origin(hint) is Annotated:
            found.append((field.name, get_args(hint)[1]))
        else:
            assert field.name == "payload", f"{kind.__name__}.{field.name} has no kind"
    return tuple(found)


def encode(message: Message, envelope: Envelope) -> list[Buffer]:
    """The frames of a message; payload is not copied. BadMessage when it is out of bounds."""
    message.check()
    frames = _checked(type(message), message.frames)
    name = type(message).__name__
    body = b"".join(
        kind.pack(f"{name}.{field}", getattr(message, field))
        for field, kind in layout(type(message))
    )
    header = HEADER.pack(
        *(MAGIC, VERSION, message.TYPE, len(frames)),
        *(envelope.sender, envelope.to, envelope.request, len(body)),
    )
    return [header + CRC.pack(crc32c(header + body)) + body, *frames]


def decode(frames: Frames, kinds: dict[int, type[Message]]) -> tuple[Envelope, Message]:
    """The message in `frames`, one of `kinds`. BadMessage for everything else."""
    if not frames:
        raise BadMessage("has no frame")
    head = memoryview(frames[0]).cast("B")
    if not HEADER_BYTES <= len(head) <= HEADER_BYTES + MAX_FIELDS_BYTES:
        raise BadMessage(f"has a head of {len(head)} bytes")
    magic, version, number, count, sender, to, request, length = HEADER.unpack_from(head)
    if magic != MAGIC:
        raise BadMessage(f"begins with {magic!r}")
    body = head[HEADER_BYTES:]
    (checksum,) = CRC.unpack_from(head, HEADER.size)
    if checksum != crc32c(body, crc32c(head[: HEADER.size])):
        raise BadMessage("fails its checksum")
    if version != VERSION:
        raise BadMessage(f"has version {version}; this program speaks {VERSION}")
    kind = kinds.get(number)
    if kind is None:
        raise BadMessage(f"has the unknown type {number}")
    if length != len(body) or count != len(frames) - 1:
        raise BadMessage(f"{kind.__name__} says {length} bytes and {count} frames, but is not so")
    return Envelope(sender, to, request), _parse(kind, body, frames[1:])


def _parse(kind: type[Message], body: memoryview, payload: Frames) -> Message:
    values = {}
    at = 0
    for name, field in layout(kind):
        values[name], at = field.unpack(f"{kind.__name__}.{name}", body, at)
    if at != len(body):
        raise BadMessage(f"{kind.__name__} has {len(body) - at} bytes behind its fields")
    frames = _checked(kind, payload)
    message = kind(**values, payload=frames) if kind.FRAMES[1] else kind(**values)  # type: ignore[call-arg]
    message.check()
    return message


def _checked(kind: type[Message], payload: Frames) -> tuple[memoryview, ...]:
    low, high = kind.FRAMES
    if not low <= len(payload) <= high:
        raise BadMessage(f"{kind.__name__} has {len(payload)} payload frames, not {low} to {high}")
    views = tuple(memoryview(frame).cast("B") for frame in payload)
    if any(not 0 < len(view) <= MAX_FRAME_BYTES for view in views):
        raise BadMessage(f"{kind.__name__} has a payload frame that is empty or too long")
    if sum(map(len, views)) > MAX_PAYLOAD_BYTES:
        raise BadMessage(f"{kind.__name__} has more than {MAX_PAYLOAD_BYTES} bytes of payload")
    return views


def size_of(frames: Frames) -> int:
    """Bytes of all frames."""
    return sum(memoryview(frame).nbytes for frame in frames)


def kind_of(frames: Frames) -> int:
    """The type of an encoded message."""
    return memoryview(frames[0]).cast("B")[5]
