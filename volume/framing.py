"""Values of `meta/`: a version byte, the body, a crc32c, since LMDB's pages carry no checksum."""

from typing import NoReturn

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


def corrupt_value(path: str, key: bytes, what: str) -> NoReturn:
    raise CorruptData(f"{path}: value of {key!r} {what}; restore {path} from a copy")
