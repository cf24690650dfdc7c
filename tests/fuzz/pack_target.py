"""Fuzz target of packs: any bytes as the files of a store's packs folder, and

- opening them, reading every entry, salvage and scrub end, with what is there or with CorruptData
  or UnknownFormat; no other exception, and no memory beyond a few times the files;
- what is read of a chunk is what its id names, whole;
- entries that are salvaged lie behind each other, within the file;
- opening sealed what a crash left: what was read the first time reads the same the second time.
  (What could not be read may be gone then, or be read: where the newest pack was torn and is
  removed, the one before it, without a footer that holds, is taken for the one that a crash left
  unsealed, and of two entries for a chunk the one that verifies is kept.)

Input: one byte of switches, a length (2, little-endian) and the first pack, and the rest as the
second. With RESEAL the checksums of headers, entries, page tables, footers and trailers are made
right where their magic is, and with NAME the id of raw entries as well, so that mutations get
behind them.
"""

import contextlib

from blake3 import blake3

from native import crc32c, crc32c_pages
from tests.fuzz.unlogged import unlogged
from tests.sim.image import Image
from tests.sim.simdisk import SimDisk
from volume import layout, packfile
from volume.chunks import ChunkStore, chunk_id_of
from volume.errors import CorruptData, UnknownFormat
from volume.index import ChunkIndex
from volume.kv import MemoryKeyValue
from volume.layout import ChunkId
from volume.packs import Packs

RESEAL, NAME = 1, 2
UUID = bytes(range(16))
PACK_BYTES = 64 * 1024


@unlogged()
def pack_target(data: bytes) -> None:
    """Run one input; raises when an invariant is broken."""
    switches = data[0] if data else 0
    length = int.from_bytes(data[1:3], "little")
    contents = [data[3 : 3 + length], data[3 + length :]]
    if switches & RESEAL:
        contents = [reseal(each, n, name=bool(switches & NAME)) for n, each in enumerate(contents)]
    disk = _disk(contents)
    for number, each in enumerate(contents):
        _check_salvage(disk, number, len(each))
    with contextlib.suppress(CorruptData, UnknownFormat):
        first = _read_all(disk)
        again = _read_all(SimDisk(disk.image(), record=False))
        assert _whole(first).items() <= _whole(again).items()
        assert again.keys() <= first.keys()


def _whole(chunks: dict[ChunkId, bytes | None]) -> dict[ChunkId, bytes]:
    return {chunk_id: data for chunk_id, data in chunks.items() if data is not None}


def _disk(contents: list[bytes]) -> SimDisk:
    disk = SimDisk(Image(), record=False)
    disk.mkdir("packs")
    for number, each in enumerate(contents):
        file = disk.open(_path(number), create=True)
        if each:
            file.pwrite(each, 0)
        file.close()
    return disk


def _path(number: int) -> str:
    return f"packs/{number:08x}.pack"


def _check_salvage(disk: SimDisk, number: int, size: int) -> None:
    file = disk.open(_path(number))
    with contextlib.suppress(UnknownFormat):
        trailer = packfile.read_trailer(file, number, UUID)
        if trailer is not None:
            packfile.read_rows(file, trailer)
    for verify in (False, True):
        found = packfile.salvage(file, number, verify=verify)
        end = packfile.HEADER_LENGTH
        for _, place in packfile.decode_rows(bytes(found.rows), number):
            assert place.offset >= end
            assert place.offset % layout.ENTRY_ALIGNMENT == 0
            end = place.offset + packfile.entry_length(place.stored_length)
            assert place.offset + packfile.ENTRY_HEADER_LENGTH <= size
            if verify:
                assert end <= size + layout.ENTRY_ALIGNMENT
        assert found.end == end
    file.close()


def _read_all(disk: SimDisk) -> dict[ChunkId, bytes | None]:
    """Every chunk that the packs say they have; None for what cannot be read."""
    packs = Packs(disk, UUID, pack_bytes=PACK_BYTES)
    index = ChunkIndex(MemoryKeyValue(), UUID)
    for number in packs.numbers():
        with contextlib.suppress(CorruptData, UnknownFormat):
            index.put(dict(packs.places(number)))
    store = ChunkStore(packs, index)
    found: dict[ChunkId, bytes | None] = {}
    for chunk_id, _ in index.group(b""):
        found[chunk_id] = None
        if chunk_id == layout.ZERO_ID:
            continue
        with contextlib.suppress(CorruptData, UnknownFormat):
            store.locate(chunk_id)
        with contextlib.suppress(CorruptData, UnknownFormat):
            data = store.get(chunk_id, verify=True)
            assert chunk_id_of(data) == chunk_id
            found[chunk_id] = data
    packs.close()
    return found


# -- sealing what was changed


def reseal(data: bytes, number: int, *, name: bool) -> bytes:
    """`data` with every checksum made right that belongs to a magic in its place."""
    out = bytearray(data)
    if data.startswith(layout.PACK_HEADER_MAGIC):
        _seal(out, 0)
    at = packfile.HEADER_LENGTH
    while at + packfile.ENTRY_HEADER_LENGTH <= len(out):
        if out[at : at + 4] != layout.ENTRY_MAGIC:
            at += layout.ENTRY_ALIGNMENT
            continue
        at += _seal_entry(out, at, number, name=name)
    tail = len(out) - packfile.TRAILER_LENGTH
    if tail >= 0 and out[tail : tail + 8] == layout.TRAILER_MAGIC:
        _seal_trailer(out, tail)
    return bytes(out)


def _seal(out: bytearray, at: int) -> None:
    out[at + 60 : at + 64] = crc32c(bytes(out[at : at + 60])).to_bytes(4, "little")


def _seal_entry(out: bytearray, at: int, number: int, *, name: bool) -> int:
    """Seal the entry there; its length."""
    stored_length = int.from_bytes(out[at + 20 : at + 24], "little")
    out[at + 8 : at + 12] = number.to_bytes(4, "little")
    out[at + 12 : at + 16] = at.to_bytes(4, "little")
    table = at + packfile.ENTRY_HEADER_LENGTH
    length = layout.ENTRY_ALIGNMENT
    if stored_length <= len(out):
        start = table + packfile.table_length(stored_length)
        stored = bytes(out[start : start + stored_length])
        if len(stored) == stored_length:
            out[table:start] = crc32c_pages(stored)
            length = packfile.entry_length(stored_length)
            if name and out[at + 5] == 0:
                out[at + 24 : at + 56] = blake3(stored).digest()
        out[at + 56 : at + 60] = crc32c(bytes(out[table:start])).to_bytes(4, "little")
    _seal(out, at)
    return length


def _seal_trailer(out: bytearray, tail: int) -> None:
    offset = int.from_bytes(out[tail + 36 : tail + 40], "little")
    if offset <= tail:
        out[tail + 40 : tail + 44] = crc32c(bytes(out[offset:tail])).to_bytes(4, "little")
    _seal(out, tail)
