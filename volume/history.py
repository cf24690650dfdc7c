"""History: which versions of a volume are named or kept, and where the log can be replayed from.

Six small tables in `meta/`, beside the volume records (`volume.layout` has the structs):

    version   (volume, seq)   a version in chunks: commit and tree. One for each head that a destage
                              round or a restore has set, until `volume.thinning` drops it
    point     (volume, seq)   a version that somebody named, but whose newest bytes are in the
                              journal only. The next round makes a version row of it
    snapshot  (volume, name)  a name for one of these
    dropped   (volume, seq, name)  what a name was before the record of that seq took or changed it,
                              while that record can still be undone (`volume.noted`)
    round     lsn             the cut of a destage round: every head of that round is complete
                              there, and a replay can begin there while its segment is kept
    settings  volume          how long versions stay, scheduled snapshots, codec

Finding the way to a version (volume, seq S): the *base* is its newest version row that is not
after S. If that is S itself, its tree is all. Otherwise the records (base.seq, S] are replayed over
it, from the newest round that is not after S: were one of them before that round's cut, the round
would have left a row between base and S, as rows are only thinned out where the log is gone.

Rows are values; nothing is cached, so 100,000 snapshots cost no memory. Every change is one
transaction of the synced store: durable on return, all or nothing. Some are part of a transaction
of `volume.meta`: for those, `*_put` give the items to add. New names are the exception: they are in
a record of the journal first (`volume.points`), and as durable as the writes before it.

Threads: reads from any; changes under the store's control lock, new names under the catalog's
`naming`.
"""

import heapq
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from volume import layout, memory
from volume.framing import unframed, unpacked_key
from volume.historyrows import (
    RoundRow,
    Settings,
    SnapshotRow,
    VersionRow,
    created_ns,
    dropped_key,
    dropped_of,
    dropped_row,
    point_key,
    points_put,
    round_key,
    round_put,
    round_row,
    settings_key,
    settings_of,
    settings_put,
    snapshot_key,
    snapshot_row,
    snapshot_value,
    snapshots_put,
    state_key,
    state_put,
    version_key,
    version_of,
    version_row,
)
from volume.laterkv import LaterKeyValue
from volume.states import Damaged, states

_U32 = layout.META_NUMBER_KEY
_LAST_SEQ = (1 << 64) - 1


class NameFilter:
    """Names of snapshots that there may be: one that was added is always told to be there, one that
    was not hardly ever (1 in 2,000 with 100,000 names). A name that is dropped stays; memory is
    1 MiB, of which pages that no name fell into cost nothing."""

    __slots__ = ("_bits",)
    _BITS = 23  # of a place

    def __init__(self) -> None:
        self._bits = memory.zeros(1 << self._BITS - 3)

    def add(self, number: int, name: str) -> None:
        for place in self._places(number, name):
            self._bits[place >> 3] |= 1 << (place & 7)

    def may_have(self, number: int, name: str) -> bool:
        return all(
            self._bits[place >> 3] & 1 << (place & 7) for place in self._places(number, name)
        )

    def _places(self, number: int, name: str) -> tuple[int, int]:
        mixed = hash((number, name))
        mask = (1 << self._BITS) - 1
        return mixed & mask, mixed >> self._BITS & mask


@dataclass(frozen=True, slots=True)
class Undo:
    """See `History.undo_of`."""

    gone: tuple[SnapshotRow, ...]
    back: tuple[SnapshotRow, ...]
    keys: tuple[bytes, ...]
    """Of `dropped` rows that are not to be kept."""
    left: tuple[int, ...]
    """Seqs of those that are."""
    missing: int
    """So many of `back` are not there at all now."""
    hidden: tuple[tuple[int, SnapshotRow], ...] = ()
    """`dropped` rows that come: the seq, and what the snapshot was before it."""

    @property
    def puts(self) -> dict[bytes, bytes]:
        rows = {
            dropped_key(row.number, at, row.name): snapshot_value(row) for at, row in self.hidden
        }
        return {**snapshots_put(self.back), **rows}

    @property
    def deletes(self) -> list[bytes]:
        names = {row.name for row in self.back}
        gone = [snapshot_key(row.number, row.name) for row in self.gone if row.name not in names]
        return [*gone, *self.keys]


