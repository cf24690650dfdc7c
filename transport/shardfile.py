"""One shard file: its bytes, how they are checked, how it is written.

    header (4096)   page table (u32 crc32c for each 4 KiB), zeros to 4096   payload

A stripe is a pack in k data and m parity shards. Every shard's header tells all of the stripe, so
that any one of them explains the others: which pack, how long, where it was cut, and the BLAKE3 of
every shard's payload, by which a shard that was computed again is known to be what was lost.

The payload of data shard i is the pack from `cuts[i]` to `cuts[i + 1]`, zeros behind it. Cuts lie
between entries, so that no chunk is in two shards: to read one is to read one device.

A file has its name, `shards/<pack id>.<k>+<m>.<number>`, only when all of it is synced; until then
it is `.new`, which nobody reads and whoever writes the shard next throws away. The same pack is cut
in the same way by everybody, so that two files of one name are the same. docs/disk-format.md has
the table of the header.
"""

import contextlib
import errno
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from blake3 import blake3
from typing_extensions import Buffer

from native import ERASURE_MAX_SHARDS, crc32c, crc32c_pages
from volume.disk import Disk, File
from volume.errors import CorruptData, UnknownFormat
from volume.layout import PAGE_SIZE

FOLDER: Final = "shards"
MAGIC: Final = b"BLKDSHRD"
VERSION: Final = 1
CODE: Final = 1  # Reed-Solomon as native/src/erasure.h says
HEADER_LENGTH: Final = 4096
HASH_LENGTH: Final = 32
MAX_SHARD_BYTES: Final = 1 << 31
"""Of payload; a pack is at most 1 GiB, or one entry."""
PIECE: Final = 256 << 10
"""Bytes of each shard that are in memory at a time: 5 MiB for the widest stripe."""

_NAME = re.compile(r"([0-9a-f]{64})\.([1-9]\d?)\+([1-9]\d?)\.(0|[1-9]\d?)")
_FIXED = struct.Struct("<8s I B B B B 32s Q Q I")
_CUTS = struct.Struct(f"<{ERASURE_MAX_SHARDS + 1}Q")
_CUTS_AT = 128
_HASHES_AT = _CUTS_AT + _CUTS.size
_HASHES_END = _HASHES_AT + ERASURE_MAX_SHARDS * HASH_LENGTH
_CRC_AT = HEADER_LENGTH - 4


class CorruptShard(CorruptData):
    """A shard file is not what was written: to be computed again from others."""

    code = "corrupt_shard"


class Piece(NamedTuple):
    """A part of one data shard that is a part of the pack."""

    number: int
    offset: int
    """In the payload."""
    length: int


