"""Past versions: a tree of chunks, and over it what a replay of the log brought back.

A version that is in chunks is its tree alone. Any other one inside the window is its base, the
newest version row before it, with a private hot map over it (`volume.history` says from where the
log is replayed). Both read through the same native core as a live volume, over places of their own
in the place table, and cannot be written.

`PastVersions` finds and opens them. An open version pins the segments that its map points into, and
its tree counts as a root of gc, until it is closed.
"""

import errno
import itertools
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from native import (
    OP_BLOCK_STATUS,
    OP_CACHE,
    OP_FLUSH,
    OP_READ,
    Journal,
    PlaceTable,
    Request,
    VolumeCore,
)
from volume import memory
from volume.changes import Changes, hot_ranges
from volume.diff import Side
from volume.disk import Clock
from volume.errors import CorruptJournal, NoSuchVersion, VersionsBusy
from volume.history import History
from volume.historyrows import RoundRow, VersionRow
from volume.logreader import LogEnd, LogReader, LogRecord
from volume.meta import VolumeRecord
from volume.model import MAX_VOLUME_SIZE
from volume.reader import HeadState, Reader, ReadTarget
from volume.segments import SegmentPool
from volume.sites import rare
from volume.volume import Compare

Done = Callable[[list[Request]], None]
Extents = list[tuple[int, int]]
Key = tuple[int, str]
"""(number of the volume, which version of it): what a name means, since names change hands."""

FIRST_NUMBER = 1 << 31  # volume numbers count from 1: what is opened for a while is above them
MIN_LINGER_S = 1.0  # who has opened one is about to attach to it
LINGER_S = 10.0  # an open version without clients stays that long: the next connection finds it
MAX_OPEN = 64  # with an overlay: each takes a hot map and a descriptor for each segment
MAX_OPEN_TREES = 1024  # without: they take next to nothing, and front ends have bounds of their own
READING_OPS = frozenset((OP_READ, OP_BLOCK_STATUS, OP_FLUSH, OP_CACHE))

_LAST_LSN = (1 << 64) - 1
_numbers = itertools.count(FIRST_NUMBER)


@dataclass(frozen=True, slots=True)
class Version:
    """A version as it can be read. `overlay` is None when its tree says it all."""

    record: VolumeRecord
    """Of its volume, as that is now."""
    row: VersionRow
    """Its seq, time and size; commit and tree are the base's when there is an overlay."""
    overlay: VolumeCore | None = None
    pinned: int | None = None
    """Sequence from which on the log is pinned for the overlay."""
    number: int = 0
    """Of the overlay's places in the place table."""
    journal: Journal | None = None
    """The overlay's."""

    def hot_extents(self) -> Extents:
        """(offset, length) of what the overlay covers; also beyond the end, where the tree may
        have what a shrink has cut off."""
        if self.overlay is None:
            return []
        return hot_ranges(self.overlay, 0, MAX_VOLUME_SIZE)


