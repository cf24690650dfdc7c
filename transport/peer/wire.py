"""A message as frames: the head (header and fields), then payload frames, which are not copied.

Header, 40 bytes, little-endian:

    0  magic "BPER"  4  version  5  type  6  payload frames (u16)  8  from (u64)  16  to (u64)
    24 request (u64) 32 length of the fields (u32)                 36 crc32c of all of the head

`from` and `to` are the incarnations of the two sides of a session: what comes from another session
than the present one is old and ignored. `to` is 0 in a HELLO, whose sender does not know it yet.

The checksum finds our own mistakes and bad memory: who may send at all is CURVE's affair. Payload
has its own checks (records a crc32c, chunks their ids), made by those who use it.

Messages whose fields all have a fixed size (APPEND, ACK, SYNC: those that come with every write)
are packed and unpacked in one call. What that finds wrong is looked at again field by field, which
says what it is: both ways take and refuse the same.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Final, get_args, get_origin, get_type_hints

from typing_extensions import Buffer

from native import crc32c
from transport.errors import BadMessage
from transport.peer.fields import Int, Kind, Raw

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


class _AtOnce:
    """All fields of a message, where each has a fixed size."""

    _CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}

    def __init__(self, kinds: tuple[tuple[str, Kind], ...]) -> None:
        codes = []
        for _, kind in kinds:
            match kind:
                case Int(size):
                    codes.append(self._CODES[size])
                case Raw(size):
                    codes.append(f"{size}s")
                case _:
                    raise KeyError(kind)
        self._struct = struct.Struct("<" + "".join(codes))
        names = [name for name, _ in kinds]
        self._get: Callable[[Any], tuple[Any, ...]] = (
            attrgetter(*names) if len(names) > 1 else lambda message: (getattr(message, names[0]),)
        )
        self._bounds = [
            (at, kind.low, kind.high)
            for at, (_, kind) in enumerate(kinds)
            if isinstance(kind, Int) and (kind.low, kind.high) != (0, None)
        ]
        self._lengths = [
            (at, kind.size) for at, (_, kind) in enumerate(kinds) if isinstance(kind, Raw)
        ]

    def pack(self, message: Message) -> bytes | None:
        """None: something is out of bounds."""
        values = self._get(message)
        if not self._fit(values):
            return None
        for at, length in self._lengths:
            if len(values[at]) != length:
                return None
        try:
            return self._struct.pack(*values)
        except struct.error:
            return None

    def unpack(self, body: memoryview) -> tuple[Any, ...] | None:
        if len(body) != self._struct.size:
            return None
        values = self._struct.unpack(body)
        return values if self._fit(values) else None

    def _fit(self, values: tuple[Any, ...]) -> bool:
        for at, low, high in self._bounds:
            value = values[at]
            if value < low or (high is not None and value > high):
                return False
        return True


_at_once: dict[type[Message], _AtOnce | None] = {}


def _packer(kind: type[Message]) -> _AtOnce | None:
    """None: a field is of a length of its own, or there is none."""
    try:
        return _at_once[kind]
    except KeyError:
        pass
    try:
        found = _AtOnce(layout(kind)) if layout(kind) else None
    except KeyError:
        found = None
    _at_once[kind] = found
    return found


@dataclass(frozen=True, slots=True)
class Packed:
    """A message, checked, but for the envelope: that is another one each time that it is sent."""

    number: int
    body: bytes
    payload: tuple[memoryview, ...]

    @property
    def size(self) -> int:
        """Bytes of all its frames."""
        return HEADER_BYTES + len(self.body) + sum(map(len, self.payload))

    def frames(self, envelope: Envelope) -> list[Buffer]:
        """Payload is not copied."""
        header = HEADER.pack(
            *(MAGIC, VERSION, self.number, len(self.payload)),
            *(envelope.sender, envelope.to, envelope.request, len(self.body)),
        )
        checksum = CRC.pack(crc32c(self.body, crc32c(header)))
        return [b"".join((header, checksum, self.body)), *self.payload]


def pack(message: Message) -> Packed:
    """BadMessage when it is out of bounds."""
    kind = type(message)
    message.check()
    payload = _checked(kind, message.frames)
    packer = _packer(kind)
    body = packer.pack(message) if packer is not None else None
    if body is None:
        body = b"".join(
            field.pack(f"{kind.__name__}.{name}", getattr(message, name))
            for name, field in layout(kind)
        )
    return Packed(kind.TYPE, body, payload)


def encode(message: Message, envelope: Envelope) -> list[Buffer]:
    """The frames of a message; payload is not copied. BadMessage when it is out of bounds."""
    return pack(message).frames(envelope)


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
    packer = _packer(kind)
    values = packer.unpack(body) if packer is not None else None
    if values is None:
        values = _fields(kind, body)
    frames = _checked(kind, payload)
    message = kind(*values, frames) if kind.FRAMES[1] else kind(*values)  # type: ignore[call-arg]
    message.check()
    return message


def _fields(kind: type[Message], body: memoryview) -> tuple[Any, ...]:
    """One after the other: BadMessage names the one that is out of bounds."""
    values = []
    at = 0
    for name, field in layout(kind):
        value, at = field.unpack(f"{kind.__name__}.{name}", body, at)
        values.append(value)
    if at != len(body):
        raise BadMessage(f"{kind.__name__} has {len(body) - at} bytes behind its fields")
    return tuple(values)


def _checked(kind: type[Message], payload: Frames) -> tuple[memoryview, ...]:
    low, high = kind.FRAMES
    if not payload and not low:
        return ()
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
