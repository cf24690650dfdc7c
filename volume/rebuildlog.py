"""What is left of the journal says, for who has lost `meta/` and with it where the log goes on.

Every segment is read by itself, from its header on, up to the first record that does not fit. Then
the segments are put together: one follows another when its header names the lsn and chain at which
the other ended. What ends at the highest lsn is the log; the other runs are old ones, of segments
that wait to be used again. Unless its first segment is the very next one after a run that ended
before it: then a crash or damage has cut the log there, and it is that run. (Opening the store
finds the same place, and decides whether flushed records are missing.)

Nothing is changed. Records are looked at one by one in Python, some 200,000 a second.
"""

import logging
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from native import crc32c, decode_segment_header
from volume import headrecord
from volume.commits import Commit
from volume.disk import SECTOR_SIZE, Disk
from volume.errors import CorruptJournal, UnknownFormat
from volume.layout import CHUNK_ID_LENGTH, ChunkId
from volume.points import PointRecord
from volume.points import decode as decode_point
from volume.recovery import SEGMENT_HEADER_BYTES
from volume.segments import FOLDER, parse_segment_name, segment_path

log = logging.getLogger(__name__)

_RECORD = struct.Struct("<4s B B H I I Q Q Q Q I I I I")
_RECORD_BYTES = 64
_ALIGNMENT = 64
_MAGIC = b"bdJR"
_VERSION = 1
_MAX_PAYLOAD = 1 << 20
_WRITE, _UNMAP, _ZERO, _MARK, _HEAD, _POINT, _REFER = range(1, 8)
_RANGES = (_WRITE, _UNMAP, _ZERO, _REFER)
_REFER_BYTES = 48
_REFER_HEIGHT_AT = 41
_HEADER_BYTES = 512


@dataclass(frozen=True, slots=True)
class LoggedHead:
    """A HEAD record."""

    lsn: int
    number: int
    epoch: int
    seq: int
    commit_id: ChunkId
    commit: Commit


@dataclass(slots=True)
class SeqRun:
    """Records of a volume that follow each other in one epoch, first and last seq."""

    epoch: int
    first: int
    last: int
    end: int
    """Bytes: the highest offset behind a record."""


@dataclass(slots=True)
class LoggedSegment:
    """What one segment says."""

    slot: int
    sequence: int
    node_epoch: int
    first_lsn: int
    chain: int
    """Of the record before its first."""
    segment_bytes: int
    end_lsn: int
    """Of the record that would be its next."""
    end_chain: int
    end_epoch: int
    heads: list[LoggedHead] = field(default_factory=list)
    points: list[PointRecord] = field(default_factory=list)
    runs: dict[int, list[SeqRun]] = field(default_factory=dict)
    """By volume number."""
    trees: set[tuple[int, ChunkId, int]] = field(default_factory=set)
    """(volume number, root, height) that REFER records name."""

    @property
    def path(self) -> str:
        return segment_path(self.slot)


@dataclass(frozen=True, slots=True)
class ScannedLog:
    """The log, oldest segment first, and what the others tell beside it."""

    segments: list[LoggedSegment]
    node_epoch: int
    """The highest that any segment has."""
    store_uuids: dict[bytes, str]
    """uuid -> path of a segment that names it."""
    files: int


def scan(disk: Disk, progress: Callable[[str, int, int], None]) -> ScannedLog:
    """Read all segments. UnknownFormat, CorruptJournal (a record makes no sense), OSError."""
    try:
        names = disk.list(FOLDER)
    except FileNotFoundError:
        names = []
    slots = [slot for name in names if (slot := parse_segment_name(name)) is not None]
    found: list[LoggedSegment] = []
    uuids: dict[bytes, str] = {}
    for done, slot in enumerate(slots, start=1):
        file = disk.open(segment_path(slot), read_only=True)
        try:
            segment = _begun(file.pread(_HEADER_BYTES, 0), slot, uuids)
            if segment is not None:
                _read(segment, file.pread(segment.segment_bytes, 0))
                found.append(segment)
        finally:
            file.close()
        progress("segments", done, len(slots))
    found.sort(key=lambda segment: segment.sequence)
    highest = max((segment.end_epoch for segment in found), default=0)
    return ScannedLog(_chained(found), highest, uuids, len(slots))