class PastVersions:
    """Finds versions and replays what they need. Thread-safe; waits for disks.

    Errors: NoSuchVersion, CorruptData, OSError."""

    def __init__(
        self,
        history: History,
        log: LogReader,
        pool: SegmentPool,
        table: PlaceTable,
        end_of_log: Callable[[], int],
    ) -> None:
        """`end_of_log()`: the lsn of the last record that is in the journal."""
        self._history = history
        self._log = log
        self._pool = pool
        self._table = table
        self._end_of_log = end_of_log

    def start_for(self, number: int, seq: int) -> RoundRow | None:
        """From where on the log brings a volume to record `seq`; None when that part is gone."""
        later = self._history.after(number, seq)
        return self._history.round_before(_LAST_LSN if later is None else later.lsn)

    def floor(self) -> int | None:
        """Sequence from which on points that are not in chunks yet need the log."""
        starts = [self.start_for(number, seq) for number, seq in sorted(self._history.points)]
        return min((max(start.sequence, 1) for start in starts if start), default=None)

    def at_seq(self, record: VolumeRecord, seq: int, ref: str) -> Version:
        """The version of exactly that seq."""
        row = self._history.version(record.number, seq)
        if row is not None:
            return Version(record, row)
        end = LogEnd(self._end_of_log(), volume=record.number, seq=seq)
        with self._pinned():
            # The start first: a round may end between the two. What a later base has already, the
            # replay skips; what a later start leaves out, an earlier base would be without.
            start = self.start_for(record.number, seq)
            base = self._history.base(record.number, seq)
            if base is None or start is None:
                raise _too_old(record, ref, base)
            version = self._replayed(record, base, start, end)
        if version.row.seq != seq:
            self.close(version)
            raise NoSuchVersion(record.name, ref, f"the newest is seq:{version.row.seq}")
        return version

    def at_time(self, record: VolumeRecord, time_ns: int, ref: str) -> Version:
        """The state at that moment."""
        end = LogEnd(self._end_of_log(), time_ns=time_ns)
        with self._pinned():
            start = self._history.round_at(time_ns)  # before the base, as above
            base = self._base_at(record.number, time_ns)
            if base is None:
                raise NoSuchVersion(record.name, ref, "the volume was not there yet")
            if start is None:
                if base.time_ns == time_ns:
                    return Version(record, base)
                raise _too_old(record, ref, base)
            return self._replayed(record, base, start, end)

    def _base_at(self, number: int, time_ns: int) -> VersionRow | None:
        """The newest version row that is not after that time."""
        row = self._history.base(number)
        while row is not None and row.time_ns > time_ns:
            row = self._history.base(number, row.seq - 1) if row.seq else None
        return row

    def points(
        self, points: Sequence[tuple[VolumeRecord, VersionRow]], bases: dict[int, VersionRow]
    ) -> Iterator[tuple[VersionRow, VolumeCore]]:
        """(point, core with what is over the version before it, frozen) for points of one start.

        `points` in the order of the log, which is read once; `bases`: for each volume the version
        before its first point. Who takes a core calls its `commit` when it is done with it. The log
        stays pinned until the iterator ends."""
        journal = self._log.new_journal()
        with self._pinned():
            record, first = points[0]
            start = self.start_for(record.number, first.seq)
            if start is None:
                raise _too_old(record, f"seq:{first.seq}", None)
            cursor = self._log.cursor(start, journal)
            cores = {
                record.number: new_core(
                    journal, self._table, next(_numbers), record, bases[record.number]
                )
                for record, _ in points
            }
            for record, row in points:
                core = cores[record.number]
                cursor.advance(LogEnd(row.lsn), cores)
                if core.state()[0] != row.seq:
                    raise CorruptJournal(
                        f"volume {record.name}: the log ends at seq:{core.state()[0]}, before "
                        f"seq:{row.seq}, which was durable"
                    )
                core.resize(row.size)
                journal.freeze([core])
                yield row, core

    def writes(self, record: VolumeRecord, limit: int) -> tuple[list[LogRecord], RoundRow | None]:
        """The newest records of a volume that the log has, oldest first, and where it begins."""
        journal = self._log.new_journal()
        with self._pinned():
            start = next(self._history.rounds(), None)
            if start is None:
                return [], None
            end = LogEnd(self._end_of_log())
            read = self._log.read(
                start, end, journal, {}, rows_volume=record.number, row_limit=limit
            )
        return read.rows, start

    def records(
        self, number: int, epoch: int, after: int, last: int, limit: int
    ) -> tuple[bytes, int]:
        """Records of a volume behind seq `after`, up to `last`, all written in `epoch`, in the form
        that crosses the wire: as many as the log has without a gap and fit into `limit` bytes; and
        the seq of the last one. b"" when the first one is not in the log any more."""
        buffer = memory.zeros(limit)
        with self._pinned():
            start = self.start_for(number, after + 1)
            if start is None:
                return b"", after
            cursor = self._log.cursor(start, self._log.new_journal())
            wanted = (number, epoch, after, last)
            length, seq = cursor.copy(self._end_of_log(), wanted, buffer)
        return buffer[:length], seq

    def close(self, version: Version) -> None:
        """Let go of what `version` pins."""
        if version.pinned is not None:
            self._pool.unpin(version.pinned)

    @contextmanager
    def _pinned(self) -> Iterator[None]:
        """Nothing expires while it is looked for."""
        self._pool.pin(0)
        try:
            yield
        finally:
            self._pool.unpin(0)

    def _replayed(
        self, record: VolumeRecord, base: VersionRow, start: RoundRow, end: LogEnd
    ) -> Version:
        journal = self._log.new_journal()
        number = next(_numbers)
        core = new_core(journal, self._table, number, record, base)
        read = self._log.read(start, end, journal, {record.number: core})
        seq = core.state()[0]
        if seq == base.seq:
            return Version(record, base)
        later = self._history.after(record.number, seq)
        row = replace(
            base,
            seq=seq,
            lsn=read.lsn,
            time_ns=read.last_ns,
            size=record.size if later is None else later.size,
        )
        core.resize(row.size)
        sequence = max(start.sequence, 1)
        self._pool.pin(sequence)
        return Version(record, row, core, sequence, number, journal)


