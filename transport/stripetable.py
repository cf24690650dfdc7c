"""A pack that is a stripe, read through it: which chunks it has, and whether each is whole."""

import logging
from typing import Final

from blake3 import blake3

from transport.packrow import PackRow
from transport.stripes import StripeReader
from volume import codecs, packfile
from volume.errors import CorruptChunk, CorruptPack
from volume.layout import KIND_DATA, PACK_HEADER
from volume.stripedpack import Adopted, StripedPack

log = logging.getLogger(__name__)

AHEAD: Final = 1 << 20
"""Bytes that are read at once, of a pack that is read forwards."""


class PackOfStripe:
    """A striped pack as a file that is read forwards, in pieces."""

    def __init__(self, reader: StripeReader, size: int) -> None:
        self._reader = reader
        self._size = size
        self._at = 0
        self._data = b""

    def size(self) -> int:
        return self._size

    def pread(self, length: int, offset: int) -> bytes:
        if not self._at <= offset <= offset + length <= self._at + len(self._data):
            self._data = self._reader.pread(max(AHEAD, length), offset)
            self._at = offset
        at = offset - self._at
        return self._data[at : at + length]


def table_of(row: PackRow, pack: PackOfStripe) -> tuple[StripedPack, list[Adopted]]:
    """Which store wrote the pack, and the data chunks that are in it. CorruptData."""
    path = f"stripe {row.pack_id.hex()}"
    header = pack.pread(packfile.HEADER_LENGTH, 0)
    if len(header) != packfile.HEADER_LENGTH:
        raise CorruptPack(f"{path}: is {len(header)} bytes long")
    number, uuid = PACK_HEADER.unpack(header)[2:4]
    packfile.check_header(header, path, number, uuid)
    trailer = packfile.read_trailer(pack, number, uuid)
    rows = None if trailer is None else packfile.read_rows(pack, trailer)
    if rows is None:
        raise CorruptPack(f"{path}: has no sound footer")
    like = StripedPack(
        *(0, row.pack_id, row.digest, row.data, len(row.shards) - row.data),
        *(number, uuid, 0, 0, 0),
    )
    entries = packfile.decode_rows(rows, number)
    return like, [Adopted(*each) for each in entries if each[1].kind == KIND_DATA]


def bytes_of(entries: list[Adopted]) -> int:
    return sum(packfile.entry_length(each.place.stored_length) for each in entries)


def is_whole(pack: PackOfStripe, like: StripedPack, entry: Adopted) -> bool:
    """Read a chunk through the stripe: whether it is what its id says. StripeLost."""
    try:
        _verify(pack, like, entry)
    except CorruptChunk as error:
        log.error("stripe: a chunk was damaged when it was made error=%s", error)
        return False
    return True


def _verify(pack: PackOfStripe, like: StripedPack, entry: Adopted) -> None:
    chunk_id, place = entry
    path = f"stripe {like.pack_id.hex()}"
    length = packfile.entry_length(place.stored_length)
    stored = packfile.stored_bytes(pack.pread(length, place.offset), path, place, chunk_id)
    what = packfile.describe(path, place, chunk_id)
    data = codecs.decompress(place.codec, stored, place.raw_length, what)
    if blake3(data).digest() != chunk_id:
        raise CorruptChunk(f"{what}: its bytes hash to something else")
