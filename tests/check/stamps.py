"""What a recorded write puts into a sector, and what a sector read back says of its writer.

A stamp is 32 bytes, sixteen of which fill a sector; so bytes of two writes, or of a write and
something else, are never a stamp all the way through.

    offset size  field
    0      4     magic "bdSt"
    4      4     history: number of the history that the write is of
    8      4     writer: number of the connection
    12     8     operation: number of the write in its history, from 1
    20     8     sector: where it was written, offset // 512
    28     4     crc32 of the 28 bytes before it

Little endian. Zeros are what nobody wrote, and what was trimmed or zeroed: operation 0.
"""

import struct
import zlib
from dataclasses import dataclass

from typing_extensions import Buffer

SECTOR = 512
STAMP = struct.Struct("<4sIIQQ")
CRC = struct.Struct("<I")
STAMP_BYTES = STAMP.size + CRC.size
REPEATS = SECTOR // STAMP_BYTES
MAGIC = b"bdSt"
ZEROS = bytes(SECTOR)

TORN = "torn"
"""The sector is not what any one write put there (I5)."""
FOREIGN = "foreign"
"""A whole sector of another place, another history, or of something that makes no stamps (I8)."""

Run = list[int | str]
"""[count, source]: so many sectors in a row are of this operation; 0 for zeros, TORN, FOREIGN."""


@dataclass(frozen=True, slots=True)
class Stamp:
    history: int
    writer: int
    operation: int
    sector: int


def stamped(stamp: Stamp) -> bytes:
    """The contents of one sector."""
    packed = STAMP.pack(MAGIC, stamp.history, stamp.writer, stamp.operation, stamp.sector)
    return (packed + CRC.pack(zlib.crc32(packed))) * REPEATS


def payload(history: int, writer: int, operation: int, first: int, count: int) -> bytes:
    """What a write of `count` sectors from sector `first` on has to send."""
    return b"".join(
        stamped(Stamp(history, writer, operation, sector)) for sector in range(first, first + count)
    )


def parse(sector: Buffer) -> Stamp | str:
    """The stamp that fills a sector, or what is wrong with it. Zeros are not for this."""
    content = bytes(sector)
    head = content[:STAMP_BYTES]
    magic, history, writer, operation, number = STAMP.unpack_from(head)
    if content != head * REPEATS:
        return TORN if MAGIC in content else FOREIGN
    if magic != MAGIC or CRC.unpack_from(head, STAMP.size)[0] != zlib.crc32(head[: STAMP.size]):
        return FOREIGN
    return Stamp(history, writer, operation, number)


def runs_of(data: Buffer, first: int, history: int) -> list[Run]:
    """What `data`, read from sector `first` on, consists of: runs of sectors of one operation."""
    view = memoryview(data).cast("B")
    runs: list[Run] = []
    for at in range(0, len(view), SECTOR):
        content = bytes(view[at : at + SECTOR])
        source: int | str = 0 if content == ZEROS else _source(content, first, history)
        if runs and runs[-1][1] == source:
            runs[-1][0] += 1  # type: ignore[operator]
        else:
            runs.append([1, source])
        first += 1
    return runs


def _source(content: bytes, sector: int, history: int) -> int | str:
    stamp = parse(content)
    if isinstance(stamp, str):
        return stamp
    if (stamp.history, stamp.sector) != (history, sector):
        return FOREIGN
    return stamp.operation
