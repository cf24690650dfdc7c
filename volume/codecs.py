"""How stored bytes relate to a chunk's bytes: one number for each way, kept in the pack entry.

    0 none    as they are
    1 lz4     one LZ4 block, without a size in front
    2 zstd    one zstd frame
    3 igzip   raw deflate, as ISA-L writes it

A chunk is stored compressed only when that saves at least 12 %: below that the time to decompress
costs more than the space is worth, and a raw chunk can be read and verified 4 KiB at a time.
"""

from collections.abc import Mapping
from typing import Final

from typing_extensions import Buffer

import native
from volume.errors import CorruptChunk, InvalidSize, UnknownFormat
from volume.model import MAX_CHUNK_SIZE

CODEC_NONE: Final = 0
CODEC_LZ4: Final = 1
CODEC_ZSTD: Final = 2
CODEC_IGZIP: Final = 3
CODEC_NAMES: Final[Mapping[int, str]] = {
    CODEC_NONE: "none",
    CODEC_LZ4: "lz4",
    CODEC_ZSTD: "zstd",
    CODEC_IGZIP: "igzip",
}
DEFAULT_CODEC: Final = CODEC_LZ4
"""Of new volumes; docs/benchmarks.md ("Codecs") says why."""

MAX_STORED_PERCENT = 88  # of the raw length: what is larger is stored raw


def number(name: str) -> int:
    """The number of the codec called `name`. InvalidSize lists all that there are."""
    for known, its_name in CODEC_NAMES.items():
        if its_name == name:
            return known
    raise InvalidSize("compression", 0, f"{name!r} is none of {', '.join(CODEC_NAMES.values())}")


def name_of(codec: int, what: str) -> str:
    """The name of the codec that `what` is stored with. UnknownFormat when it is none of ours."""
    name = CODEC_NAMES.get(codec)
    if name is None:
        raise UnknownFormat(what, f"is stored with codec {codec}, which this version does not know")
    return name


def compress(codec: int, data: Buffer, length: int) -> tuple[int, Buffer]:
    """The codec used and the bytes to store, for `length` bytes of `data`. Releases the GIL.

    Falls back to CODEC_NONE, with `data` itself, when compression does not pay."""
    assert codec in CODEC_NAMES, codec
    if codec != CODEC_NONE:
        packed = native.encode(codec, data, length * MAX_STORED_PERCENT // 100)
        if packed is not None:
            return codec, packed
    return CODEC_NONE, data


def decompress(codec: int, stored: bytes, raw_length: int, what: str) -> bytes:
    """The chunk's `raw_length` bytes. `what` names the chunk in errors. Releases the GIL.

    CorruptChunk when they cannot be had, UnknownFormat when the codec is not one of ours."""
    name = name_of(codec, what)
    if raw_length > MAX_CHUNK_SIZE:
        raise CorruptChunk(
            f"{what}: claims {raw_length} bytes, a chunk has {MAX_CHUNK_SIZE} at most"
        )
    if codec == CODEC_NONE:
        if len(stored) != raw_length:
            raise CorruptChunk(f"{what}: has {len(stored)} bytes instead of {raw_length}")
        return stored
    try:
        return native.decode(codec, stored, raw_length)
    except ValueError as error:
        raise CorruptChunk(
            f"{what}: its stored bytes are not {raw_length} bytes packed by {name}"
        ) from error