def _begun(header: bytes, slot: int, uuids: dict[bytes, str]) -> LoggedSegment | None:
    """The segment of that header; None for one that was never begun."""
    path = segment_path(slot)
    try:
        fields = decode_segment_header(header)
    except OSError as error:
        raise UnknownFormat(path, f"unknown segment header ({error})") from None
    if fields is None:
        return None
    uuid, own_slot, node_epoch, sequence, first_lsn, _, chain, size = fields
    uuids.setdefault(uuid, path)
    if own_slot != slot:
        raise CorruptJournal(f"{path}: is the segment of slot {own_slot:08x}; move the file away")
    return LoggedSegment(
        *(slot, sequence, node_epoch, first_lsn, chain, size),
        *(first_lsn, chain, node_epoch),
    )


def _chained(found: list[LoggedSegment]) -> list[LoggedSegment]:
    """Those of `found`, by sequence, that are the log."""
    runs: list[list[LoggedSegment]] = []
    for segment in found:
        for run in reversed(runs):
            last = run[-1]
            if (last.end_lsn, last.end_chain) == (segment.first_lsn, segment.chain) and (
                segment.node_epoch >= last.end_epoch
            ):
                run.append(segment)
                break
        else:
            runs.append([segment])
    if not runs:
        return []
    chosen = max(runs, key=lambda run: (run[-1].end_lsn, run[-1].sequence))
    ended = {run[-1].sequence: run for run in runs}
    while (before := ended.get(chosen[0].sequence - 1)) is not None:
        log.warning(
            "the log breaks off in %s, before record %d; what is behind it is not of it",
            *(before[-1].path, before[-1].end_lsn),
        )
        chosen = before
    return chosen


def _read(segment: LoggedSegment, data: bytes) -> None:
    """Go through the records, up to the first that does not fit."""
    position = SEGMENT_HEADER_BYTES
    while True:
        taken = _next(segment, data, position)
        if not taken and position % SECTOR_SIZE:  # after a sync the log goes on at the next sector
            position += -position % SECTOR_SIZE
            taken = _next(segment, data, position)
        if not taken:
            return
        position += taken


def _next(segment: LoggedSegment, data: bytes, position: int) -> int:
    """Bytes of the record at `position`, which was noted; 0 when it is not the next one."""
    header = data[position : position + _RECORD_BYTES]
    if len(header) < _RECORD_BYTES or header[:4] != _MAGIC:
        return 0
    _, version, op, _, node_epoch, epoch, lsn, seq, offset, length, number, crc, chain, own = (
        _RECORD.unpack(header)
    )
    if (lsn, chain) != (segment.end_lsn, segment.end_chain) or node_epoch < segment.end_epoch:
        return 0
    if crc32c(header[:60]) != own:
        return 0
    if version != _VERSION or not _WRITE <= op <= _REFER:
        raise UnknownFormat(segment.path, f"record {lsn} has version {version}, op {op}")
    size = _REFER_BYTES if op == _REFER else length if op in (_WRITE, _HEAD, _POINT) else 0
    if size > _MAX_PAYLOAD:
        raise UnknownFormat(segment.path, f"record {lsn} has {size} bytes")
    payload = data[position + _RECORD_BYTES : position + _RECORD_BYTES + size]
    if len(payload) < size or (size and crc32c(payload) != crc):
        return 0
    segment.end_lsn, segment.end_chain, segment.end_epoch = lsn + 1, own, node_epoch
    if op in _RANGES:
        _note_range(segment.runs.setdefault(number, []), epoch, seq, offset + length)
    if op == _REFER:
        tree = (number, payload[:CHUNK_ID_LENGTH], payload[_REFER_HEIGHT_AT])
        segment.trees.add(tree)
    elif op == _HEAD:
        segment.heads.append(LoggedHead(lsn, number, epoch, seq, *headrecord.parsed(payload, lsn)))
    elif op == _POINT:
        segment.points.append(decode_point(lsn, payload))
    return -(-(_RECORD_BYTES + size) // _ALIGNMENT) * _ALIGNMENT


def _note_range(runs: list[SeqRun], epoch: int, seq: int, end: int) -> None:
    if runs and (runs[-1].epoch, runs[-1].last + 1) == (epoch, seq):
        runs[-1].last = seq
        runs[-1].end = max(runs[-1].end, end)
    else:
        runs.append(SeqRun(epoch, seq, seq, end))


def runs_of(segments: list[LoggedSegment], number: int) -> Iterator[SeqRun]:
    """All runs of a volume, joined over segments."""
    joined: list[SeqRun] = []
    for segment in segments:
        for run in segment.runs.get(number, ()):
            if joined and (joined[-1].epoch, joined[-1].last + 1) == (run.epoch, run.first):
                last = joined[-1]
                joined[-1] = SeqRun(run.epoch, last.first, run.last, max(last.end, run.end))
            else:
                joined.append(run)
    yield from joined
