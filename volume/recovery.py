"""Replaying the journal when a store is opened.

The log goes on from the checkpoint, record by record, while lsn, chain and node epoch fit; where a
segment ends, it goes on in the one whose header names exactly the next lsn and chain. The first
place where nothing fits is the tail: what a power cut left behind it was never flushed, and is
dropped. Unless something proves otherwise: every MARK record and segment header says up to which
lsn the log was durable when it was written. If one of them, beyond the tail, vouches for the record
that is missing, flushed data is damaged, and the store refuses to open rather than forget it.

The log also tells when `meta/` is an old copy that somebody has put back: then replaying over its
heads would forget what happened since, so the store refuses to open; `volume.rebuild` is the way
out. It is old when the log has records of a run of the store that it does not know, or of this one;
a HEAD record (`volume.headrecord`) of a volume that it has not numbered yet, or of a later epoch of
one; or, from one run, HEAD records of two rounds that it has not: the second began when the first
was in `meta/`.

Who accepts the loss has the rest of the log wiped, so that it is accepted once and for all: what it
says about the lost records must not be held against those that take their numbers.

After kill -9 all records are found, flushed or not. The segments are synced once before the store
serves, so that what was replayed is durable as well.
"""

import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from native import Journal, VolumeCore, decode_segment_header
from volume.checkpoint import Checkpoint
from volume.disk import Clock, Disk, File
from volume.errors import CorruptJournal, OldMeta, UnknownFormat
from volume.historyrows import RoundRow
from volume.meta import VolumeRecord
from volume.segments import LogSegment, SegmentPool, open_segments, segment_path
from volume.warmpages import warm

log = logging.getLogger(__name__)

