"""Slow, obvious Python twins of the C core: the tests' oracle, never imported by the daemon.

Kernels: `crc32c`, `crc32c_pages`, `is_zero`, `decode`. Journal codec: `Record`, `SegmentHeader` and
`replay`, written from the tables in docs/disk-format.md. Hot map: `HotMap`, a dict of sectors.
Place table: `warm`.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import zstandard

_CASTAGNOLI = 0x82F63B78  # reflected polynomial of CRC-32C


def crc32c(data: bytes, crc: int = 0) -> int:
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (_CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def crc32c_pages(data: bytes) -> bytes:
    pages = [data[at : at + 4096] for at in range(0, len(data), 4096)]
    return b"".join(crc32c(page).to_bytes(4, "little") for page in pages)


def is_zero(data: bytes | bytearray) -> bool:
    return not any(data)


# -- codecs


def decode(codec: int, stored: bytes, raw_length: int) -> bytes:
    """The chunk's bytes. ValueError when that is not what `stored` holds, or for no codec."""
    match codec:
        case 0:
            raw = stored
        case 1:
            raw = _decode_lz4(stored)
        case 2:
            raw = _decode_zstd(stored)
        case 3:
            raw = _decode_deflate(stored)
        case _:
            raise ValueError(f"codec {codec}")
    if len(raw) != raw_length:
        raise ValueError(f"{len(raw)} bytes instead of {raw_length}")
    return raw


class ZeroDistance(ValueError):
    """A match of an LZ4 block that begins where it is to be copied to, which the format forbids.
    liblz4 does not look: it gives back whatever its output buffer held there. The bytes are hashed
    before anybody believes them, so that costs a damaged chunk nothing but the reason why."""


def _decode_lz4(stored: bytes) -> bytes:
    """An LZ4 block: sequences of a token (two nibbles: lengths), literals, and a match."""
    out = bytearray()
    at = 0

    def byte() -> int:
        nonlocal at
        if at >= len(stored):
            raise ValueError("the block ends in the middle of a sequence")
        at += 1
        return stored[at - 1]

    def length(nibble: int) -> int:
        total = more = nibble
        if nibble == 15:
            more = 255
        while more == 255:
            more = byte()
            total += more
        return total

    while True:
        token = byte()
        literals = length(token >> 4)
        if at + literals > len(stored):
            raise ValueError("literals beyond the end")
        out += stored[at : at + literals]
        at += literals
        if at == len(stored):
            return bytes(out)  # the last sequence has no match
        distance = byte() | byte() << 8
        if not distance:
            raise ZeroDistance()
        if distance > len(out):
            raise ValueError("a match before the beginning")
        for _ in range(length(token & 15) + 4):
            out.append(out[-distance])


def _decode_deflate(stored: bytes) -> bytes:
    inflate = zlib.decompressobj(wbits=-15)
    try:
        raw = inflate.decompress(stored)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not inflate.eof:
        raise ValueError("the stream does not end")
    return raw


def _decode_zstd(stored: bytes) -> bytes:
    """By the bindings of another build of the library: a decoder of one's own would be long."""
    try:
        return zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


# -- journal

VERSION = 1
WRITE, UNMAP, ZERO, MARK, HEAD, POINT, REFER, NOTE = range(1, 9)
NOTE_HEADER = 24
NOTE_MAX_PAYLOAD = 4096
REFER_PAYLOAD = 48
RECORD_BYTES = 64
SEGMENT_HEADER_BYTES = 4096
MAX_PAYLOAD = 1 << 20
SECTOR = 512

_RECORD = struct.Struct("<4sBBHIIQQQQIIII")
_SEGMENT = struct.Struct("<8sII16sQQIIQQ52xI")


class UnknownRecord(Exception):
    """The checksum is right, but the version, op or size is not one of this format."""


