"""Values of `meta/`: a version byte, the body, a crc32c, since LMDB's pages carry no checksum."""

import struct
from typing import Any, NoReturn

from native import crc32c
from volume import layout
from volume.errors import CorruptData, UnknownFormat


def framed(body: bytes) -> bytes:
    """`body` as a value of meta/."""
    versioned = bytes([layout.META_VALUE_VERSION]) + body
    return versioned + layout.META_CRC.pack(crc32c(versioned))


def unframed(key: bytes, value: bytes, path: str = "meta") -> bytes:
    """The body of a value. CorruptData, UnknownFormat."""
    body, tail = value[:-4], value[-4:]
    if len(value) < 5 or layout.META_CRC.pack(crc32c(body)) != tail:
        corrupt_value(path, key, "fails its checksum")
    if body[0] != layout.META_VALUE_VERSION:
        raise UnknownFormat(path, f"value of {key!r} has version {body[0]}")
    return body[1:]


def unpacked(fields: struct.Struct, key: bytes, body: bytes, path: str = "meta") -> tuple[Any, ...]:
    """The fields of a body that has their length, neither more nor less. CorruptData."""
    if len(body) != fields.size:
        corrupt_value(path, key, f"is {len(body)} bytes long")
    return fields.unpack(body)


def unpacked_key(fields: struct.Struct, prefix: bytes, key: bytes) -> tuple[Any, ...]:
    """The fields of a key that has nothing but these after `prefix`. CorruptData."""
    if len(key) != len(prefix) + fields.size:
        corrupt_value("meta", key, f"is under a key of {len(key)} bytes")
    return fields.unpack_from(key, len(prefix))


def text(key: bytes, data: bytes, path: str = "meta") -> str:
    """UTF-8 of a key or a value. CorruptData."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        corrupt_value(path, key, "has text that is not UTF-8")


def corrupt_value(path: str, key: bytes, what: str) -> NoReturn:
    raise CorruptData(f"{path}: value of {key!r} {what}; restore {path} from a copy")