SEGMENT_HEADER_BYTES = 4096
LogHead = tuple[int, int, int, int, int]  # native.Journal.replay
LogPoint = tuple[int, int, int, bytes]  # as well
READ_AHEAD_SEGMENTS = 4  # while one is replayed, the disk works on the next ones
LAST_SEQUENCE = 1 << 63  # the native BD_LAST_SEQUENCE; 0 is of no segment (Checkpoint)
_PROGRESS_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the replay found."""

    records: int
    skipped: int
    segments: int
    lsn: int
    checkpoint: Checkpoint | None = None
    """Set when the old one was lost with its segment: where the log goes on, to be noted in meta
    before anything is appended."""
    lost: bool = False
    """Flushed records were missing, and that was accepted."""
    points: Sequence[LogPoint] = ()
    """POINT records, and NOTEs of volumes, in order."""
    heads: frozenset[int] = frozenset()
    """Numbers of the volumes that HEAD records are of."""


class JournalRecovery:
    """One replay. `run` fills the volumes' hot maps and leaves the journal ready for appends."""

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        journal: Journal,
        pool: SegmentPool,
        store_uuid: bytes,
        checkpoint: Checkpoint,
        rounds: Sequence[RoundRow],
        *,
        node_epoch: int,
        known: Mapping[int, VolumeRecord],
        next_volume: int,
        accept_loss: bool,
    ) -> None:
        """`rounds`: oldest first; from the first one's segment on the old log is held.
        `node_epoch`: of this run, which the journal appends with. `known`: the volumes that meta/
        has, by number; `next_volume`: the first number that it has not given yet."""
        self._disk = disk
        self._clock = clock
        self._journal = journal
        self._pool = pool
        self._uuid = store_uuid
        self._checkpoint = checkpoint
        self._rounds = rounds
        self._node_epoch = node_epoch
        self._known = known
        self._next_volume = next_volume
        self._accept_loss = accept_loss
        self._lost = False

    def run(self, volumes: dict[int, VolumeCore]) -> Recovered:
        """Replay. OSError when a segment cannot be read; CorruptJournal when flushed records are
        damaged; OldMeta. Nothing on disk is changed, unless damage is accepted."""
        files = open_segments(self._disk, self._checkpoint.segment_bytes)
        for slot, file in files.items():
            self._pool.add(slot, file)
        segments = self._read_headers(files)
        live = sorted(
            (s for s in segments if s.sequence >= self._checkpoint.sequence),
            key=lambda segment: segment.sequence,
        )
        recovered, chained = self._replay(live, volumes)
        held = self._hold_window(segments)
        for slot, file in files.items():
            if slot not in chained and slot not in held:
                self._journal.add_ready(slot, file.native())
        self._check_tail(live, chained, recovered.lsn)
        if self._lost:
            self._wipe(live, chained)
            recovered = replace(recovered, checkpoint=self._moved(live, chained, recovered.lsn))
        last = max((segment.sequence for segment in segments), default=0)
        self._journal.begin(recovered.lsn, last + 1, self._chain)
        if chained:
            self._journal.resume(chained[-1], self._position, recovered.lsn, self._chain)
        return replace(recovered, lost=self._lost)

    def _read_headers(self, files: dict[int, File]) -> list[LogSegment]:
        segments = []
        for slot, file in files.items():
            data = file.pread(512, 0)
            try:
                header = decode_segment_header(data)
            except OSError as error:
                raise UnknownFormat(
                    segment_path(slot), f"unknown segment header ({error})"
                ) from None
            if header is None:
                continue  # never begun, or its header was never durable: nothing in it counts
            uuid, own_slot, node_epoch, sequence, first_lsn, synced_lsn, chain, size = header
            if uuid != self._uuid or own_slot != slot or size != self._checkpoint.segment_bytes:
                raise CorruptJournal(
                    f"{segment_path(slot)}: this segment belongs to another place or store "
                    f"(store {uuid.hex()}, slot {own_slot}, {size} bytes); move the file away"
                )
            if not 0 < sequence <= LAST_SEQUENCE:
                raise CorruptJournal(
                    f"{segment_path(slot)}: no journal has a segment with sequence {sequence}; "
                    "move the file away"
                )
            segments.append(
                LogSegment(slot, file, node_epoch, sequence, first_lsn, synced_lsn, chain)
            )
        return segments

    def _hold_window(self, segments: list[LogSegment]) -> set[int]:
        """Keep the segments before the checkpoint that a round of the history begins in, or after;
        their slots."""
        held = set()
        for segment in segments:
            if not self._rounds or not (
                self._rounds[0].sequence <= segment.sequence < self._checkpoint.sequence
            ):
                continue
            later = (row.time_ns for row in self._rounds if row.sequence > segment.sequence)
            self._pool.hold_found(segment, next(later, self._clock.now_ns()))
            held.add(segment.slot)
        return held

    def _replay(
        self, live: list[LogSegment], volumes: dict[int, VolumeCore]
    ) -> tuple[Recovered, list[int]]:
        checkpoint = self._checkpoint
        lsn, chain, node_epoch = checkpoint.lsn, checkpoint.chain, 0
        position = checkpoint.position
        self._chain, self._position = chain, position
        if checkpoint.sequence and (not live or live[0].sequence != checkpoint.sequence):
            self._damaged(
                f"the journal segment with sequence {checkpoint.sequence}, where the checkpoint "
                f"is (lsn {lsn}),"
            )
        chained: list[int] = []
        points: list[LogPoint] = []
        heads: list[LogHead] = []
        records = skipped = 0
        started = shown = self._clock.monotonic()
        for number, segment in enumerate(live):
            first = not chained and segment.sequence == checkpoint.sequence
            if not first:
                if (segment.first_lsn, segment.chain) != (lsn, chain):
                    continue  # begun by a writer whose last records were lost unflushed
                if segment.node_epoch < node_epoch:
                    continue
                # Behind a header there may be records that were there before it: of a run whose
                # own header was lost with the power, and that a recovery has done without.
                node_epoch = segment.node_epoch
                position = SEGMENT_HEADER_BYTES
            for later in live[number + 1 : number + 1 + READ_AHEAD_SEGMENTS]:
                warm(later.file)
            self._journal.adopt(segment.slot, segment.file.native(), segment.sequence)
            chained.append(segment.slot)
            try:
                state = self._journal.replay(
                    segment.slot, (lsn, chain, node_epoch, position), volumes, points=True
                )
            except OSError as error:
                if error.errno != errno.EPROTO:
                    raise
                raise UnknownFormat(
                    segment_path(segment.slot), "the next record is of an unknown version or kind"
                ) from error
            (lsn, chain, node_epoch, position), found, gone, _, _, _, named, moved = state
            if node_epoch >= self._node_epoch:
                raise OldMeta(
                    f"{segment_path(segment.slot)} was written by run {node_epoch} of the store, "
                    f"and meta/ knows of {self._node_epoch - 1}"
                )
            heads += moved
            points += named
            self._chain, self._position = chain, position
            records += found
            skipped += gone
            now = self._clock.monotonic()
            if now - shown >= _PROGRESS_INTERVAL_S:
                shown = now
                log.info(
                    "journal replay segments=%d/%d records=%d seconds=%.1f",
                    *(number + 1, len(live), records, now - started),
                )
        self._check_heads(heads)
        if records:
            log.info(
                "journal replayed segments=%d records=%d skipped=%d lsn=%d seconds=%.2f",
                *(len(chained), records, skipped, lsn, self._clock.monotonic() - started),
            )
        numbers = frozenset(number for _, number, *_ in heads)
        recovered = Recovered(records, skipped, len(chained), lsn, points=points, heads=numbers)
        return recovered, chained

    def _check_heads(self, heads: list[LogHead]) -> None:
        """Refuse when HEAD records prove that meta/ has been further than it is."""
        ahead: dict[tuple[int, int], int] = {}  # (volume, run) -> seq of a head that meta/ lacks
        for lsn, number, epoch, seq, node_epoch in heads:
            record = self._known.get(number)
            if record is None:
                if number >= self._next_volume:
                    raise OldMeta(f"record {lsn} of the journal is of volume number {number}")
                continue  # deleted since
            if epoch > record.epoch:
                raise OldMeta(
                    f"record {lsn} of the journal is of epoch {epoch} of volume {record.name}, and "
                    f"meta/ knows of {record.epoch}"
                )
            if epoch == record.epoch and seq > record.head.seq:
                first = ahead.setdefault((number, node_epoch), seq)
                if seq != first:
                    raise OldMeta(
                        f"record {lsn} of the journal has volume {record.name} in chunks up to "
                        f"seq {seq}, after {first}, and meta/ knows of {record.head.seq}"
                    )

    def _check_tail(self, live: list[LogSegment], chained: list[int], lsn: int) -> None:
        """Refuse when anything beyond the tail proves that the record `lsn` was durable."""
        by_slot = {segment.slot: segment for segment in live}
        if chained:
            slot = chained[-1]
            if self._journal.proves(slot, self._position, lsn):
                self._damaged(f"{segment_path(slot)} at offset {self._position}: record {lsn}")
        last = by_slot[chained[-1]].sequence if chained else 0
        for segment in live:
            if segment.slot in chained or segment.sequence < last:
                continue
            if segment.synced_lsn >= lsn or self._journal.proves(
                segment.slot, SEGMENT_HEADER_BYTES, lsn
            ):
                self._damaged(f"record {lsn}, before {segment_path(segment.slot)}")

    def _wipe(self, live: list[LogSegment], chained: list[int]) -> None:
        """Leave nothing behind the tail. A crash in the middle leaves less to be accepted."""
        zeros = bytes(self._checkpoint.segment_bytes)
        for segment in live:
            if segment.slot not in chained:
                segment.file.pwrite(zeros, 0)
            elif segment.slot == chained[-1]:
                segment.file.pwrite(zeros[self._position :], self._position)
            segment.file.sync()

    def _moved(self, live: list[LogSegment], chained: list[int], lsn: int) -> Checkpoint | None:
        """The checkpoint to note after a loss; None when the old one's segment is there."""
        if not chained:  # it names no segment: the next one to be begun is the first
            return Checkpoint(lsn, 0, 0, self._chain, self._checkpoint.segment_bytes)
        first = next(segment.sequence for segment in live if segment.slot == chained[0])
        if self._checkpoint.sequence in (0, first):
            return None
        return replace(self._checkpoint, sequence=first, position=SEGMENT_HEADER_BYTES)

    def _damaged(self, what: str) -> None:
        self._lost = True
        message = (
            f"journal: {what} is damaged or missing although it had been flushed; what follows "
            "it cannot be trusted. If meta/ was put back from a copy: blockd doctor --rebuild-meta "
            "--from COPY. Else restore the data directory from a copy, or open it with "
            "store.accept_journal_loss = true to go on without those writes"
        )
        if not self._accept_loss:
            raise CorruptJournal(message)
        log.error("%s: accepted", message)