def padded(length: int) -> int:
    return -(-length // PAGE_SIZE) * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Stripe:
    """What all shards of a pack have in common. ValueError for what cannot be."""

    pack_id: bytes
    """BLAKE3-256 of the pack's bytes."""
    pack_size: int
    data: int
    parity: int
    cuts: tuple[int, ...]
    """`data` + 1 offsets in the pack, from 0 to its size, none less than the one before."""
    hashes: tuple[bytes, ...]
    """BLAKE3-256 of the payload of each shard."""

    def __post_init__(self) -> None:
        if not (self.data >= 1 and self.parity >= 1 and self.width <= ERASURE_MAX_SHARDS):
            raise ValueError(f"{self.data}+{self.parity} shards")
        lengths = [end - start for start, end in pairwise(self.cuts)]
        whole = self.cuts[:1] == (0,) and self.cuts[-1] == self.pack_size > 0
        if len(lengths) != self.data or not whole or min(lengths) < 0:
            raise ValueError(f"cuts {self.cuts} of {self.pack_size} bytes into {self.data}")
        if self.shard_length > MAX_SHARD_BYTES:
            raise ValueError(
                f"a shard of {self.shard_length} bytes; {MAX_SHARD_BYTES} are the most"
            )
        if len(self.pack_id) != HASH_LENGTH or len(self.hashes) != self.width:
            raise ValueError(f"{len(self.hashes)} hashes of {self.width} shards")
        if any(len(each) != HASH_LENGTH for each in self.hashes):
            raise ValueError("a hash of another length than 32 bytes")

    @property
    def width(self) -> int:
        return self.data + self.parity

    @property
    def shard_length(self) -> int:
        """Bytes of payload, whole pages, the same for each shard."""
        return padded(max(end - start for start, end in pairwise(self.cuts)))

    @property
    def digest(self) -> bytes:
        """16 bytes that only this stripe has: shards of another one are not mixed with its own."""
        return blake3(self._encode(0, 0)).digest(length=16)

    def name(self, number: int) -> "ShardName":
        return ShardName(self.pack_id, self.data, self.parity, number)

    def header(self, number: int, table_crc: int) -> bytes:
        """The header of shard `number`."""
        body = self._encode(number, table_crc)
        return body + crc32c(body).to_bytes(4, "little")

    def _encode(self, number: int, table_crc: int) -> bytes:
        fixed = _FIXED.pack(
            MAGIC,
            VERSION,
            number,
            self.data,
            self.parity,
            CODE,
            self.pack_id,
            self.pack_size,
            self.shard_length,
            table_crc,
        )
        cuts = _CUTS.pack(*self.cuts, *[0] * (ERASURE_MAX_SHARDS - self.data))
        body = fixed.ljust(_CUTS_AT, b"\0") + cuts + b"".join(self.hashes)
        return body.ljust(_CRC_AT, b"\0")

    def pieces(self, offset: int, length: int) -> Iterator[Piece]:
        """Where a part of the pack is, in order."""
        assert 0 <= offset <= offset + length <= self.pack_size
        for number in range(self.data):
            start, end = self.cuts[number], self.cuts[number + 1]
            first, last = max(offset, start), min(offset + length, end)
            if first < last:
                yield Piece(number, first - start, last - first)


class ShardName(NamedTuple):
    """Which shard of which pack, and of how many."""

    pack_id: bytes
    data: int
    parity: int
    number: int

    @property
    def file_name(self) -> str:
        return f"{self.pack_id.hex()}.{self.data}+{self.parity}.{self.number}"

    @property
    def path(self) -> str:
        return f"{FOLDER}/{self.file_name}"

    @classmethod
    def parse(cls, file_name: str) -> "ShardName | None":
        """None for a file that is no shard, or not a whole one."""
        match = _NAME.fullmatch(file_name)
        if match is None:
            return None
        data, parity, number = map(int, match.groups()[1:])
        if not number < data + parity <= ERASURE_MAX_SHARDS:
            return None
        return cls(bytes.fromhex(match[1]), data, parity, number)


class Header(NamedTuple):
    stripe: Stripe
    number: int
    table_crc: int

    @property
    def name(self) -> ShardName:
        return self.stripe.name(self.number)


def decode_header(data: bytes, path: str) -> Header:
    """CorruptShard when it is damaged, UnknownFormat when it is whole but not what we can read."""
    if len(data) < HEADER_LENGTH:
        raise CorruptShard(f"{path}: cut off after {len(data)} bytes of its header")
    data = data[:HEADER_LENGTH]
    if crc32c(data[:_CRC_AT]) != int.from_bytes(data[_CRC_AT:], "little"):
        raise CorruptShard(f"{path}: the header fails its checksum")
    magic, version, number, k, m, code, pack_id, size, _, table_crc = _FIXED.unpack_from(data)
    if magic != MAGIC or version != VERSION or code != CODE:
        raise UnknownFormat(path, f"magic {magic!r}, version {version}, code {code}")
    cuts = _CUTS.unpack_from(data, _CUTS_AT)[: k + 1]
    hashes = [
        data[at : at + HASH_LENGTH]
        for at in range(_HASHES_AT, min(_HASHES_END, _HASHES_AT + (k + m) * HASH_LENGTH), 32)
    ]
    try:
        stripe = Stripe(pack_id, size, k, m, cuts, tuple(hashes))
    except ValueError as error:
        raise CorruptShard(f"{path}: the header is of no stripe ({error})") from None
    if number >= stripe.width:
        raise CorruptShard(f"{path}: is shard {number} of {stripe.width}")
    if stripe.header(number, table_crc) != data:
        raise CorruptShard(f"{path}: the header is not in the form in which it is written")
    return Header(stripe, number, table_crc)


def prepare(disk: Disk) -> None:
    """Make the folder for shards on a device, durable on return."""
    disk.mkdir(FOLDER)
    disk.sync_dir("")


def _table_length(payload: int) -> int:
    return padded(payload // PAGE_SIZE * 4)


class ShardFile:
    """An open shard whose header and page table hold; pages are checked as they are read."""

    def __init__(
        self, disk: Disk, name: ShardName, *, uncached: bool = False, path: str | None = None
    ) -> None:
        """CorruptShard, UnknownFormat, OSError (ENOENT: it is not there). `uncached`: what the disk
        has, not what the page cache has. `path`: where it is, when that is not its name."""
        self.path = path or name.path
        if uncached:
            self._file: File = disk.open_uncached(self.path)
        else:
            self._file = disk.open(self.path, read_only=True)
        try:
            header = decode_header(self._file.pread(HEADER_LENGTH, 0), self.path)
            if header.name != name:
                raise CorruptShard(f"{self.path}: is {header.name.file_name}")
            self.name = name
            self.stripe = header.stripe
            self._start = HEADER_LENGTH + _table_length(self.stripe.shard_length)
            self.size = self._start + self.stripe.shard_length
            if self._file.size() != self.size:
                raise CorruptShard(f"{self.path}: is {self._file.size()} bytes long")
            length = self.stripe.shard_length // PAGE_SIZE * 4
            self.table = self._file.pread(length, HEADER_LENGTH)
            if crc32c(self.table) != header.table_crc:
                raise CorruptShard(f"{self.path}: the page table fails its checksum")
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, length: int) -> bytes:
        """A part of the payload, every page that it touches verified. CorruptShard, OSError."""
        assert 0 <= offset <= offset + length <= self.stripe.shard_length
        start, end = offset // PAGE_SIZE * PAGE_SIZE, padded(offset + length)
        data = self._file.pread(end - start, self._start + start)
        self.check_pages(data, start, end)
        return data[offset - start : offset - start + length]

    def check_pages(self, data: Buffer, start: int, end: int) -> None:
        """CorruptShard unless `data` is what was written from `start` to `end`, whole pages."""
        found = crc32c_pages(data)
        expected = self.table[start // PAGE_SIZE * 4 : end // PAGE_SIZE * 4]
        if found == expected:
            return
        pages = range(0, len(expected), 4)
        bad = next(at for at in pages if found[at : at + 4] != expected[at : at + 4]) // 4
        raise CorruptShard(
            f"{self.path}: page {start // PAGE_SIZE + bad} fails its checksum, or is missing"
        )

    def verify(self) -> None:
        """Read all of it. CorruptShard unless the payload is what the stripe's hash says."""
        hasher = blake3()
        for data in self.read_all():
            hasher.update(data)
        if hasher.digest() != self.stripe.hashes[self.name.number]:
            raise CorruptShard(f"{self.path}: is not the bytes that its hash names")

    def read_all(self) -> Iterator[bytes]:
        """The payload in pieces. Errors as `read`."""
        length = self.stripe.shard_length
        for at in range(0, length, PIECE):
            yield self.read(at, min(PIECE, length - at))

    def close(self) -> None:
        self._file.close()


class ShardWriter:
    """Writes one shard beside its name, and gives it its name when it is whole.

    Durable when `finish` returns. A crash before leaves a `.new` file, or nothing; what was there
    under the name stays until it is replaced."""

    def __init__(self, disk: Disk, name: ShardName, shard_length: int) -> None:
        self.name = name
        self.path = name.path
        self._disk = disk
        self._new = self.path + ".new"
        self._length = shard_length
        self._start = HEADER_LENGTH + _table_length(shard_length)
        self._written = 0
        self._hasher = blake3()
        self._table = bytearray()
        self._remove()
        self._file: File | None = disk.open(self._new, create=True)

    def append(self, data: Buffer) -> None:
        """The next whole pages of the payload. OSError."""
        view = memoryview(data)
        assert self._file is not None
        assert view.nbytes % PAGE_SIZE == 0
        self._file.pwrite(view, self._start + self._written)
        self._written += view.nbytes
        self._hasher.update(view)
        self._table += crc32c_pages(view)

    @property
    def hash(self) -> bytes:
        """Of what was appended."""
        return self._hasher.digest()

    def finish(self, stripe: Stripe) -> None:
        """Make it this shard of `stripe`. CorruptShard when that is not what was appended."""
        assert self._file is not None
        assert self._written == self._length == stripe.shard_length
        if self.hash != stripe.hashes[self.name.number]:
            raise CorruptShard(
                f"{self.path}: what was made of other shards is not the bytes that its hash names"
            )
        table = bytes(self._table)
        padding = bytes(_table_length(self._length) - len(table))
        self._file.pwrite(stripe.header(self.name.number, crc32c(table)) + table + padding, 0)
        self._file.sync()
        self._close()
        self._disk.rename(self._new, self.path)
        self._disk.sync_dir(FOLDER)

    def discard(self) -> None:
        """Give it up, unless it is finished."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._close()
                self._remove()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _remove(self) -> None:
        try:
            self._disk.unlink(self._new)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise


def remove_shard(disk: Disk, name: ShardName) -> None:
    """Durable on return; nothing to do when it is not there. OSError."""
    for path in (name.path, name.path + ".new"):
        try:
            disk.unlink(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    disk.sync_dir(FOLDER)


def copy_shard(source: ShardFile, disk: Disk) -> None:
    """Write the same shard on another device, every byte verified on the way; durable on return.
    CorruptShard, OSError."""
    stripe = source.stripe
    writer = ShardWriter(disk, source.name, stripe.shard_length)
    try:
        for data in source.read_all():
            writer.append(data)
        writer.finish(stripe)
    except BaseException:
        writer.discard()
        raise
