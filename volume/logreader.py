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

from native import Journal, VolumeCore
from volume.errors import CorruptJournal, UnknownFormat
from volume.history import RoundRow
from volume.recovery import SEGMENT_HEADER_BYTES
from volume.segments import SegmentPool, segment_path


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
        lsn, chain, node_epoch = start.lsn, start.chain, 0
        rows: list[LogRecord] = []
        last_ns = start.time_ns
        first = True
        at = "the journal"
        for segment in self._pool.log_from(start.sequence):
            if lsn > end.lsn:
                break
            if segment.sequence == start.sequence and start.sequence:
                position = start.position
            elif first and start.sequence:
                break  # the segment that the log goes on in is not there
            elif (segment.first_lsn, segment.chain) == (lsn, chain):
                position = SEGMENT_HEADER_BYTES
            else:
                continue
            first = False
            at = segment_path(segment.slot)
            journal.adopt(segment.slot, segment.file.native(), segment.sequence)
            try:
                state, _, _, seen_ns, ended, found = journal.replay(
                    segment.slot,
                    (lsn, chain, node_epoch, position),
                    cores,
                    end_lsn=end.lsn,
                    end_ns=end.time_ns,
                    end_volume=end.volume,
                    end_seq=end.seq,
                    rows_volume=rows_volume,
                    row_limit=row_limit,
                )
            except OSError as error:
                if error.errno != errno.EPROTO:
                    raise
                raise UnknownFormat(at, "a record is of an unknown version or kind") from error
            lsn, chain, node_epoch, position = state
            for row in found:
                record = LogRecord(*row)
                # One before the first MARK of its segment has the time of the last before that.
                rows.append(record if record.time_ns else record._replace(time_ns=last_ns))
            if row_limit:
                del rows[:-row_limit]
            last_ns = seen_ns or last_ns
            if ended:
                return LogRead(journal, lsn - 1, last_ns, rows)
        if lsn <= end.lsn:
            raise CorruptJournal(
                f"{at}: record {lsn} of the log is missing or damaged, so no version between it "
                f"and record {end.lsn} can be read; later ones are not affected"
            )
        return LogRead(journal, lsn - 1, last_ns, rows)
