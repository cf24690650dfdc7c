"""One pack file: its bytes, how they are checked, and how far a torn one can be believed.

    header (64)  entry  entry  ...  footer rows  trailer (64)

    entry = header (64)  page table (u32 crc32c for each 4 KiB stored)  stored bytes  zeros to 64

Entries say which pack they are of and at which offset, so bytes that belong elsewhere are never
taken for them. The page table is checked by the entry header, and each 4 KiB of stored bytes by the
table: a reader that knows the table can verify one page alone.

A pack is *sealed* when rows and trailer are in place, complete and synced; it never changes again.
Without them, because a crash came first or because they have rotted, `salvage` finds the entries by
their own headers and steps over what is damaged.

Everything here is a plain function of a `File` or of bytes; `volume.packs` keeps the state.
"""

import errno
from collections.abc import Collection, Iterator
from typing import NamedTuple, Protocol

from typing_extensions import Buffer

from native import crc32c, crc32c_pages
from volume import layout
from volume.disk import File
from volume.errors import CorruptChunk, CorruptPack, UnknownFormat
from volume.index import Place
from volume.layout import ChunkId
from volume.model import MAX_CHUNK_SIZE

HEADER_LENGTH = layout.PACK_HEADER.size
ENTRY_HEADER_LENGTH = layout.ENTRY_HEADER.size
TRAILER_LENGTH = layout.TRAILER.size
ROW_LENGTH = layout.FOOTER_ROW.size
SALVAGE_WINDOW = 1024 * 1024  # bytes read at once while looking for the next entry header
MEDIUM_ERRNOS = (errno.EIO, errno.EREMOTEIO, errno.ENODATA, errno.EILSEQ)
"""What a read of a bad sector fails with, as kernels say."""
_CRC_FIELD = 4  # the last bytes of every 64-byte header are the crc32c of what is before them


def _with_crc(body: bytes) -> bytes:
    return body[:-_CRC_FIELD] + layout.META_U32.pack(crc32c(body[:-_CRC_FIELD]))


def _crc_holds(header: bytes) -> bool:
    return layout.META_U32.pack(crc32c(header[:-_CRC_FIELD])) == header[-_CRC_FIELD:]


# -- pack header ----------------------------------------------------------------------------------


def encode_header(number: int, store_uuid: bytes) -> bytes:
    return _with_crc(
        layout.PACK_HEADER.pack(
            layout.PACK_HEADER_MAGIC, layout.PACK_VERSION, number, store_uuid, 0
        )
    )


def check_header(header: bytes, path: str, number: int, store_uuid: bytes) -> None:
    """Raise unless `header` begins pack `number` of this store.

    CorruptPack when it is damaged, UnknownFormat when it is whole but not what we can read."""
    if len(header) != HEADER_LENGTH or not _crc_holds(header):
        raise CorruptPack(f"{path}: the pack header fails its checksum")
    magic, version, found_number, found_uuid, _ = layout.PACK_HEADER.unpack(header)
    if magic != layout.PACK_HEADER_MAGIC or version != layout.PACK_VERSION:
        raise UnknownFormat(path, f"magic {magic!r}, version {version}")
    if (found_number, found_uuid) != (number, store_uuid):
        raise UnknownFormat(path, f"is pack {found_number} of store {found_uuid.hex()}")


# -- entries --------------------------------------------------------------------------------------


class EntryHeader(NamedTuple):
    """The fields of an entry header that are not fixed by where it lies."""

    kind: int
    codec: int
    raw_length: int
    stored_length: int
    chunk_id: ChunkId
    table_crc: int