def new_core(
    journal: Journal, table: PlaceTable, number: int, record: VolumeRecord, base: VersionRow
) -> VolumeCore:
    """A core over the tree of `base`, to be filled by a replay. Records of epochs before that of
    `base` are not what followed it: they were undone (`volume.replica`), and others have their
    seqs."""
    return VolumeCore(
        *(journal, table, number, base.epoch, record.chunk_size, base.size, base.seq, 0)
    )


def _too_old(record: VolumeRecord, ref: str, base: VersionRow | None) -> NoSuchVersion:
    why = "single writes of then are not kept any more"
    if base is not None:
        why += f"; the nearest version before is {record.name}@seq:{base.seq}"
    return NoSuchVersion(record.name, ref, why)


class PastVolume:
    """A version as a read-only device. `submit`, `attach`, `detach` on the front ends' thread."""

    def __init__(
        self,
        key: Key,
        name: str,
        version: Version,
        core: VolumeCore,
        number: int,
        reader: Reader,
        clock: Clock,
        compare: Compare,
    ) -> None:
        self.key = key
        self.name = name
        self.number = number
        self.version = version
        self._core = core
        self._reader = reader
        self._clock = clock
        self._compare = compare
        self.retired = False
        self._clients: list[str] = []
        self._idle_since = clock.monotonic()
        self._head = HeadState(version.row.root, version.row.height, 0)
        record = version.record
        self._target = ReadTarget(
            name, core, record.block_size, record.chunk_size, lambda: self._head
        )

    @property
    def uuid(self) -> bytes:
        """Of this version alone: made from the volume's and its place in the volume's history."""
        row = self.version.row
        volume = uuid.UUID(bytes=self.version.record.uuid)
        return uuid.uuid5(volume, f"{row.epoch}:{row.seq}").bytes

    @property
    def volume_uuid(self) -> bytes:
        return self.version.record.uuid

    @property
    def size(self) -> int:
        return self.version.row.size

    @property
    def block_size(self) -> int:
        return self.version.record.block_size

    @property
    def read_only(self) -> bool:
        return True

    @property
    def seq(self) -> int:
        return self.version.row.seq

    @property
    def clients(self) -> list[str]:
        return sorted(self._clients)

    def attach(self, client: str) -> None:
        self._clients.append(client)

    def detach(self, client: str) -> None:
        self._clients.remove(client)
        self._idle_since = self._clock.monotonic()

    def touch(self) -> None:
        """Somebody is about to attach."""
        self._idle_since = self._clock.monotonic()

    def idle_s(self) -> float:
        """How long nobody has been attached; 0 while somebody is."""
        return 0.0 if self._clients else self._clock.monotonic() - self._idle_since

    def target(self) -> ReadTarget:
        return self._target

    def head(self) -> HeadState:
        return self._head

    def submit(self, batch: Sequence[Request], done: Done) -> None:
        """As `BlockDevice.submit`; everything that would change it fails with EPERM."""
        refused = [request for request in batch if request.op not in READING_OPS]
        for request in refused:
            request.error = errno.EPERM
        asked = [request for request in batch if request.op in READING_OPS]
        finished, reads, syncs, _ = self._core.submit(asked, self._clock.now_ns())
        if refused or finished or syncs:  # nothing here is ever unsynced
            done([*refused, *finished, *syncs])
        if reads:
            self._reader.submit(self._target, reads, done)

    def changes_since(self, ref: str) -> Changes:
        """What differs from version `ref` of its volume; see `blockd.device.TracksChanges`."""
        return self._compare(self.version.record.number, ref, self._side)

    def _side(self, offset: int, length: int) -> tuple[Side, int]:
        row, hot = self.version.row, hot_ranges(self._core, offset, length)
        return Side(row.root, row.height, row.size, hot), 0

    def retire(self) -> None:
        """Reads from here on get ESHUTDOWN: what it reads may go."""
        self.retired = True
        self._core.retire()


