"""What is left of the journal says, for who has lost `meta/` and with it where the log goes on.

Every segment is read by itself, from its header on, up to the first record that does not fit. Then
the segments are put together: one follows another when its header names the lsn and chain at which
the other ended. What ends at the highest lsn is the log; the other runs are old ones, of segments
that wait to be used again. Unless its first segment is the very next one after a run that ended
before it: then a crash or damage has cut the log there, and it is that run. (Opening the store
finds the same place, and decides whether flushed records are missing.)

Nothing is changed.
"""

import errno
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from native import decode_segment_header, scan_segment
from volume import headrecord
from volume.commits import Commit
from volume.disk import Disk, File
from volume.errors import CorruptJournal, UnknownFormat
from volume.layout import ChunkId
from volume.points import PointRecord
from volume.points import decode as decode_point
from volume.recovery import SEGMENT_HEADER_BYTES
from volume.segments import FOLDER, parse_segment_name, segment_path

log = logging.getLogger(__name__)

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


@dataclass(frozen=True, slots=True)
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
                _read(segment, file)
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


def _read(segment: LoggedSegment, file: File) -> None:
    """Go through the records, up to the first that does not fit."""
    start = (segment.first_lsn, segment.chain, segment.node_epoch, SEGMENT_HEADER_BYTES)
    try:
        found = scan_segment(file.native(), segment.segment_bytes, start)
    except OSError as error:
        if error.errno != errno.EPROTO:
            raise
        why = "the next record is of an unknown version or kind"
        raise UnknownFormat(segment.path, why) from error
    (segment.end_lsn, segment.end_chain, segment.end_epoch, _), runs, heads, points, trees = found
    for number, epoch, first, last, end in runs:
        _join(segment.runs.setdefault(number, []), SeqRun(epoch, first, last, end))
    segment.heads = [
        LoggedHead(lsn, number, epoch, seq, *headrecord.parsed(payload, lsn))
        for lsn, number, epoch, seq, payload in heads
    ]
    segment.points = [decode_point(lsn, payload) for lsn, payload in points]
    segment.trees = set(trees)


def _join(runs: list[SeqRun], run: SeqRun) -> None:
    """Put `run` behind those of the same volume."""
    if runs and (runs[-1].epoch, runs[-1].last + 1) == (run.epoch, run.first):
        last = runs[-1]
        runs[-1] = SeqRun(run.epoch, last.first, run.last, max(last.end, run.end))
    else:
        runs.append(run)


def runs_of(segments: list[LoggedSegment], number: int) -> Iterator[SeqRun]:
    """All runs of a volume, joined over segments."""
    joined: list[SeqRun] = []
    for segment in segments:
        for run in segment.runs.get(number, ()):
            _join(joined, run)
    yield from joined