class History:
    """The tables of one data directory. Errors of every method: those of `KeyValue`."""

    def __init__(self, kv: LaterKeyValue, defaults: Settings) -> None:
        """`defaults`: of a volume that has no settings row, such as one of an older release."""
        self._kv = kv
        self._defaults = defaults
        self._lock = threading.Lock()
        self._held: Counter[tuple[int, int]] = Counter()
        self._names = NameFilter()
        self.snapshot_counts: dict[int, int] = {}
        """Volume number -> snapshots."""
        for row in self._snapshots(layout.META_PREFIX_SNAPSHOT):
            self._names.add(row.number, row.name)
            self._count(row.number, 1)
        self.dropped: dict[int, int] = {}
        """Volume number -> the newest seq of its `dropped` rows."""
        for key, _ in kv.items(layout.META_PREFIX_DROPPED):
            number, seq, _ = dropped_of(key)
            self.dropped[number] = max(seq, self.dropped.get(number, 0))
        self.points: set[tuple[int, int]] = {
            version_of(layout.META_PREFIX_POINT, key)
            for key, _ in kv.items(layout.META_PREFIX_POINT)
        }
        """(volume number, seq) of every point: work for the next round. Any thread may add to it
        at any time, so loops go over a copy."""

    @contextmanager
    def held(self, number: int, seq: int) -> Iterator[None]:
        """Until the block ends, thinning leaves that version alone."""
        with self._lock:
            self._held[number, seq] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[number, seq] -= 1
                if not self._held[number, seq]:
                    del self._held[number, seq]

    def is_held(self, number: int, seq: int) -> bool:
        return (number, seq) in self._held

    # -- versions and points

    def version(self, number: int, seq: int) -> VersionRow | None:
        """The version row of exactly that seq."""
        return self._get_row(layout.META_PREFIX_VERSION, number, seq)

    def point(self, number: int, seq: int) -> VersionRow | None:
        return self._get_row(layout.META_PREFIX_POINT, number, seq)

    def base(self, number: int, seq: int = _LAST_SEQ) -> VersionRow | None:
        """The newest version row that is not after `seq`."""
        return self._floor(layout.META_PREFIX_VERSION, number, seq)

    def versions(self, number: int) -> Iterator[VersionRow]:
        """All version rows of a volume, oldest first."""
        return self._rows(layout.META_PREFIX_VERSION, number)

    def newest(self, number: int) -> Iterator[VersionRow]:
        """Version rows and points of a volume, newest first; of one seq only the version row."""
        seq = _LAST_SEQ
        while True:
            row = self._floor(layout.META_PREFIX_VERSION, number, seq)
            point = self._floor(layout.META_PREFIX_POINT, number, seq)
            if row is None or (point is not None and point.seq > row.seq):
                row = point
            if row is None:
                return
            yield row
            if row.seq == 0:
                return
            seq = row.seq - 1

    def after(self, number: int, seq: int) -> VersionRow | None:
        """The oldest version row or point that is not before `seq`."""
        found = None
        for row in self.newest(number):
            if row.seq < seq:
                break
            found = row
        return found

    def points_of(self, number: int) -> list[VersionRow]:
        """Points of a volume, oldest first."""
        return list(self._rows(layout.META_PREFIX_POINT, number))

    def add_point(self, row: VersionRow) -> None:
        self.add_points([row], [])

    def add_points(self, rows: Iterable[VersionRow], snapshots: Iterable[SnapshotRow]) -> None:
        """Note points, and names for them or for version rows, all or nothing."""
        rows, names = list(rows), list(snapshots)
        self._kv.update({**points_put(rows), **snapshots_put(names)})
        self.noted(rows, names)

    def note_later(
        self, points: Iterable[VersionRow], snapshots: Iterable[SnapshotRow], lsn: int
    ) -> None:
        """As `add_points`, but durable once the journal is, which has them in record `lsn`."""
        rows, names = list(points), list(snapshots)
        self._kv.put_later({**points_put(rows), **snapshots_put(names)}, lsn)
        self.noted(rows, names)

    def flush(self) -> None:
        """Make what was noted durable, with the log that it names."""
        self._kv.flush()

    def noted(self, points: Iterable[VersionRow], snapshots: Iterable[SnapshotRow]) -> None:
        """These have been put by a transaction of somebody else."""
        self.points.update((row.number, row.seq) for row in points)
        for row in snapshots:
            self._names.add(row.number, row.name)
            self._count(row.number, 1)

    def resolved(self, points: Iterable[VersionRow]) -> None:
        """These points have become version rows, or are gone."""
        self.points.difference_update((row.number, row.seq) for row in points)

    def drop_versions(self, rows: Iterable[VersionRow]) -> None:
        """Forget version rows; what only they reached is gc's."""
        self._kv.update({}, [version_key(row.number, row.seq) for row in rows])

    def drop_points(self, rows: Iterable[VersionRow]) -> None:
        rows = list(rows)
        self._kv.update({}, [point_key(row.number, row.seq) for row in rows])
        self.resolved(rows)

    # -- snapshots

    def snapshot(self, number: int, name: str) -> SnapshotRow | None:
        key = snapshot_key(number, name)
        value = self._kv.get(key)
        return None if value is None else snapshot_row(key, value)

    def has_snapshot(self, number: int, name: str) -> bool:
        """Whether there is one of that name. Quick when there is none, and mostly without giving up
        the interpreter lock: whoever makes a snapshot under load would wait for it."""
        return self._names.may_have(number, name) and self.snapshot(number, name) is not None

    def snapshots(self, number: int | None = None, prefix: str = "") -> Iterator[SnapshotRow]:
        """Snapshots of a volume, or of all, by volume number and name; those of a volume whose
        names begin with `prefix`."""
        if number is None:
            return self._snapshots(layout.META_PREFIX_SNAPSHOT)
        return self._snapshots(snapshot_key(number, prefix))

    def newest_snapshots(self, number: int, count: int, prefix: str = "") -> list[SnapshotRow]:
        """The newest of a volume's snapshots whose names begin with `prefix`, newest first.

        Looks at all of these, but makes rows of `count` only."""
        items = self._kv.items(snapshot_key(number, prefix))
        newest = heapq.nlargest(count, items, key=created_ns)
        return [snapshot_row(*item) for item in newest]

    def names_seq(self, number: int, seq: int) -> bool:
        """Whether a snapshot names that version, or did before one was dropped that may come back.
        Looks at all of the volume's."""
        return any(row.seq == seq for row in self.snapshots(number)) or any(
            row.seq == seq for _, row in self.dropped_rows(number)
        )

    def put_snapshot(self, row: SnapshotRow) -> None:
        """Change a snapshot that is there."""
        self._kv.update(snapshots_put([row]))

    def drop_snapshots(self, rows: Iterable[SnapshotRow]) -> None:
        rows = list(rows)
        self._kv.update({}, [snapshot_key(row.number, row.name) for row in rows])
        for row in rows:
            self._count(row.number, -1)

    def hide(self, old: SnapshotRow, seq: int, new: SnapshotRow | None, lsn: int) -> None:
        """Record `seq` of the volume, which is durable as record `lsn` of the journal, has made
        `new` of a snapshot, or nothing: until `settled` it can be had back."""
        put = {dropped_key(old.number, seq, old.name): snapshot_value(old)}
        # First: thinning, which looks at names and then at these, must not miss it in both.
        self.dropped[old.number] = max(seq, self.dropped.get(old.number, 0))
        if new is None:
            self._kv.update_noted(put, [snapshot_key(old.number, old.name)], lsn)
            self._count(old.number, -1)
        else:
            self._kv.update_noted({**put, **snapshots_put([new])}, [], lsn)

    def dropped_rows(self, number: int) -> list[tuple[int, SnapshotRow]]:
        """(seq of the record that has taken or changed it, what it was), oldest first."""
        if number not in self.dropped:
            return []
        return [
            (dropped_of(key)[1], dropped_row(key, value))
            for key, value in self._kv.items(layout.META_PREFIX_DROPPED + _U32.pack(number))
        ]

    def settled(self, number: int, seq: int, lsn: int) -> None:
        """What records up to `seq` have dropped does not come back; `lsn` as in `hide`."""
        rows = self.dropped_rows(number)
        gone = [dropped_key(number, at, row.name) for at, row in rows if at <= seq]
        self._kv.update_noted({}, gone, lsn)
        self._note_dropped(number, [at for at, _ in rows if at > seq])

    def _note_dropped(self, number: int, seqs: list[int]) -> None:
        if seqs:
            self.dropped[number] = max(seqs)
        else:
            self.dropped.pop(number, None)

    # -- rounds

    def round_before(self, lsn: int) -> RoundRow | None:
        """The newest round whose cut is not after the record `lsn`."""
        prefix = layout.META_PREFIX_ROUND
        found = self._kv.floor(prefix, prefix + layout.META_ROUND_KEY.pack(lsn))
        return None if found is None else round_row(*found)

    def round_at(self, time_ns: int) -> RoundRow | None:
        """The newest round that is not after that time."""
        lsn = _LAST_SEQ
        while (row := self.round_before(lsn)) is not None and row.time_ns > time_ns:
            if row.lsn == 0:
                return None
            lsn = row.lsn - 1
        return row

    def rounds(self) -> Iterator[RoundRow]:
        """All rounds, oldest first."""
        for item in self._kv.items(layout.META_PREFIX_ROUND):
            yield round_row(*item)

    def put_round(self, row: RoundRow) -> None:
        self._kv.update(round_put(row))

    def drop_rounds(self, rows: Iterable[RoundRow]) -> None:
        self._kv.update({}, [round_key(row.lsn) for row in rows])

    # -- settings, and the states of long work

    def settings(self, number: int) -> Settings:
        key = settings_key(number)
        value = self._kv.get(key)
        return self._defaults if value is None else settings_of(key, value)

    def put_settings(self, number: int, settings: Settings) -> None:
        self._kv.update(settings_put(number, settings))

    def with_schedule(self) -> Iterator[tuple[int, Settings]]:
        """(volume number, settings) of every volume with scheduled snapshots."""
        for key, value in self._kv.items(layout.META_PREFIX_SETTINGS):
            settings = settings_of(key, value)
            if settings.schedule_s:
                (number,) = unpacked_key(_U32, layout.META_PREFIX_SETTINGS, key)
                yield number, settings

    def defaults(self) -> Settings:
        return replace(self._defaults)

    def load_state(self, name: str) -> bytes | None:
        """What `save_state` kept under that name."""
        key = layout.META_PREFIX_STATE + name.encode()
        value = self._kv.get(key)
        return None if value is None else unframed(key, value)

    def save_state(self, name: str, state: bytes | None) -> None:
        """Keep opaque bytes; None forgets them."""
        if state is None:
            self._kv.update({}, [state_key(name)])
        else:
            self._kv.update(state_put(name, state))

    def states(self, prefix: str, damaged: Damaged | None = None) -> Iterator[tuple[str, bytes]]:
        """See `volume.states`."""
        return states(self._kv, prefix, damaged)

    # -- a volume as a whole

    def keys_of(self, number: int) -> list[bytes]:
        """Every row of a volume, for the transaction that deletes it."""
        suffix = _U32.pack(number)
        return [
            key
            for prefix in (
                layout.META_PREFIX_VERSION,
                layout.META_PREFIX_POINT,
                layout.META_PREFIX_SNAPSHOT,
                layout.META_PREFIX_DROPPED,
                layout.META_PREFIX_SETTINGS,
            )
            for key, _ in self._kv.items(prefix + suffix)
        ]

    def forgotten(self, number: int) -> None:
        """The rows of a volume are gone."""
        self.snapshot_counts.pop(number, None)
        self.dropped.pop(number, None)
        self.points.difference_update([point for point in list(self.points) if point[0] == number])

    def undo_of(self, number: int, last: int) -> Undo:
        """What becomes of a volume's names when its records behind seq `last` are undone."""
        gone = [row for row in self.snapshots(number) if row.seq > last]
        dropped = self.dropped_rows(number)
        back: dict[str, SnapshotRow] = {}
        for at, row in reversed(dropped):  # what the first of them has changed is the last put
            if at > last and row.seq <= last:
                back[row.name] = row
        return Undo(
            tuple(gone),
            tuple(back.values()),
            tuple(dropped_key(number, at, row.name) for at, row in dropped if at > last),
            tuple(at for at, _ in dropped if at <= last),
            sum(self.snapshot(number, name) is None for name in back),
        )

    def naming_of(self, number: int, names: Collection[SnapshotRow], keep: int, seq: int) -> Undo:
        """As `undo_of`, where these are all the names that there are to be at record `seq`. States
        up to `keep` stay, and can be gone back to: so can what their names were there."""
        wanted = {row.name: row for row in names}
        here, dropped = list(self.snapshots(number)), self.dropped_rows(number)
        hidden = tuple(
            (seq, row) for row in here if row.seq <= keep and wanted.get(row.name) != row
        )
        return Undo(
            tuple(row for row in here if row.name not in wanted),
            tuple(names),
            tuple(dropped_key(number, at, row.name) for at, row in dropped if at > keep),
            (*(at for at, _ in dropped if at <= keep), *(at for at, _ in hidden)),
            len(wanted.keys() - {row.name for row in here}),
            hidden,
        )

    def undone(self, number: int, seqs: Collection[int], names: Undo) -> None:
        """Points of a volume with these seqs are gone, and names are what `undo_of` said."""
        self.points.difference_update((number, seq) for seq in seqs)
        for row in names.back:
            self._names.add(number, row.name)
        replaced = sum(row.name in {each.name for each in names.back} for row in names.gone)
        self._count(number, names.missing + replaced - len(names.gone))
        self._note_dropped(number, list(names.left))

    # -- inside

    def _count(self, number: int, change: int) -> None:
        with self._lock:
            self.snapshot_counts[number] = self.snapshot_counts.get(number, 0) + change

    def _get_row(self, prefix: bytes, number: int, seq: int) -> VersionRow | None:
        key = prefix + layout.META_VERSION_KEY.pack(number, seq)
        value = self._kv.get(key)
        return None if value is None else version_row(prefix, key, value)

    def _floor(self, prefix: bytes, number: int, seq: int) -> VersionRow | None:
        found = self._kv.floor(
            prefix + _U32.pack(number), prefix + layout.META_VERSION_KEY.pack(number, seq)
        )
        return None if found is None else version_row(prefix, *found)

    def _rows(self, prefix: bytes, number: int) -> Iterator[VersionRow]:
        for item in self._kv.items(prefix + _U32.pack(number)):
            yield version_row(prefix, *item)

    def _snapshots(self, prefix: bytes) -> Iterator[SnapshotRow]:
        for item in self._kv.items(prefix):
            yield snapshot_row(*item)