def table_length(stored_length: int) -> int:
    """Bytes of the page table for that many stored bytes."""
    return -(-stored_length // layout.PAGE_SIZE) * 4


def entry_length(stored_length: int) -> int:
    """Bytes from an entry's header to the next entry."""
    length = ENTRY_HEADER_LENGTH + table_length(stored_length) + stored_length
    return -(-length // layout.ENTRY_ALIGNMENT) * layout.ENTRY_ALIGNMENT


def encode_entry_header(place: Place, chunk_id: ChunkId, table: bytes) -> bytes:
    return _with_crc(
        layout.ENTRY_HEADER.pack(
            layout.ENTRY_MAGIC,
            place.kind,
            place.codec,
            0,
            place.pack,
            place.offset,
            place.raw_length,
            place.stored_length,
            chunk_id,
            crc32c(table),
            0,
        )
    )


def decode_entry_header(data: bytes, number: int, offset: int) -> EntryHeader | None:
    """The header of the entry at `offset` of pack `number`; None when there is none that holds."""
    if len(data) < ENTRY_HEADER_LENGTH or not _crc_holds(data[:ENTRY_HEADER_LENGTH]):
        return None
    magic, kind, codec, flags, pack, found, raw, stored, chunk_id, table_crc, _ = (
        layout.ENTRY_HEADER.unpack_from(data)
    )
    if magic != layout.ENTRY_MAGIC or flags or (pack, found) != (number, offset):
        return None
    if kind not in layout.KIND_NAMES or not 0 < stored <= MAX_CHUNK_SIZE or raw > MAX_CHUNK_SIZE:
        return None
    return EntryHeader(kind, codec, raw, stored, chunk_id, table_crc)


def describe(path: str, place: Place, chunk_id: ChunkId) -> str:
    """Where a chunk is, for messages."""
    return f"chunk {chunk_id.hex()} at offset {place.offset} of {path}"


def page_table(data: bytes, path: str, place: Place, chunk_id: ChunkId) -> bytes:
    """The page table of an entry, given its first bytes. CorruptChunk unless all of it holds."""
    what = describe(path, place, chunk_id)
    header = decode_entry_header(data, place.pack, place.offset)
    if header is None:
        raise CorruptChunk(f"{what}: there is no valid entry header")
    if header.chunk_id != chunk_id:
        raise CorruptChunk(f"{what}: the entry there is chunk {header.chunk_id.hex()}")
    fields = (header.stored_length, header.raw_length, header.codec, header.kind)
    if fields != (place.stored_length, place.raw_length, place.codec, place.kind):
        raise CorruptChunk(f"{what}: the entry header does not agree with the index")
    length = table_length(place.stored_length)
    table = data[ENTRY_HEADER_LENGTH : ENTRY_HEADER_LENGTH + length]
    if len(table) != length:
        raise CorruptChunk(f"{what}: cut off after {len(table)} bytes of its page table")
    if crc32c(table) != header.table_crc:
        raise CorruptChunk(f"{what}: the page table fails its checksum")
    return table


def stored_bytes(data: bytes, path: str, place: Place, chunk_id: ChunkId) -> bytes:
    """The stored bytes of an entry that is `data`, every page verified. CorruptChunk."""
    table = page_table(data, path, place, chunk_id)
    start = ENTRY_HEADER_LENGTH + len(table)
    stored = data[start : start + place.stored_length]
    if len(stored) != place.stored_length:
        what = describe(path, place, chunk_id)
        raise CorruptChunk(f"{what}: cut off after {len(stored)} of its stored bytes")
    found = crc32c_pages(stored)
    if found != table:
        what = describe(path, place, chunk_id)
        bad = _unequal(found, table)
        if place.kind == layout.KIND_DAMAGED and with_lost(found, bad) == table:
            raise CorruptChunk(f"{what}: pages {bad} were lost before it was stored")
        raise CorruptChunk(f"{what}: pages {bad} of its stored bytes fail their checksums")
    return stored


def with_lost(table: bytes, lost: Collection[int]) -> bytes:
    """The page table of a damaged chunk: `table`, in which no page of `lost` will ever verify."""
    values = [value for (value,) in layout.META_U32.iter_unpack(table)]
    for page in lost:
        values[page] ^= 0xFFFFFFFF
    return b"".join(layout.META_U32.pack(value) for value in values)


def _unequal(found: bytes, table: bytes) -> list[int]:
    return [i // 4 for i in range(0, len(table), 4) if found[i : i + 4] != table[i : i + 4]]


# -- footer ---------------------------------------------------------------------------------------


def encode_row(place: Place, chunk_id: ChunkId) -> bytes:
    return layout.FOOTER_ROW.pack(
        chunk_id, place.offset, place.stored_length, place.raw_length, place.kind, place.codec
    )


def decode_rows(rows: Buffer, number: int) -> Iterator[tuple[ChunkId, Place]]:
    """The entries that footer rows tell of, in order."""
    for ordinal, row in enumerate(layout.FOOTER_ROW.iter_unpack(rows)):
        chunk_id, offset, stored, raw, kind, codec = row
        yield chunk_id, Place(number, offset, stored, raw, ordinal, codec, kind)


def encode_footer(rows: Buffer, number: int, store_uuid: bytes, tail: int) -> bytes:
    """Rows and trailer, to be written at `tail`, the end of the last entry."""
    body = bytes(rows)
    trailer = layout.TRAILER.pack(
        layout.TRAILER_MAGIC,
        layout.PACK_VERSION,
        number,
        store_uuid,
        len(body) // layout.FOOTER_ROW.size,
        tail,
        crc32c(body),
        0,
    )
    return body + _with_crc(trailer)


class Trailer(NamedTuple):
    """What the end of a sealed pack says."""

    entry_count: int
    rows_offset: int
    rows_crc: int


class Sized(Protocol):
    """The part of a `File` that the end of a pack is read by."""

    def pread(self, length: int, offset: int) -> bytes: ...
    def size(self) -> int: ...


def read_trailer(file: Sized, number: int, store_uuid: bytes) -> Trailer | None:
    """The trailer; None when the pack has none that holds: it is unsealed, or has rotted."""
    size = file.size()
    if size < HEADER_LENGTH + TRAILER_LENGTH:
        return None
    data = file.pread(TRAILER_LENGTH, size - TRAILER_LENGTH)
    if len(data) != TRAILER_LENGTH or not _crc_holds(data):
        return None
    magic, version, pack, uuid, count, offset, crc, _ = layout.TRAILER.unpack(data)
    if magic != layout.TRAILER_MAGIC or (pack, uuid) != (number, store_uuid):
        return None
    if version != layout.PACK_VERSION:
        raise UnknownFormat(f"pack {number:08x}", f"footer version {version}")
    if offset + count * layout.FOOTER_ROW.size + TRAILER_LENGTH != size:
        return None
    return Trailer(count, offset, crc)


def read_rows(file: Sized, trailer: Trailer) -> bytes | None:
    """The footer rows; None when they fail their checksum."""
    rows = file.pread(trailer.entry_count * layout.FOOTER_ROW.size, trailer.rows_offset)
    return rows if crc32c(rows) == trailer.rows_crc else None


# -- without a footer -----------------------------------------------------------------------------


class Salvage(NamedTuple):
    """What is in a pack that has no footer: its entries as footer rows, and where the last ends."""

    rows: bytearray
    end: int


class Source(Protocol):
    """The part of a `File` that a scan needs."""

    def pread(self, length: int, offset: int) -> bytes: ...


class Entry(NamedTuple):
    """An entry whose header holds."""

    chunk_id: ChunkId
    place: Place
    """Its ordinal counts the entries whose headers hold."""
    whole: bool
    """Page table and stored bytes hold as well, or were not looked at."""


def salvage(file: File, number: int, *, verify: bool) -> Salvage:
    """Every entry that holds, also behind damage. Without `verify` only headers are looked at."""
    rows, end = bytearray(), HEADER_LENGTH
    for chunk_id, place, whole in scan(file, number, verify=verify)[0]:
        if whole:
            rows += encode_row(place, chunk_id)
            end = place.offset + entry_length(place.stored_length)
    return Salvage(rows, end)


def scan(file: Source, number: int, *, verify: bool) -> tuple[list[Entry], bool]:
    """Every entry whose header holds, in order, also behind damage; and whether there is anything
    else, where a header might have been. (A header that is cut off was never whole.)"""
    entries: list[Entry] = []
    gaps = False
    offset: int | None = HEADER_LENGTH
    while offset is not None:
        data = file.pread(ENTRY_HEADER_LENGTH, offset)
        header = decode_entry_header(data, number, offset)
        if header is None:
            gaps = gaps or len(data) == ENTRY_HEADER_LENGTH
            offset = _next_magic(file, offset + layout.ENTRY_ALIGNMENT)
            continue
        place = _place(header, number, offset, len(entries))
        whole = not verify or _verifies(file, place, header.chunk_id)
        entries.append(Entry(header.chunk_id, place, whole))
        offset += entry_length(header.stored_length)
    return entries, gaps


def _verifies(file: Source, place: Place, chunk_id: ChunkId) -> bool:
    length = ENTRY_HEADER_LENGTH + table_length(place.stored_length) + place.stored_length
    data = file.pread(length, place.offset)
    try:
        if place.kind == layout.KIND_DAMAGED:
            return _lost_as_noted(data, place, chunk_id)
        stored_bytes(data, "", place, chunk_id)
    except CorruptChunk:
        return False
    return True


def _lost_as_noted(data: bytes, place: Place, chunk_id: ChunkId) -> bool:
    """Whether an entry of a damaged chunk is as it was written. CorruptChunk."""
    table = page_table(data, "", place, chunk_id)
    start = ENTRY_HEADER_LENGTH + len(table)
    stored = data[start : start + place.stored_length]
    found = crc32c_pages(stored)
    return len(stored) == place.stored_length and with_lost(found, _unequal(found, table)) == table


def _place(header: EntryHeader, number: int, offset: int, ordinal: int) -> Place:
    return Place(
        number,
        offset,
        header.stored_length,
        header.raw_length,
        ordinal,
        header.codec,
        header.kind,
    )


def _next_magic(file: Source, offset: int) -> int | None:
    """Offset of the next aligned entry magic at or after `offset`; None at the end of the file."""
    while data := file.pread(SALVAGE_WINDOW, offset):
        found = data.find(layout.ENTRY_MAGIC)
        while found != -1 and found % layout.ENTRY_ALIGNMENT:
            found = data.find(layout.ENTRY_MAGIC, found + 1)
        if found != -1:
            return offset + found
        offset += SALVAGE_WINDOW
    return None
