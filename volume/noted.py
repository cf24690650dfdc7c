"""What is done to a volume that several nodes have, by records of it (`volume.notes`).

The primary appends a NOTE and does to its own rows what it says; every member does the same when it
appends the record, and at a start for those that were in the journal and not in `meta/` yet. So
members that have the same records have the same names and sizes.

    SNAPSHOT   a point and a name; in the journal first, as a POINT record's (volume.points)
    DROP, PIN  the journal is synced; then the row, and its old one under the seq of the NOTE
    SETTLED    these old rows go: until then an undo puts them back (`Catalog.rewind`)
    RESIZE     a point for the state before; the journal is synced; then the volume's size
    RESTORE    the journal is synced; then the version it names is the head, and one of its own

A crash before the row is written finds the NOTE in the journal at the start, or neither. What is
undone takes its NOTEs along: names of states behind the common point go, those that were dropped
behind it come back, and the size is that of the state gone back to.

SETTLED is appended by the primary once W nodes have all before it on their disks: a record that has
it behind it is in every state that a takeover can choose. Until then what was dropped keeps its
chunks.

Going back to a version is two records of one moment: SNAPSHOT, which names the state before, and
RESTORE, which says which state is gone back to: its volume, seq and tree. It is in chunks before
RESTORE is appended, on the primary as on each member; a member that has no such state, or another
one at that seq, does not append the record: it is copied to (`volume.replica`). So a start that
finds RESTORE in the journal and not in `meta/` has the version to do it with.

    step of a RESTORE                         a crash right after it leaves
    the version is in chunks                  nothing has changed
    clients are gone, no write is taken       the same
    both records are in the journal           what W nodes have, or a takeover undoes; a start does
                                              what they say
    the journal is synced                     the same, after a power cut too
    head, size and version row, one           the state gone back to; the state before has its name
    transaction of `meta/`                    from the journal
    writes are taken                          the same

Any thread. Locks: the catalog's, then `naming`; the upkeep thread tends.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from errno import EINVAL, EIO, ENOSPC, ESHUTDOWN
from typing import Final

from native import OP_FLUSH, OP_WRITE, Journal, Request
from volume.catalog import Catalog, check_sizes
from volume.disk import Clock
from volume.errors import (
    CannotRestore,
    CorruptJournal,
    JournalFull,
    NoSuchVersion,
    NotConfirmed,
    NotPrimary,
    ShrinkRefused,
    SnapshotExists,
    VolumeBusy,
    VolumeError,
)
from volume.history import History
from volume.historyrows import SnapshotRow, VersionRow
from volume.meta import Meta
from volume.notes import Kind, Note, Source, decode
from volume.seal import Seal
from volume.sites import fail_point
from volume.volume import Volume

log = logging.getLogger(__name__)

MAX_GROUP: Final = 64  # volumes of one snapshot: their records are appended without a break
CONFIRM_MARGIN_S: Final = 5.0  # beyond the time after which a gate gives up


class Notes:
    """Of the volumes of a store that other nodes have as well."""

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        meta: Meta,
        journal: Journal,
        clock: Clock,
        seal: Seal,
        wake: Callable[[], None],
        dropped: Callable[[], None],
    ) -> None:
        """`wake()`: there are points to be brought into chunks; `dropped()`: names are gone."""
        self._catalog = catalog
        self._history = history
        self._meta = meta
        self._journal = journal
        self._clock = clock
        self._seal = seal
        self._wake = wake
        self._dropped = dropped

    # -- what the primary does; nothing here waits for other nodes but `confirm`

    def snapshot(
        self, name: str, volumes: Sequence[Volume], *, pinned: bool, scheduled: bool
    ) -> list[tuple[Volume, VersionRow, SnapshotRow]]:
        """Name what `volumes` are at one moment. NotPrimary, SnapshotExists, JournalFull: no name
        was given."""
        with self._locked():
            for volume in volumes:
                if self._history.has_snapshot(volume.record.number, name):
                    raise SnapshotExists(volume.name, name)
            wanted = [
                replace(
                    self._note(volume, Kind.SNAPSHOT), name=name, pinned=pinned, scheduled=scheduled
                )
                for volume in volumes
            ]
            seqs = self._append(volumes, wanted)
            made = []
            for volume, seq in zip(volumes, seqs, strict=False):
                row = self._history.point(volume.record.number, seq)
                named = self._history.snapshot(volume.record.number, name)
                assert row is not None
                assert named is not None
                made.append((volume, row, named))
            if len(made) < len(volumes):
                for volume in volumes[: len(made)]:
                    self._append([volume], [replace(self._note(volume, Kind.DROP), name=name)])
                raise JournalFull(f"snapshot {name}: the journal is full; try again later")
        return made

    def drop(self, volume: Volume, name: str) -> int:
        """Forget a name; the seq that W nodes have to have for it. NoSuchVersion, NotPrimary."""
        return self._named(volume, replace(self._note(volume, Kind.DROP), name=name))

    def pin(self, volume: Volume, name: str, pinned: bool) -> int:
        """As `drop`."""
        return self._named(volume, replace(self._note(volume, Kind.PIN), name=name, pinned=pinned))

    def _named(self, volume: Volume, note: Note) -> int:
        with self._locked():
            if self._history.snapshot(volume.record.number, note.name) is None:
                raise NoSuchVersion(volume.name, note.name)
            (seq,) = self._append([volume], [note])
            return seq

    def resize(self, volume: Volume, size: int, *, force: bool) -> int:
        """Change the volume's size, as `Catalog.resize`; the seq that W nodes have to have, 0:
        nothing was to be done."""
        with self._locked():
            record = volume.record
            check_sizes(size, record.block_size, record.chunk_size)
            if size < record.size and not force:
                raise ShrinkRefused(volume.name, record.size, size)
            if size == record.size:
                return 0
            (seq,) = self._append([volume], [replace(self._note(volume, Kind.RESIZE), size=size)])
            log.info("volume resized volume=%s size=%d", volume.name, size)
            return seq

    def restore(
        self, volume: Volume, row: VersionRow, of: bytes, kept: str | None, at: int | None = None
    ) -> int:
        """Make `volume` what `row` is, a version in chunks of the volume with id `of`, and name
        what it is now `kept`, None: nothing; the seq that W nodes have to have. Between rounds.
        `at`: its state has that name, or needs none, if it is at that seq still.

        VolumeBusy, NotPrimary, JournalFull, CannotRestore, SnapshotExists: nothing has changed."""
        with self._locked():
            if volume.deleted or volume.frozen:
                raise CannotRestore(
                    volume.name,
                    "what was written to it before is not in chunks yet; try again, and see "
                    "`blockd status`",
                )
            note = replace(
                self._note(volume, Kind.RESTORE),
                size=row.size,
                up_to=row.seq,
                source=Source(of, row.root, row.height),
            )
            if note.source is None or self.state_of(note.source, row.seq, row.size) is None:
                raise CannotRestore(volume.name, f"seq:{row.seq} of its source was deleted")
            notes = [note]
            if kept is not None and at is None:
                if self._history.has_snapshot(volume.record.number, kept):
                    raise SnapshotExists(volume.name, kept)
                notes.insert(0, replace(self._note(volume, Kind.SNAPSHOT), name=kept))
            volume.core.retire()  # no write is acknowledged from here on
            before = volume.core.state()[0]
            try:
                if volume.clients:
                    raise VolumeBusy(volume.name, volume.clients)
                if at not in (None, before):
                    raise CannotRestore(volume.name, "it was written to meanwhile; try again")
                volume.end_turn()  # before a write can be taken again
                fail_point("restore.retired")
                seqs = self._append([volume] * len(notes), notes, retired=True)
                if len(seqs) < len(notes):
                    raise JournalFull(f"volume {volume.name}: the journal is full; try again later")
            finally:
                # A RESTORE that could not be carried out has sealed the store, and stays shut.
                if self._seal.reason is None or volume.core.state()[0] == before:
                    volume.core.revive()
            return seqs[-1]

    def confirm(self, volume: Volume, seq: int, what: str, *, durable: bool) -> None:
        """Wait until W nodes have record `seq` in their journals, or on their disks. NotPrimary,
        NotConfirmed: it may have happened."""
        gate = volume.gate
        if gate is None or not seq:
            return
        ended = threading.Event()
        request = Request(OP_FLUSH if durable else OP_WRITE, 0, 0)
        gate.confirm(request, seq, durable=durable, done=lambda _: ended.set())
        if not ended.wait(gate.timeout_s + CONFIRM_MARGIN_S) or request.error:
            raise NotConfirmed(volume.name, what)

    def tend(self) -> None:
        """Let go of what was dropped, once W nodes have it on their disks. On upkeep."""
        for number, last in list(self._history.dropped.items()):
            for volume in self._catalog.all():
                gate = volume.gate
                if volume.record.number != number or gate is None or gate.shut:
                    continue
                if gate.durable >= last:
                    with self._locked():
                        note = replace(self._note(volume, Kind.SETTLED), up_to=last)
                        self._append([volume], [note])
                else:
                    gate.want(last)

    def _note(self, volume: Volume, kind: Kind) -> Note:
        size = volume.record.size
        return Note(kind, self._clock.now_ns(), size, size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._catalog.lock, self._catalog.naming:
            self._seal.check()
            yield

    def _append(
        self, volumes: Sequence[Volume], notes: Sequence[Note], *, retired: bool = False
    ) -> list[int]:
        """Append notes, at one moment, and do what they say; their seqs. Fewer than there are:
        there is no room for the others."""
        for volume in volumes:
            if volume.gate is None or volume.gate.shut:
                raise NotPrimary(volume.name)
        records = [
            (volume.core, note.encode()) for volume, note in zip(volumes, notes, strict=True)
        ]
        try:
            places = self._journal.append_notes(records, self._clock.now_ns(), retired)
        except BlockingIOError:
            raise JournalFull(
                f"volume {volumes[0].name}: the journal is full; try again later"
            ) from None
        except OSError as error:
            if error.errno in (ESHUTDOWN, EINVAL):  # it was taken over, and changed, meanwhile
                raise NotPrimary(volumes[0].name) from error
            raise
        for volume, note, (lsn, seq) in zip(volumes, notes, places, strict=False):
            self._apply(volume, note, seq, lsn)
            self._tell(note)
        return [seq for _, seq in places]

    # -- what everybody does

    def take(
        self, volume: Volume, epoch: int, records: memoryview, to: Note | None = None
    ) -> tuple[int, int]:
        """Append records of another node up to the first NOTE among them, which is the first one
        that is not here, and do what it says: (errno or 0, newest seq), as `append_records`. `to`:
        that NOTE, where it is a RESTORE. NoSuchVersion: what it goes back to is not here."""
        with self._locked():
            self._check_state(volume, to)
            now_ns = self._clock.now_ns()
            error, seq, found = volume.core.append_records(epoch, records, now_ns, True)
            if found is not None and error == 0:
                lsn, noted, _, payload = found
                note = decode(f"record {noted}", payload)
                self._apply(volume, note, noted, lsn)
                self._tell(note)
            return error, seq

    def _check_state(self, volume: Volume, to: Note | None) -> None:
        if to is None or to.source is None or self.state_of(to.source, to.up_to, to.size):
            return
        why = "it is not here, or another state is"
        raise NoSuchVersion(volume.name, f"seq:{to.up_to}", why)

    def replay(self, number: int, seq: int, lsn: int, payload: bytes) -> None:
        """At a start: what a NOTE says that `meta/` does not have yet."""
        note = decode(f"journal: record {lsn}", payload)
        with self._locked():
            self._apply(self._catalog.numbered(number), note, seq, lsn)

    def _apply(self, volume: Volume, note: Note, seq: int, lsn: int) -> None:
        """Both locks are held."""
        number, history = volume.record.number, self._history
        match note.kind:
            case Kind.SNAPSHOT:
                if (old := history.snapshot(number, note.name)) is not None:
                    self._seal.sync_journal()
                    history.hide(old, seq, None, lsn - 1)
                point = VersionRow(
                    *(number, seq, volume.record.epoch, lsn, note.time_ns, note.size)
                )
                named = SnapshotRow(
                    number, note.name, seq, note.time_ns, note.pinned, note.scheduled
                )
                history.note_later([point], [named], lsn)
            case Kind.DROP | Kind.PIN:
                self._seal.sync_journal()
                old = history.snapshot(number, note.name)
                if old is not None:
                    new = None if note.kind is Kind.DROP else replace(old, pinned=note.pinned)
                    history.hide(old, seq, new, lsn)
            case Kind.SETTLED:
                self._seal.sync_journal()
                history.settled(number, note.up_to, lsn)
            case Kind.RESIZE:
                self._resize(volume, note, seq, lsn)
            case Kind.RESTORE:
                self._restore(volume, note, seq, lsn)

    def _resize(self, volume: Volume, note: Note, seq: int, lsn: int) -> None:
        number, history = volume.record.number, self._history
        before = seq - 1
        if history.version(number, before) is None and history.point(number, before) is None:
            row = VersionRow(
                *(number, before, volume.record.epoch, lsn - 1, note.time_ns, note.size_before)
            )
            history.note_later([row], [], lsn - 1)  # not `lsn`: the size is not kept yet
        self._seal.sync_journal()
        fail_point("resize.unmapped")
        try:
            volume.record = self._meta.resize(volume.name, note.size)
        except (VolumeError, OSError) as error:  # the record stands: a start does what it says
            self._seal.close(
                OSError(ENOSPC, f"volume {volume.name}: its size is not kept, {error}")
            )
            raise
        fail_point("resize.stored")
        self._catalog.unrecorded.add(number)
        volume.core.resize(note.size)

    def state_of(self, source: Source, seq: int, size: int) -> VersionRow | None:
        """The version in chunks that a RESTORE names; None: it is not here, or another one is."""
        volume = self._catalog.of_uuid(source.volume)
        if volume is None:
            return None
        row = self._history.version(volume.record.number, seq)
        wanted = (source.root, source.height, size)
        return row if row is not None and (row.root, row.height, row.size) == wanted else None

    def _restore(self, volume: Volume, note: Note, seq: int, lsn: int) -> None:
        if volume.record.head.seq >= seq:
            return  # at a start: the head has it
        assert note.source is not None
        self._seal.sync_journal()
        fail_point("restore.synced")
        row = self.state_of(note.source, note.up_to, note.size)
        if row is None:
            what = (
                f"volume {volume.name}: record {seq} takes it back to seq:{note.up_to} of volume "
                f"{note.source.volume.hex()}, which is not here any more"
            )
            self._seal.close(OSError(EIO, what))
            raise CorruptJournal(what)
        try:
            self._catalog.heads.go_back(volume, row, seq, lsn)
        except (VolumeError, OSError) as error:  # the record stands: a start does what it says
            why = f"volume {volume.name}: the version it goes back to is not kept, {error}"
            self._seal.close(OSError(ENOSPC, why))
            raise
        log.info("volume restored volume=%s seq=%d to=%d", volume.name, seq, note.up_to)

    def _tell(self, note: Note) -> None:
        """Who has work by it."""
        if note.kind is Kind.SETTLED:
            self._dropped()
        elif note.kind in (Kind.SNAPSHOT, Kind.RESIZE, Kind.RESTORE):
            self._wake()
