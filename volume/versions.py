"""Versions: the log of a volume, and what can be done with a version in it.

`resolve` turns a ref into a `Version`, which is a tree of chunks and perhaps an overlay from the
log. A version that is to stay (a clone's beginning, a restored head, what is sent elsewhere) is
*settled* first: it becomes a point, and a destage round brings it into chunks. For one that is in
chunks already, a clone is one transaction, whatever its size.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from volume import refs, retention
from volume.catalog import Catalog
from volume.changes import Changes, ChangeTracker, Look
from volume.diff import Side, changed_extents
from volume.disk import Clock
from volume.errors import (
    CannotRestore,
    InvalidSize,
    NoSuchVersion,
    NotPrimary,
    VolumeBusy,
    VolumeError,
)
from volume.history import History
from volume.historyrows import VersionRow
from volume.layout import ChunkId
from volume.logreader import LogRecord
from volume.manifest import Manifests
from volume.meta import VolumeRecord
from volume.model import (
    DiffInfo,
    HistoryPolicy,
    RestoreInfo,
    VersionInfo,
    VersionLog,
    VolumeInfo,
)
from volume.noted import Notes
from volume.past import OpenVersions, PastVersions, PastVolume, Version
from volume.receive import Submit
from volume.refs import CommitRef, HeadRef, Ref, SeqRef, SnapshotRef, TimeRef
from volume.seal import Seal
from volume.volume import Volume

SETTLE_S = 5.0  # for a snapshot that somebody opens, to come into chunks
CUT_LOOK_S = 0.01  # between looks whether clients that are cut off are gone
CUT_LOOKS = 1000
MAX_LOG = 100_000  # versions in one answer
_RECORD_KINDS = {1: "write", 2: "unmap", 3: "zero", 7: "clone"}  # ops of journal records


class Settle(Protocol):
    def __call__(self, number: int, seq: int, timeout_s: float = ...) -> None: ...


class Versions:
    """The versions of an open store. Every method waits for disks; any thread may call it.

    Errors: NoSuchVolume, NoSuchVersion, InvalidName, CorruptData, OSError."""

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        past: PastVersions,
        opened: OpenVersions,
        tracker: ChangeTracker,
        manifests: Manifests,
        clock: Clock,
        seal: Seal,
        settle: Settle,
        dropped: Callable[[], None],
        notes: Notes,
        between_rounds: Submit,
    ) -> None:
        """`settle`: run destage rounds until a point is in chunks or the time is over, or raise;
        `dropped()`: a policy has changed, so that versions may go; `between_rounds`: run a call
        while no round is under way."""
        self._catalog = catalog
        self._history = history
        self._past = past
        self._opened = opened
        self._tracker = tracker
        self._manifests = manifests
        self._clock = clock
        self._seal = seal
        self._settle = settle
        self._dropped = dropped
        self._notes = notes
        self._between_rounds = between_rounds
        self._cut: Callable[[str, str], None] = lambda volume, why: None

    def cut_with(self, cut: Callable[[str, str], None]) -> None:
        """Call this with a volume's name, and why, when its clients have to go. It does not wait;
        any thread."""
        self._cut = cut

    # -- finding

    @contextmanager
    def resolved(self, ref: str) -> Iterator[Version]:
        """The version that `ref` ("vol", "vol@...") names, readable until the block ends."""
        version = self._resolve(refs.parse(ref, self._clock.now_ns()))
        try:
            with self._history.held(version.record.number, version.row.seq):
                yield version
        finally:
            self._past.close(version)

    def _resolve(self, ref: Ref) -> Version:
        volume = self._catalog.named(ref.volume)
        record = volume.record
        text = str(ref).partition("@")[2]
        if isinstance(ref, HeadRef):
            return self._past.at_seq(record, volume.core.state()[0], "head")
        if isinstance(ref, SeqRef):
            return self._past.at_seq(record, ref.seq, text)
        if isinstance(ref, TimeRef):
            if ref.time_ns > self._clock.now_ns():
                raise NoSuchVersion(ref.volume, text, "that is in the future")
            return self._past.at_time(record, ref.time_ns, text)
        if isinstance(ref, SnapshotRef):
            seq = self._snapshot_seq(record, ref)
            # Its tree says exactly what it has in common with others; an overlay does not. When
            # there is no room, or too much to do, the overlay is good enough to be read.
            if (record.number, seq) in self._history.points:
                with suppress(VolumeError):
                    self._settle(record.number, seq, SETTLE_S)
            return self._past.at_seq(record, seq, text)
        return Version(record, self._commit_row(record.number, ref))

    def _commit_row(self, number: int, ref: CommitRef) -> VersionRow:
        found = {
            row.commit: row
            for row in self._history.versions(number)
            if row.commit.hex().startswith(ref.digits) and any(row.commit)
        }
        if not found:
            raise NoSuchVersion(ref.volume, f"commit:{ref.digits}")
        if len(found) > 1:
            why = f"{len(found)} commits begin like that; give more digits"
            raise NoSuchVersion(ref.volume, f"commit:{ref.digits}", why)
        return next(iter(found.values()))

    @contextmanager
    def settled(self, ref: str) -> Iterator[tuple[VolumeRecord, VersionRow]]:
        """The version that `ref` names: its volume, and its row, which is in chunks.

        Until the block ends the row is not thinned out."""
        with self._in_chunks(refs.parse(ref, self._clock.now_ns())) as found:
            yield found

    @contextmanager
    def _in_chunks(self, ref: Ref) -> Iterator[tuple[VolumeRecord, VersionRow]]:
        record, seq = self._point_at(ref)
        with self._history.held(record.number, seq):
            row = self._history.version(record.number, seq)
            if row is None:
                self._settle(record.number, seq)
                row = self._history.version(record.number, seq)
            if row is None:
                raise NoSuchVersion(record.name, f"seq:{seq}", "it was not kept")
            yield record, row

    def _point_at(self, ref: Ref) -> tuple[VolumeRecord, int]:
        """Volume and seq of what `ref` names, which has a version row or a point on return."""
        record = self._catalog.named(ref.volume).record
        if isinstance(ref, HeadRef):
            with self._catalog.lock:
                self._seal.check()
                ((_, row, _),) = self._catalog.add_points([ref.volume], None)
            return record, row.seq
        if isinstance(ref, SnapshotRef):
            return record, self._snapshot_seq(record, ref)
        version = self._resolve(ref)
        try:
            if version.overlay is not None:
                with self._catalog.lock:
                    self._seal.check()
                    self._catalog.numbered(record.number)  # not deleted meanwhile
                    self._seal.sync_journal()  # a point never outlives the records it needs
                    if self._history.point(record.number, version.row.seq) is None:
                        self._history.add_points([_point(version.row)], [])
            return record, version.row.seq
        finally:
            self._past.close(version)

    def _snapshot_seq(self, record: VolumeRecord, ref: SnapshotRef) -> int:
        row = self._history.snapshot(record.number, ref.name)
        if row is None:
            raise NoSuchVersion(ref.volume, ref.name)
        return row.seq

    # -- the log

    def log(self, volume: str, *, limit: int = 50, writes: bool = False) -> VersionLog:
        """The newest `limit` versions, newest first; `writes`: every single record of the window
        as well."""
        limit = max(1, min(limit, MAX_LOG))
        found = self._catalog.named(volume)
        names = defaultdict(list)
        for snapshot in self._history.snapshots(found.record.number):
            names[snapshot.seq].append(snapshot.name)
        rows = self._rows(found, limit + 1)
        versions = [
            self._info(found, row, kind, tuple(sorted(names.get(row.seq, ()))))
            for kind, row in rows
        ]
        start = next(self._history.rounds(), None)
        if writes:
            records, start = self._past.writes(found.record, limit + 1)
            have = {version.seq for version in versions}
            versions += [
                _record_info(found, record) for record in records if record.seq not in have
            ]
            versions.sort(key=lambda version: version.seq, reverse=True)
        return VersionLog(
            volume=found.name,
            versions=tuple(versions[:limit]),
            more=len(versions) > limit,
            window_start_ns=None if start is None else start.time_ns,
        )

    def _rows(self, volume: Volume, limit: int) -> list[tuple[str, VersionRow]]:
        """(kind, row) of the newest versions; the state that no row has yet comes first."""
        record = volume.record
        seq, _, _, hot_bytes, *_ = volume.core.state()
        rows: list[tuple[str, VersionRow]] = []
        for row in self._history.newest(record.number):
            if not rows and row.seq < seq:
                head = VersionRow(
                    *(record.number, seq, record.epoch, 0, self._clock.now_ns()),
                    *(record.size, hot_bytes),
                )
                rows.append(("head", head))
            point = (row.number, row.seq) in self._history.points
            rows.append(("point" if point else "commit", row))
            if len(rows) >= limit:
                break
        return rows

    @staticmethod
    def _info(
        volume: Volume, row: VersionRow, kind: str, snapshots: tuple[str, ...]
    ) -> VersionInfo:
        return VersionInfo(
            seq=row.seq,
            epoch=row.epoch,
            time_ns=row.time_ns,
            kind=kind,
            size=row.size,
            bytes=row.changed_bytes,
            offset=None,
            commit=row.commit.hex() if kind == "commit" and any(row.commit) else None,
            snapshots=snapshots,
        )

    # -- what can be done with one

    def open(self, name: str) -> PastVolume:
        """A past version "vol@ref" as a read-only device. VersionsBusy.

        It closes itself some time after its last client has detached; attach it soon."""
        ref = refs.parse(name, self._clock.now_ns())
        if isinstance(ref, HeadRef):
            raise NoSuchVersion(ref.volume, "", "name a version of it, as volume@snapshot")
        record = self._catalog.named(ref.volume).record
        what = refs.split(name)[1] or ""
        if isinstance(ref, SnapshotRef):  # a name that was free again may have another version
            what = f"{what} = seq:{self._snapshot_seq(record, ref)}"
        key = (record.number, what)
        return self._opened.find(key) or self._opened.open(key, name, self._resolve(ref))

    def restore(self, volume: str, ref: str, *, force: bool = False) -> RestoreInfo:
        """Make version `ref` of `volume` its head; durable on return, all or nothing.

        The state before is kept as a snapshot. VolumeBusy while the volume is attached, unless
        `force`: its clients then get ESHUTDOWN, as what they have cached is not true any more."""
        mirrored = self._catalog.named(volume)
        self._check_free(mirrored, force)
        parsed = refs.parse_version(volume, ref, self._clock.now_ns())
        if self._catalog.is_replicated(mirrored):
            return self._restore_mirrored(mirrored, parsed, force)
        with self._in_chunks(parsed) as (_, row), self._catalog.lock:
            self._seal.check()
            found = self._catalog.named(volume)
            if found.record.number != row.number:
                raise NoSuchVersion(volume, ref, "the volume was deleted meanwhile")
            self._check_free(found, force)
            name, at = "", None

            def keep() -> str | None:
                nonlocal name, at
                name, at = self._kept(found)
                return name if at is None else None

            info = self._catalog.heads.replace(found, row, keep)
        return RestoreInfo(info, row.seq, name, at is not None)

    def _restore_mirrored(self, volume: Volume, ref: Ref, force: bool) -> RestoreInfo:
        """As `restore`, of a volume that other nodes have as well: W of them have it on their disks
        on return. Clients are cut off, and gone, before anything changes. NotPrimary,
        NotConfirmed."""
        if volume.gate is None or volume.gate.shut:
            raise NotPrimary(volume.name)
        with self._in_chunks(ref) as (record, row):
            try:
                if volume.clients:
                    self._cut_off(volume)
                kept, at, seq = self._between_rounds(lambda: self._go_back(volume, record, row))
            except BaseException:
                if self._seal.reason is None and not volume.deleted:
                    volume.core.revive()
                raise
        what = f"its restore to {ref} (nodes that have not kept that state are given it first)"
        self._notes.confirm(volume, seq, what, durable=True)
        return RestoreInfo(self._catalog.info_of(volume), row.seq, kept, at is not None)

    def _go_back(
        self, volume: Volume, record: VolumeRecord, row: VersionRow
    ) -> tuple[str, int | None, int]:
        kept, at = self._kept(volume)
        return kept, at, self._notes.restore(volume, row, record.uuid, kept, at)

    def _cut_off(self, volume: Volume) -> None:
        """Nobody is attached, once, while nothing is read or written. VolumeBusy."""
        volume.core.retire()
        self._cut(volume.name, "it goes back to an earlier state")
        for _ in range(CUT_LOOKS):
            if not volume.clients:
                return
            time.sleep(CUT_LOOK_S)
        raise VolumeBusy(volume.name, volume.clients)

    def _kept(self, volume: Volume) -> tuple[str, int | None]:
        """A name for a volume's state of now; with the seq at which it has that one already."""
        number, seq = volume.record.number, volume.core.state()[0]
        same = self._history.version(number, seq)
        for each in self._history.snapshots(number):
            row = None if same is None else self._history.version(number, each.seq)
            is_it = each.seq == seq or (row and same and _tree(row) == _tree(same))
            if is_it and not each.scheduled:  # a schedule may drop its own soon
                return each.name, seq
        return self._free_name(number, f"before-restore-{seq}"), None

    def _free_name(self, number: int, wanted: str) -> str:
        """A name for a snapshot that no other one of the volume has."""
        name, count = wanted, 1
        while self._history.snapshot(number, name) is not None:
            count += 1
            name = f"{wanted}-{count}"
        return name

    @staticmethod
    def _check_free(volume: Volume, force: bool) -> None:
        if volume.clients and not force:
            raise VolumeBusy(volume.name, volume.clients)

    def clone(self, source: str, name: str) -> VolumeInfo:
        """A new volume that begins as `source` ("vol", "vol@ref"); durable on return.

        It shares all chunks with its source, which may change or be deleted. VolumeExists."""
        with self.settled(source) as (record, row):
            return self._catalog.clone(name, record, row)

    def sizes(self, source: str) -> tuple[int, int, int]:
        """Of version `source` ("vol", "vol@ref"), its blocks and its chunks."""
        with self.settled(source) as (record, row):
            return row.size, record.block_size, record.chunk_size

    def begin_as(self, name: str, source: str) -> VolumeInfo:
        """Have volume `name`, which several nodes have, and which nobody has written to, begin as
        `source` ("vol", "vol@ref"), another one of theirs or of this node alone: a clone on all of
        them. Nothing is sent to those that have that state; W have it on their disks on return.
        Once it has begun so, it is left as it is. NotPrimary, NotConfirmed, VolumeBusy,
        CannotRestore."""
        volume = self._catalog.named(name)
        if not self._catalog.is_replicated(volume) or volume.gate is None or volume.gate.shut:
            raise NotPrimary(name)
        with self.settled(source) as (record, row):
            if row.size != volume.size or record.chunk_size != volume.record.chunk_size:
                raise CannotRestore(name, f"it has another size than {source}")

            def begin() -> int:
                if volume.core.state()[0]:
                    raise CannotRestore(name, "it was written to, so it is no clone any more")
                return self._notes.restore(volume, row, record.uuid, None, 0)

            seq = self._between_rounds(begin)
        self._notes.confirm(volume, seq, f"that it begins as {source}", durable=True)
        return self._catalog.info_of(volume)

    def diff(self, old: str, new: str, *, limit: int | None = None) -> DiffInfo:
        """Where two versions ("vol", "vol@ref"; of one volume or of two) differ.

        `limit`: extents that are told; the others are only counted, and take no memory."""
        with self.resolved(old) as before, self.resolved(new) as after:
            chunk_size = before.record.chunk_size
            if after.record.chunk_size != chunk_size:
                other = after.record.chunk_size
                raise InvalidSize(
                    "chunk size",
                    other,
                    f"{new} cannot be compared with {old}, which has {chunk_size}",
                )
            sides = side_of(before), side_of(after)
            extents: list[tuple[int, int]] = []
            count = changed_bytes = 0
            for extent in changed_extents(self._manifests, *sides, chunk_size):
                if limit is None or count < limit:
                    extents.append(extent)
                count += 1
                changed_bytes += extent[1]
            return DiffInfo(
                old=old,
                new=new,
                old_size=before.row.size,
                new_size=after.row.size,
                extents=tuple(extents),
                changed_bytes=changed_bytes,
                extent_count=count,
            )

    def compare(self, number: int, ref: str, look: Look) -> Changes:
        """What a device, seen by `look`, has that version `ref` of that volume has not."""
        volume = self._catalog.numbered(number).name
        parsed = refs.parse_version(volume, ref, self._clock.now_ns())
        with self.resolved(str(parsed)) as version:
            changes = Changes(
                self._manifests, side_of(version), version.row, look, version.record.chunk_size
            )
            return self._tracker.add(changes)

    # -- how long versions stay

    def policy(self, volume: str) -> HistoryPolicy:
        settings = self._history.settings(self._catalog.named(volume).record.number)
        return HistoryPolicy(settings.window_s, settings.keep)

    def set_policy(
        self, volume: str, *, window_s: int | None = None, keep: str | None = None
    ) -> HistoryPolicy:
        """Change how long versions without a name stay; None leaves a part. InvalidPolicy."""
        policy = None if keep is None else str(retention.parse(keep))
        with self._catalog.lock:
            self._seal.check()
            number = self._catalog.named(volume).record.number
            settings = self._history.settings(number)
            settings = replace(
                settings,
                window_s=settings.window_s if window_s is None else window_s,
                keep=settings.keep if policy is None else policy,
            )
            self._history.put_settings(number, settings)
            self._dropped()
            return HistoryPolicy(settings.window_s, settings.keep)


def _tree(row: VersionRow) -> tuple[ChunkId, int, int]:
    return row.root, row.height, row.size


def side_of(version: Version) -> Side:
    """A version as one side of a comparison."""
    row = version.row
    return Side(row.root, row.height, row.size, version.hot_extents())


def _point(row: VersionRow) -> VersionRow:
    """The point that an overlaid version becomes."""
    return VersionRow(row.number, row.seq, row.epoch, row.lsn, row.time_ns, row.size)


def _record_info(volume: Volume, record: LogRecord) -> VersionInfo:
    return VersionInfo(
        seq=record.seq,
        epoch=record.epoch,
        time_ns=record.time_ns,
        kind=_RECORD_KINDS[record.op],
        size=volume.record.size,
        bytes=record.length,
        offset=record.offset,
        commit=None,
        snapshots=(),
    )