class OpenVersions:
    """Past versions that are open as devices, by what they were asked for. Thread-safe."""

    def __init__(
        self,
        past: PastVersions,
        log: LogReader,
        table: PlaceTable,
        reader: Reader,
        clock: Clock,
        compare: Compare,
    ) -> None:
        self._compare = compare
        self._past = past
        self._table = table
        self._reader = reader
        self._clock = clock
        self._lock = threading.Lock()
        self._open: dict[Key, PastVolume] = {}
        self._empty = log.new_journal()
        self.protect: Callable[[VersionRow], bool] = lambda _row: True
        """As `Catalog.protect`: a version that is opened may be one that gc gives up."""

    def find(self, key: Key) -> PastVolume | None:
        """The device of that key, if it is open: connections of one client get the same."""
        with self._lock:
            return self._found(key)

    def _found(self, key: Key) -> PastVolume | None:
        found = self._open.get(key)
        if found is not None:
            found.touch()
        return found

    def open(self, key: Key, name: str, version: Version) -> PastVolume:
        """`version` as a device, which closes it some time after its last client has gone."""
        overlaid = version.overlay is not None
        limit = MAX_OPEN if overlaid else MAX_OPEN_TREES
        self._make_room(overlaid, limit)
        opened: PastVolume | None = None
        with self._lock:
            found = self._found(key)
            if found is None and len(self._alike(overlaid)) < limit:
                number, core = version.number, version.overlay
                if core is None:
                    number = next(_numbers)
                    core = new_core(self._empty, self._table, number, version.record, version.row)
                found = PastVolume(
                    key, name, version, core, number, self._reader, self._clock, self._compare
                )
                self._open[key] = found
                opened = found
        if opened is not None:
            if not self.protect(version.row):
                self._close(opened)
                raise NoSuchVersion(
                    version.record.name, f"seq:{version.row.seq}", "it was not kept"
                )
            return opened
        self._past.close(version)
        if found is None:
            raise VersionsBusy(name, limit)
        return found

    def _alike(self, overlaid: bool) -> list[PastVolume]:
        """Those with an overlay, or those without. The lock is held."""
        devices = self._open.values()
        return [each for each in devices if (each.version.overlay is not None) == overlaid]

    def _make_room(self, overlaid: bool, limit: int) -> None:
        """When too many are open, close the one that nobody has used for the longest time."""
        with self._lock:
            alike = self._alike(overlaid)
        idle = [device for device in alike if device.idle_s() > MIN_LINGER_S]
        if len(alike) >= limit and idle:
            self._close(max(idle, key=lambda device: device.idle_s()))

    def all(self) -> list[PastVolume]:
        with self._lock:
            return list(self._open.values())

    def tend(self) -> None:
        """Close what nobody has used for a while."""
        for device in self.all():
            linger_s = MIN_LINGER_S if rare("version.closed") else LINGER_S
            if device.idle_s() > linger_s:
                self._close(device, linger_s)

    def close_volume(self, number: int) -> None:
        """The volume goes, and its versions with it; whoever reads one gets ESHUTDOWN."""
        for device in self.all():
            if device.version.record.number == number:
                self._close(device)

    def _close(self, device: PastVolume, linger_s: float | None = None) -> None:
        with self._lock:
            if linger_s is not None and device.idle_s() <= linger_s:
                return  # somebody has found it meanwhile
            if self._open.get(device.key) is not device:
                return
            del self._open[device.key]
        device.retire()
        self._table.drop_volume(device.number)
        self._past.close(device.version)
