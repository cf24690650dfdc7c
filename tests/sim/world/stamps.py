"""What a client writes: each sector tells which write it is from, and where it belongs.

16 bytes, repeated: number of the write, of the volume and of the sector. So contents are told by
their first 16 bytes; `ZERO` stands for zeros, and `UNREADABLE` for what cannot be read.
"""

import struct

from volume.disk import SECTOR_SIZE

STAMP = struct.Struct("<QII")  # number of the write, of the volume, of the sector
REPEATS = SECTOR_SIZE // STAMP.size
ZERO = bytes(STAMP.size)
UNREADABLE = b"\xffnot readable\xff\xff\xff"
"""Stands for the contents of a sector that cannot be read."""
ZEROS = bytes(SECTOR_SIZE)


class Violation(AssertionError):
    """An invariant is broken; the text begins with its name."""


def stamped(write: int, volume: int, first: int, count: int) -> bytes:
    """The data of a client's write of `count` sectors."""
    return b"".join(
        [STAMP.pack(write, volume, sector) * REPEATS for sector in range(first, first + count)]
    )


def stamp_of(sector: bytes | memoryview) -> bytes | None:
    """What tells the contents of a sector; None for one that no write leaves like that."""
    data = bytes(sector)
    head = data[: STAMP.size]
    return head if data == head * REPEATS else None
