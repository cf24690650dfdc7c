"""Stub of the C extension: every function states who owns which buffer."""

from typing import Final

from typing_extensions import Buffer

OP_READ: Final = 0
OP_WRITE: Final = 1
OP_FLUSH: Final = 2
OP_UNMAP: Final = 3
OP_WRITE_ZEROES: Final = 4
OP_CACHE: Final = 5
OP_BLOCK_STATUS: Final = 6

FLAG_FUA: Final = 1
FLAG_NO_HOLE: Final = 2
FLAG_FAST_ZERO: Final = 4

class Request:
    """One block request, from the front end to the volume and back.

    The front end sets the first six fields and submits it; the volume sets `error`, `message`
    and, for reads, `data`, exactly once. `offset` and `length` are bytes. `cookie` is opaque to
    the volume. `error` is 0 or a positive errno.

    `data` of a WRITE is any contiguous buffer of `length` bytes; it is borrowed for the duration
    of `submit()` only. `data` of a finished READ is a bytes object of `length` bytes. `data` of a
    finished BLOCK_STATUS is a list of `(length, flags)` extents.
    """

    op: int
    flags: int
    cookie: int
    offset: int
    length: int
    data: object
    error: int
    message: str | None
    def __init__(
        self,
        op: int,
        offset: int = 0,
        length: int = 0,
        data: Buffer | None = None,
        flags: int = 0,
        cookie: int = 0,
    ) -> None: ...

def crc32c(data: Buffer, crc: int = 0) -> int:
    """CRC-32C of `data`, continuing from `crc`: crc32c(b, crc32c(a)) == crc32c(a + b)."""

def crc32c_pages(data: Buffer) -> bytes:
    """One little-endian u32 CRC-32C for each started 4 KiB of `data`. Releases the GIL."""

def is_zero(data: Buffer) -> bool:
    """Whether every byte is zero; true for an empty buffer."""
