"""How stored bytes relate to a chunk's bytes: one number for each way, kept in the pack entry.

    0 none   as they are
    1 lz4    LZ4 block without a size in front

2 (zstd) and 3 (igzip) are reserved. A chunk is stored compressed only when that saves at least
12 %: below that the time to decompress costs more than the space is worth, and a raw chunk can be
read and verified 4 KiB at a time.
"""

import lz4.block  # type: ignore[import-untyped]  # the wheel has no stubs
from typing_extensions import Buffer

from volume.errors import CorruptChunk, InvalidSize, UnknownFormat
from volume.model import MAX_CHUNK_SIZE

CODEC_NONE = 0
CODEC_LZ4 = 1
CODEC_NAMES = {CODEC_NONE: "none", CODEC_LZ4: "lz4"}
RESERVED_NAMES = {2: "zstd", 3: "igzip"}

MAX_STORED_FRACTION = 0.88  # of the raw length: what is larger is stored raw


def number(name: str) -> int:
    """The number of the codec called `name`. InvalidSize for an unknown one."""
    for known, its_name in CODEC_NAMES.items():
        if its_name == name:
            return known
    raise InvalidSize("compression", 0, f"{name!r} is none of {', '.join(CODEC_NAMES.values())}")


def compress(codec: int, data: Buffer, length: int) -> tuple[int, Buffer]:
    """The codec used and the bytes to store, for `length` bytes of `data`. Releases the GIL.

    Falls back to CODEC_NONE, with `data` itself, when compression does not pay."""
    if codec == CODEC_LZ4:
        packed: bytes = lz4.block.compress(data, store_size=False)
        if len(packed) <= length * MAX_STORED_FRACTION:
            return CODEC_LZ4, packed
    else:
        assert codec == CODEC_NONE, codec
    return CODEC_NONE, data


def decompress(codec: int, stored: bytes, raw_length: int, what: str) -> bytes:
    """The chunk's `raw_length` bytes. `what` names the chunk in errors.

    CorruptChunk when they cannot be had, UnknownFormat when the codec is not one of ours."""
    if raw_length > MAX_CHUNK_SIZE:
        raise CorruptChunk(
            f"{what}: claims {raw_length} bytes, a chunk has {MAX_CHUNK_SIZE} at most"
        )
    if codec == CODEC_NONE:
        data = stored
    elif codec == CODEC_LZ4:
        try:
            data = lz4.block.decompress(stored, uncompressed_size=raw_length)
        except lz4.block.LZ4BlockError as error:
            raise CorruptChunk(f"{what}: lz4 does not accept it ({error})") from error
    else:
        name = RESERVED_NAMES.get(codec)
        known = f"codec {codec}" + (f" ({name})" if name else "")
        raise UnknownFormat(what, f"is stored with {known}, which this version does not know")
    if len(data) != raw_length:
        raise CorruptChunk(f"{what}: unpacks to {len(data)} bytes instead of {raw_length}")
    return data
