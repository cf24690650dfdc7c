"""Reading the log again, from a round's cut on: how past versions get their newest bytes.

The replay is private: a `native.Journal` of its own, which is never appended to, over the same
segment files; so hot maps that it fills stay readable as long as it lives. Segments are the pool's:
pin the log before reading it, and for as long as the maps are read.

The log on disk is a single chain, also where crashes have cut pieces off: a segment that does not
go on where the one before ended was begun by a writer whose last records were lost, and is not of
the log. What was appended before the replay began is found whole, since the end to read up to is
at or before that.
"""

import errno
from dataclasses import dataclass
from typing import NamedTuple

from typing_extensions import Buffer

from native import Journal, VolumeCore
from volume.errors import CorruptJournal, UnknownFormat
from volume.historyrows import RoundRow
from volume.recovery import SEGMENT_HEADER_BYTES
from volume.segments import LogSegment, SegmentPool, segment_path


class LogRecord(NamedTuple):
    """One record of a volume. Times are ns since 1970, to the millisecond; sizes are bytes."""

    lsn: int
    seq: int
    time_ns: int
    op: int
    offset: int
    length: int
    epoch: int


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where to stop reading; 0 for no such end. See `native.Journal.replay`."""

    lsn: int
    """Always given: what is appended meanwhile is not looked at."""
    time_ns: int = 0
    volume: int = 0
    seq: int = 0


@dataclass(frozen=True, slots=True)
class LogRead:
    """What was read."""

    journal: Journal
    """Keeps the segments open for the hot maps that were filled."""
    lsn: int
    """Of the last record read."""
    last_ns: int
    """Wall clock of the last MARK read, or of the start."""
    rows: list[LogRecord]


class LogReader:
    """Replays parts of the log. Thread-safe; errors: CorruptJournal, UnknownFormat, OSError."""

    def __init__(self, pool: SegmentPool, store_uuid: bytes, segment_bytes: int) -> None:
        self._pool = pool
        self._uuid = store_uuid
        self._segment_bytes = segment_bytes

    def new_journal(self) -> Journal:
        """One to make cores for, before `read` fills them."""
        return Journal(self._uuid, self._segment_bytes, 0)

    def cursor(self, start: RoundRow, journal: Journal) -> "LogCursor":
        """At `start`; the cores that it is to fill belong to `journal`."""
        return LogCursor(self._pool.log_from(start.sequence), start, journal)

    def read(
        self,
        start: RoundRow,
        end: LogEnd,
        journal: Journal,
        cores: dict[int, VolumeCore],
        *,
        rows_volume: int = 0,
        row_limit: int = 0,
    ) -> LogRead:
        """Apply the records after `start`, up to `end`, to `cores` (volume number -> core).

        The cores belong to `journal`; rows: the newest `row_limit` records of `rows_volume`."""
        cursor = self.cursor(start, journal)
        return cursor.advance(end, cores, rows_volume=rows_volume, row_limit=row_limit)


class LogCursor:
    """A place in the log that moves forward. Errors as `LogReader`; after one it is of no use."""

    def __init__(self, segments: list[LogSegment], start: RoundRow, journal: Journal) -> None:
        self._segments = segments
        self._start = start
        self._journal = journal
        self._next = 0  # of `_segments`, to be looked at when the one that is open has ended
        self._open: LogSegment | None = None
        self._state = (start.lsn, start.chain, 0, start.position)
        self._last_ns = start.time_ns
        self._at = f"the segment with sequence {start.sequence}"

    def advance(
        self,
        end: LogEnd,
        cores: dict[int, VolumeCore],
        *,
        rows_volume: int = 0,
        row_limit: int = 0,
    ) -> LogRead:
        """Go on up to `end`, applying the records to `cores`; see `LogReader.read`."""
        rows: list[LogRecord] = []
        while self._state[0] <= end.lsn and (self._open is not None or self._open_next()):
            assert self._open is not None
            try:
                self._state, _, _, seen_ns, ended, found, *_ = self._journal.replay(
                    self._open.slot,
                    self._state,
                    cores,
                    end_lsn=end.lsn,
                    end_ns=end.time_ns,
                    end_volume=end.volume,
                    end_seq=end.seq,
                    rows_volume=rows_volume,
                    row_limit=row_limit,
                )
            except OSError as error:
                at = segment_path(self._open.slot)
                if error.errno == errno.EPROTO:
                    raise UnknownFormat(at, "a record is of an unknown version or kind") from error
                if error.errno == errno.EIO:
                    raise self._damaged(f"{at} cannot be read ({error.strerror})") from error
                raise
            for row in found:
                record = LogRecord(*row)
                # One before the first MARK of its segment has the time of the last before that.
                rows.append(record if record.time_ns else record._replace(time_ns=self._last_ns))
            if row_limit:
                del rows[:-row_limit]
            self._last_ns = seen_ns or self._last_ns
            reached = end.seq and end.volume in cores and _seq(cores[end.volume]) >= end.seq
            if ended or reached:  # what is behind the last record wanted may be damaged
                return self._read(rows)
            if self._state[0] <= end.lsn:
                self._at = f"{segment_path(self._open.slot)} from offset {self._state[3]} on"
                self._open = None
        if self._state[0] <= end.lsn:
            raise self._damaged(f"{self._at}, or the segment after it, is missing or damaged")
        return self._read(rows)

    def copy(
        self, end_lsn: int, wanted: tuple[int, int, int, int], buffer: Buffer
    ) -> tuple[int, int]:
        """Copy records into `buffer`; see `native.Journal.copy_records`. How many bytes, and the
        seq of the last one, or of the one before the first that was wanted."""
        number, epoch, seq, last = wanted
        length = 0
        view = memoryview(buffer)
        while self._state[0] <= end_lsn and (self._open is not None or self._open_next()):
            assert self._open is not None
            try:
                self._state, ended, copied, seq = self._journal.copy_records(
                    *(self._open.slot, self._state, end_lsn),
                    *((number, epoch, seq, last), view[length:]),
                )
            except OSError as error:
                if error.errno == errno.EIO:
                    at = segment_path(self._open.slot)
                    raise self._damaged(f"{at} cannot be read ({error.strerror})") from error
                raise
            length += copied
            if ended:
                break
            self._open = None
        return length, seq

    def _damaged(self, what: str) -> CorruptJournal:
        return CorruptJournal(
            f"the journal: {what}, so record {self._state[0]} of the log is lost, and with it the "
            "versions up to the next destage round; the others are not affected"
        )

    def _read(self, rows: list[LogRecord]) -> LogRead:
        return LogRead(self._journal, self._state[0] - 1, self._last_ns, rows)

    def _open_next(self) -> bool:
        """Go on in the next segment of the log; whether there is one."""
        lsn, chain, node_epoch, position = self._state
        start = self._start
        while self._next < len(self._segments):
            segment = self._segments[self._next]
            first = self._next == 0 and start.sequence != 0
            self._next += 1
            if first:
                if segment.sequence != start.sequence:
                    return False  # the segment that the log goes on in is not there
            elif (segment.first_lsn, segment.chain) != (lsn, chain):
                continue
            else:
                position = SEGMENT_HEADER_BYTES
            self._state = (lsn, chain, node_epoch, position)
            self._journal.adopt(segment.slot, segment.file.native(), segment.sequence)
            self._open = segment
            return True
        return False


def _seq(core: VolumeCore) -> int:
    return core.state()[0]
