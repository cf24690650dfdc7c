"""Kinds of fields: how a value lies in a message, and what it may be.

A kind is put beside the type of a dataclass's field, `Annotated[int, Int(8)]`, and both ways of the
codec go by it. Integers are little-endian. A value out of bounds is BadMessage, whichever way it
goes: what we would refuse is never sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transport.errors import BadMessage

MAX_SEQ = (1 << 63) - 1  # lsn, seq and epochs: as MAX_EPOCH of the MetaStore, and signed elsewhere


class Kind(Protocol):
    """How one field lies in the bytes."""

    @property
    def shape(self) -> str:
        """As the tables of the documentation have it."""

    @property
    def size(self) -> int | None:
        """Bytes of every value; None when they differ."""

    @property
    def most(self) -> int:
        """Bytes of the longest value."""

    def pack(self, name: str, value: Any) -> bytes: ...
    def unpack(self, name: str, data: memoryview, at: int) -> tuple[Any, int]:
        """The value at `at`, and where the next field begins."""


@dataclass(frozen=True, slots=True)
class Int:
    """An unsigned integer of `size` bytes within [low, high]."""

    size: int
    low: int = 0
    high: int | None = None

    @property
    def shape(self) -> str:
        return f"u{8 * self.size}"

    @property
    def most(self) -> int:
        return self.size

    @property
    def _high(self) -> int:
        return (1 << 8 * self.size) - 1 if self.high is None else self.high

    def pack(self, name: str, value: int) -> bytes:
        self._check(name, value)
        return value.to_bytes(self.size, "little")

    def unpack(self, name: str, data: memoryview, at: int) -> tuple[int, int]:
        value = int.from_bytes(_cut(name, data, at, self.size), "little")
        self._check(name, value)
        return value, at + self.size

    def _check(self, name: str, value: int) -> None:
        if not self.low <= value <= self._high:
            raise BadMessage(f"{name} is {value}, not {self.low} to {self._high}")


@dataclass(frozen=True, slots=True)
class Raw:
    """Exactly `size` bytes."""

    size: int

    @property
    def shape(self) -> str:
        return "bytes"

    @property
    def most(self) -> int:
        return self.size

    def pack(self, name: str, value: bytes) -> bytes:
        if len(value) != self.size:
            raise BadMessage(f"{name} has {len(value)} bytes, not {self.size}")
        return value

    def unpack(self, name: str, data: memoryview, at: int) -> tuple[bytes, int]:
        return bytes(_cut(name, data, at, self.size)), at + self.size


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 of at most `longest` bytes behind its u16 length."""

    longest: int
    size = None

    @property
    def shape(self) -> str:
        return "text"

    @property
    def most(self) -> int:
        return 2 + self.longest

    def pack(self, name: str, value: str) -> bytes:
        data = value.encode(errors="replace")
        self._check(name, len(data))
        return len(data).to_bytes(2, "little") + data

    def unpack(self, name: str, data: memoryview, at: int) -> tuple[str, int]:
        length = int.from_bytes(_cut(name, data, at, 2), "little")
        self._check(name, length)
        try:
            return str(_cut(name, data, at + 2, length), "utf-8"), at + 2 + length
        except UnicodeDecodeError:
            raise BadMessage(f"{name} is not UTF-8") from None

    def _check(self, name: str, length: int) -> None:
        if length > self.longest:
            raise BadMessage(f"{name} has {length} bytes, above {self.longest}")


@dataclass(frozen=True, slots=True)
class Many:
    """Up to `count` values behind their u32 count; each one a tuple when it has several parts."""

    parts: tuple[Kind, ...]
    count: int
    size = None

    @property
    def shape(self) -> str:
        return " + ".join(f"{part.shape} {part.size or ''}".strip() for part in self.parts) + " ..."

    @property
    def most(self) -> int:
        return 4 + self.count * sum(part.most for part in self.parts)

    def pack(self, name: str, value: Sequence[Any]) -> bytes:
        self._check(name, len(value))
        out = [len(value).to_bytes(4, "little")]
        for item in value:
            values = item if len(self.parts) > 1 else (item,)
            pairs = zip(self.parts, values, strict=True)
            out += [part.pack(name, each) for part, each in pairs]
        return b"".join(out)

    def unpack(self, name: str, data: memoryview, at: int) -> tuple[tuple[Any, ...], int]:
        count = int.from_bytes(_cut(name, data, at, 4), "little")
        self._check(name, count)
        at += 4
        items = []
        for _ in range(count):
            values = []
            for part in self.parts:
                value, at = part.unpack(name, data, at)
                values.append(value)
            items.append(tuple(values) if len(values) > 1 else values[0])
        return tuple(items), at

    def _check(self, name: str, count: int) -> None:
        if count > self.count:
            raise BadMessage(f"{name} has {count} items, above {self.count}")


def _cut(name: str, data: memoryview, at: int, length: int) -> memoryview:
    if at + length > len(data):
        raise BadMessage(f"{name} is cut off: {len(data) - at} of {length} bytes")
    return data[at : at + length]