@dataclass(frozen=True, slots=True)
class Record:
    op: int
    lsn: int
    seq: int = 0
    offset: int = 0
    length: int = 0
    volume: int = 0
    payload_crc: int = 0
    chain: int = 0
    node_epoch: int = 0
    volume_epoch: int = 0
    flags: int = 0
    header_crc: int = 0
    version: int = VERSION

    @property
    def payload_bytes(self) -> int:
        if self.op == REFER:
            return REFER_PAYLOAD
        return self.length if self.op in (WRITE, HEAD, POINT, NOTE) else 0

    @property
    def footprint(self) -> int:
        """Bytes in the segment, up to where the next record may begin."""
        return -(-(RECORD_BYTES + self.payload_bytes) // 64) * 64

    def encode(self) -> bytes:
        """The header; its checksum is computed, whatever `header_crc` says."""
        header = _RECORD.pack(
            *(b"bdJR", self.version, self.op, self.flags, self.node_epoch, self.volume_epoch),
            *(self.lsn, self.seq, self.offset, self.length, self.volume),
            *(self.payload_crc, self.chain, 0),
        )
        return header[:60] + crc32c(header[:60]).to_bytes(4, "little")


def decode_record(data: bytes) -> Record | None:
    """None for bytes that are no record. UnknownRecord."""
    magic, version, op, flags, node_epoch, volume_epoch, *rest = _RECORD.unpack(data[:RECORD_BYTES])
    lsn, seq, offset, length, volume, payload_crc, chain, header_crc = rest
    if magic != b"bdJR" or crc32c(data[:60]) != header_crc:
        return None
    record = Record(
        *(op, lsn, seq, offset, length, volume, payload_crc, chain, node_epoch, volume_epoch),
        *(flags, header_crc, version),
    )
    if version != VERSION or op not in range(WRITE, NOTE + 1):
        raise UnknownRecord(record)
    if op in (WRITE, HEAD, POINT) and not 0 < length <= MAX_PAYLOAD:
        raise UnknownRecord(record)
    if op == NOTE and (offset != 0 or not NOTE_HEADER <= length <= NOTE_MAX_PAYLOAD):
        raise UnknownRecord(record)
    if op in (WRITE, UNMAP, ZERO, REFER) and not 0 < length < (1 << 64) - offset:
        raise UnknownRecord(record)
    return record


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    store_uuid: bytes
    slot: int
    node_epoch: int
    sequence: int
    first_lsn: int
    synced_lsn: int
    chain: int
    segment_bytes: int

    def encode(self) -> bytes:
        header = _SEGMENT.pack(
            *(b"blockdJS", VERSION, self.slot, self.store_uuid, self.sequence, self.first_lsn),
            *(self.node_epoch, self.chain, self.segment_bytes, self.synced_lsn, 0),
        )
        return header[:124] + crc32c(header[:124]).to_bytes(4, "little")


def decode_segment_header(data: bytes) -> SegmentHeader | None:
    """None for bytes that are no header. ValueError for another version."""
    if len(data) < _SEGMENT.size:
        return None
    magic, version, slot, uuid, sequence, first_lsn, *rest = _SEGMENT.unpack(data[: _SEGMENT.size])
    node_epoch, chain, segment_bytes, synced_lsn, header_crc = rest
    if magic != b"blockdJS" or crc32c(data[:124]) != header_crc:
        return None
    if version != VERSION:
        raise ValueError(f"segment header of version {version}")
    return SegmentHeader(
        uuid, slot, node_epoch, sequence, first_lsn, synced_lsn, chain, segment_bytes
    )


def _record_at(segment: bytes, position: int, after: Record) -> tuple[Record, bytes] | None:
    """The record there, with its payload, if it is the one that follows `after`."""
    if position + RECORD_BYTES > len(segment):
        return None
    try:
        record = decode_record(segment[position : position + RECORD_BYTES])
    except UnknownRecord as unknown:
        record = unknown.args[0]
        if (record.lsn, record.chain) == (after.lsn + 1, after.header_crc):
            raise
        return None
    if record is None or (record.lsn, record.chain) != (after.lsn + 1, after.header_crc):
        return None
    if record.node_epoch < after.node_epoch:
        return None
    start = position + RECORD_BYTES
    payload = segment[start : start + record.payload_bytes]
    if len(payload) < record.payload_bytes:
        return None
    if payload and crc32c(payload) != record.payload_crc:
        return None
    return record, payload


def scan(segment: bytes, after: Record) -> list[tuple[Record, bytes]]:
    """The records of one segment that follow `after`, with their payloads."""
    found: list[tuple[Record, bytes]] = []
    position = SEGMENT_HEADER_BYTES
    while True:
        hit = _record_at(segment, position, after)
        if hit is None and position % SECTOR:
            position = -(-position // SECTOR) * SECTOR
            hit = _record_at(segment, position, after)
        if hit is None:
            return found
        found.append(hit)
        after = hit[0]
        position += after.footprint


def replay(segments: Sequence[bytes]) -> list[tuple[Record, bytes]]:
    """All records of a log that begins with lsn 1, with their payloads, from whole segments in any
    order. UnknownRecord when the next one is there but of another version."""
    headers = [(decode_segment_header(segment), segment) for segment in segments]
    begun = sorted(
        ((header, segment) for header, segment in headers if header is not None),
        key=lambda pair: pair[0].sequence,
    )
    found: list[tuple[Record, bytes]] = []
    last = Record(MARK, 0)
    for header, segment in begun:
        follows = (header.first_lsn, header.chain) == (last.lsn + 1, last.header_crc)
        if follows and header.node_epoch >= last.node_epoch:
            found += scan(segment, last)
            last = found[-1][0] if found else last
    return found


def relabel(record: Record, **fields: int) -> bytes:
    """The record's header with other fields, and a checksum that fits them."""
    return replace(record, **fields).encode()


# -- hot map

Sectors = dict[int, bytes | None]
"""Sector number -> its bytes; None: it reads as zeros."""


class HotMap:
    """The active and frozen maps of a volume, sector by sector."""

    def __init__(self) -> None:
        self.active: Sectors = {}
        self.frozen: Sectors | None = None

    def write(self, offset: int, data: bytes) -> None:
        for at in range(0, len(data), SECTOR):
            self.active[(offset + at) // SECTOR] = data[at : at + SECTOR]

    def unmap(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, SECTOR):
            self.active[at // SECTOR] = None

    def freeze(self) -> None:
        self.frozen, self.active = self.active, {}

    def commit(self) -> None:
        self.frozen = None

    def kinds(self, offset: int, length: int) -> list[int]:
        """For each sector: 0 data, 1 zeros, -1 not hot."""
        layers = {**(self.frozen or {}), **self.active}
        return [
            -1 if sector not in layers else int(layers[sector] is None)
            for sector in range(offset // SECTOR, (offset + length) // SECTOR)
        ]

    def read(self, offset: int, below: bytes) -> bytes:
        """`below` with what is hot over it."""
        return _overlay({**(self.frozen or {}), **self.active}, offset, below)

    def overlay_frozen(self, offset: int, below: bytes) -> bytes:
        return _overlay(self.frozen or {}, offset, below)

    def frozen_covers(self, offset: int, length: int) -> bool:
        sectors = range(offset // SECTOR, (offset + length) // SECTOR)
        return self.frozen is not None and all(sector in self.frozen for sector in sectors)

    def frozen_chunks(self, chunk_size: int) -> dict[int, bool]:
        """Chunks that the frozen map touches -> whether it zeroes all of them."""
        per_chunk = chunk_size // SECTOR
        frozen = self.frozen or {}
        return {
            chunk: all(
                frozen.get(sector, b"") is None
                for sector in range(chunk * per_chunk, (chunk + 1) * per_chunk)
            )
            for chunk in sorted({sector // per_chunk for sector in frozen})
        }


def _overlay(sectors: Sectors, offset: int, below: bytes) -> bytes:
    out = bytearray(below)
    for at in range(0, len(below), SECTOR):
        sector = (offset + at) // SECTOR
        if sector in sectors:
            out[at : at + SECTOR] = sectors[sector] or bytes(SECTOR)
    return bytes(out)


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """Where a chunk is, as the place table wants it; `pack` None: a hole."""

    index: int
    pack: int | None = None
    data_offset: int = 0
    codec: int = 0
    stored_length: int = 0
    table: bytes = b""


def warm(
    chunks: Iterable[tuple[int, bytes, bytes]], packs: Mapping[int, bytes], chunk_size: int
) -> list[StoredPlace | None]:
    """The places of chunks (index, id, row of the chunk index), up to the first whose row is not as
    it should be; None for one whose entry is not what the row says, which a read finds out."""
    found: list[StoredPlace | None] = []
    for index, chunk_id, row in chunks:
        if chunk_id == bytes(32):
            found.append(StoredPlace(index))
            continue
        pack, offset, stored, raw, _, codec, kind = struct.unpack("<IIIIIBBxx", row)
        sound = kind in (1, 4) and codec < 4 and raw == chunk_size and 0 < stored <= raw
        if pack not in packs or index >> 62 or not sound or (codec == 0) != (stored == raw):
            break
        header = packs[pack][offset : offset + 64]
        length = -(-stored // 4096) * 4
        table = packs[pack][offset + 64 : offset + 64 + length]
        fields = (b"BENT", kind, codec, 0, pack, offset, raw, stored, chunk_id, crc32c(table))
        expected = struct.pack("<4sBBHIIII32sI", *fields)
        if len(table) < length or header != expected + crc32c(expected).to_bytes(4, "little"):
            found.append(None)
            continue
        found.append(StoredPlace(index, pack, offset + 64 + length, codec, stored, table))
    return found
