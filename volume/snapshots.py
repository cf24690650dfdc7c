"""Snapshots: names for versions; and the schedules that make and remove them.

A snapshot costs one record in the journal, however large the volume is and however many there are:
it only notes which record of the volume is the last one in it (`volume.points`). The row in `meta/`
follows, and its bytes come into chunks with the next destage round (`volume.destager`).
"""

import heapq
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from volume import refs, retention
from volume.catalog import Catalog
from volume.disk import Clock
from volume.errors import (
    InvalidPolicy,
    MixedGroup,
    NoSuchVersion,
    SnapshotExists,
    SnapshotPinned,
    VolumeError,
    WouldWait,
)
from volume.history import History
from volume.historyrows import Settings, SnapshotRow, VersionRow
from volume.model import ScheduleInfo, SnapshotInfo
from volume.noted import MAX_GROUP, Notes
from volume.seal import Seal
from volume.sites import fail_point
from volume.volume import Volume

log = logging.getLogger(__name__)

MIN_SCHEDULE_S = 10
MAX_LOOKS = 1000  # at versions, one by one; for more all of the volume's are read
SCHEDULED_PREFIX = "auto-"
_NS = 1_000_000_000
_LOOK_NS = 2 * _NS  # at volumes that another node may have given up


class Snapshots:
    """The snapshots of an open store. Every method waits for disks; any thread may call it."""

    def __init__(
        self,
        catalog: Catalog,
        history: History,
        notes: Notes,
        clock: Clock,
        seal: Seal,
        wake: Callable[[], None],
        dropped: Callable[[], None],
    ) -> None:
        """`wake()`: there are points to be brought into chunks; `dropped()`: names are gone."""
        self._catalog = catalog
        self._history = history
        self._notes = notes
        self._clock = clock
        self._seal = seal
        self._wake = wake
        self._dropped = dropped
        self._next_due_ns = 0  # looked at again whenever it has passed

    def create(
        self,
        name: str,
        volumes: Sequence[str],
        *,
        pinned: bool = False,
        sync: bool = False,
        wait: bool = True,
    ) -> list[SnapshotInfo]:
        """Name what `volumes` are at one instant.

        Every write that was acknowledged before the call is in. On return it survives the death of
        the process, and a power cut as the writes in it do: from the next flush on, which is begun
        at once. `sync`: waits for that. Without `wait` it is quick enough for an event loop: where
        it would wait for a disk or for somebody else, it raises WouldWait instead. WouldWait,
        SnapshotExists, NoSuchVolume: none was made."""
        assert wait or not sync
        refs.check_snapshot_name(name)
        mirrored = self._mirrored(name, volumes)
        if mirrored:
            if not wait:
                raise WouldWait()
            return self._create_mirrored(name, mirrored, pinned=pinned, sync=sync)
        infos = self._create(name, volumes, pinned=pinned, wait=wait)
        if sync:
            self._history.flush()
        return infos

    def _mirrored(self, name: str, volumes: Sequence[str]) -> list[Volume]:
        """The volumes, if other nodes have them as well. MixedGroup."""
        found = [self._catalog.named(volume) for volume in dict.fromkeys(volumes)]
        mirrored = [each for each in found if self._catalog.is_replicated(each)]
        if mirrored and (len(mirrored) < len(found) or len(found) > MAX_GROUP):
            raise MixedGroup(name, [each.name for each in mirrored], MAX_GROUP)
        return mirrored

    def _create_mirrored(
        self, name: str, volumes: list[Volume], *, pinned: bool, sync: bool
    ) -> list[SnapshotInfo]:
        made = self._notes.snapshot(name, volumes, pinned=pinned, scheduled=False)
        for volume, row, _ in made:
            self._notes.confirm(volume, row.seq, f"snapshot {name}", durable=sync)
        return [self._info(volume, named) for volume, _, named in made]

    def _create(
        self,
        name: str,
        volumes: Sequence[str],
        *,
        pinned: bool = False,
        scheduled: bool = False,
        wait: bool = True,
    ) -> list[SnapshotInfo]:
        self._seal.check()
        if mirrored := self._mirrored(name, volumes):
            named = self._notes.snapshot(name, mirrored, pinned=pinned, scheduled=scheduled)
            return [self._info(volume, row) for volume, _, row in named]
        made = self._catalog.add_points(
            volumes, name, pinned=pinned, scheduled=scheduled, wait=wait
        )
        self._wake()
        return [
            SnapshotInfo(
                volume=volume.name,
                name=name,
                seq=row.seq,
                epoch=row.epoch,
                size=row.size,
                created_ns=named.created_ns,
                commit=row.commit.hex() if any(row.commit) else None,
                pinned=pinned,
                scheduled=scheduled,
            )
            for volume, row, named in made
            if named is not None
        ]

    def all(
        self, volume: str | None = None, *, prefix: str = "", limit: int | None = None
    ) -> list[SnapshotInfo]:
        """The snapshots of a volume, or of all; oldest first, by volume. NoSuchVolume.

        `prefix`: those whose names begin so; `limit`: the newest so many of them."""
        if volume is not None:
            volumes = [self._catalog.named(volume)]
        else:
            volumes = sorted(self._catalog.all(), key=lambda each: each.name)
        found = [row for each in volumes for row in self._rows(each, prefix, limit)]
        if limit is not None:
            found = heapq.nlargest(limit, found, key=lambda row: row.created_ns)
        rows = defaultdict(list)
        for row in found:
            rows[row.number].append(row)
        return [info for each in volumes for info in self._infos(each, rows[each.record.number])]

    def _rows(self, volume: Volume, prefix: str, limit: int | None) -> Iterable[SnapshotRow]:
        number = volume.record.number
        if limit is None:
            return self._history.snapshots(number, prefix)
        return self._history.newest_snapshots(number, limit, prefix)

    def _infos(self, volume: Volume, rows: list[SnapshotRow]) -> Iterator[SnapshotInfo]:
        """Of some of a volume's snapshots, oldest first."""
        rows.sort(key=lambda row: (row.created_ns, row.name))
        states = self._states(volume.record.number) if len(rows) > MAX_LOOKS else None
        for row in rows:
            found = self._state(row) if states is None else states.get(row.seq)
            if found is not None:  # else it was deleted meanwhile
                yield _snapshot_info(volume, row, *found)

    def _states(self, number: int) -> dict[int, tuple[VersionRow, bool]]:
        """As `_state`, of every seq. For many, that takes a third of a look at each."""
        # In this order: a round may make a version of a point between the two looks.
        states = {row.seq: (row, False) for row in self._history.points_of(number)}
        states.update((row.seq, (row, True)) for row in self._history.versions(number))
        return states

    def _state(self, row: SnapshotRow) -> tuple[VersionRow, bool] | None:
        """What a snapshot names, and whether that is in chunks."""
        for _ in range(2):  # a round may make a version of the point between the two looks
            version = self._history.version(row.number, row.seq)
            if version is not None:
                return version, True
            point = self._history.point(row.number, row.seq)
            if point is not None:
                return point, False
        return None

    def names(self, volume: str | None, limit: int) -> list[str]:
        """As "vol@name", of one volume or of all; for each newest first, at most `limit` in all."""
        volumes = self._catalog.names() if volume is None else [volume]
        found: list[str] = []
        for name in volumes:
            number = self._catalog.named(name).record.number
            newest = self._history.newest_snapshots(number, limit - len(found))
            found += [f"{name}@{row.name}" for row in newest]
        return found

    def get(self, volume: str, name: str) -> SnapshotInfo:
        """NoSuchVolume, NoSuchVersion."""
        found = self._catalog.named(volume)
        return self._info(found, self._row(found, name))

    def delete(self, volume: str, name: str, *, force: bool = False) -> None:
        """Forget a name; durable on return. SnapshotPinned, unless `force`."""
        with self._catalog.lock:
            self._seal.check()
            found = self._catalog.named(volume)
            row = self._row(found, name)
            if row.pinned and not force:
                raise SnapshotPinned(volume, name)
            mirrored = self._catalog.is_replicated(found)
            if not mirrored:
                self._history.drop_snapshots([row])
                fail_point("snapshot.dropped")
        if mirrored:
            seq = self._notes.drop(found, name)
            self._notes.confirm(found, seq, f"that snapshot {name} is gone", durable=True)
        self._dropped()

    def pin(self, volume: str, name: str, pinned: bool) -> SnapshotInfo:
        """Protect a snapshot from schedules and from `delete` without force, or no longer."""
        with self._catalog.lock:
            self._seal.check()
            found = self._catalog.named(volume)
            row = replace(self._row(found, name), pinned=pinned)
            if not self._catalog.is_replicated(found):
                self._history.put_snapshot(row)
                return self._info(found, row)
        seq = self._notes.pin(found, name, pinned)
        self._notes.confirm(found, seq, f"pin of snapshot {name}", durable=True)
        return self.get(volume, name)

    def _row(self, volume: Volume, name: str) -> SnapshotRow:
        row = self._history.snapshot(volume.record.number, name)
        if row is None:
            raise NoSuchVersion(volume.name, name)
        return row

    def _info(self, volume: Volume, row: SnapshotRow) -> SnapshotInfo:
        found = self._state(row)
        assert found is not None, "a snapshot's version stays with it"
        return _snapshot_info(volume, row, *found)

    # -- schedules

    def schedule(self, volume: str) -> ScheduleInfo | None:
        """A volume's schedule, if it has one."""
        return _schedule_info(volume, self._settings(volume))

    def _settings(self, volume: str) -> Settings:
        return self._history.settings(self._catalog.named(volume).record.number)

    def set_schedule(self, volume: str, every_s: int, keep: str) -> ScheduleInfo:
        """Make a snapshot every `every_s` seconds from now on, and keep of them what `keep` says.

        InvalidPolicy. Durable on return."""
        policy = checked_schedule(every_s, keep)
        now_ns = self._clock.now_ns()
        next_ns = (now_ns // (every_s * _NS) + 1) * every_s * _NS
        self._put(volume, schedule_s=every_s, schedule_keep=policy, schedule_next_ns=next_ns)
        info = self.schedule(volume)
        assert info is not None
        return info

    def clear_schedule(self, volume: str) -> None:
        """Make no more; those that are there stay."""
        self._put(volume, schedule_s=0, schedule_keep="", schedule_next_ns=0)

    def _put(
        self, volume: str, *, schedule_s: int, schedule_keep: str, schedule_next_ns: int
    ) -> None:
        with self._catalog.lock:
            self._seal.check()
            number = self._catalog.named(volume).record.number
            settings = replace(
                self._history.settings(number),
                schedule_s=schedule_s,
                schedule_keep=schedule_keep,
                schedule_next_ns=schedule_next_ns,
            )
            self._history.put_settings(number, settings)
            self._next_due_ns = 0

    def tend(self) -> None:
        """Make and remove the scheduled snapshots that are due. On the upkeep thread."""
        self._notes.tend()
        now_ns = self._clock.now_ns()
        if now_ns < self._next_due_ns:
            return
        self._next_due_ns = now_ns + 3600 * _NS
        by_number = {volume.record.number: volume for volume in self._catalog.all()}
        for number, settings in list(self._history.with_schedule()):
            volume = by_number.get(number)
            if volume is None:
                continue
            if volume.gate is not None and volume.gate.shut:  # its primary does it
                self._next_due_ns = min(self._next_due_ns, now_ns + _LOOK_NS)
                continue
            next_ns = settings.schedule_next_ns
            step_ns = settings.schedule_s * _NS
            # A clock that was set back must not stop a schedule for long.
            if next_ns <= now_ns or next_ns > now_ns + 2 * step_ns:
                next_ns = (now_ns // step_ns + 1) * step_ns
                self._make_scheduled(volume, settings, next_ns, now_ns)
            self._next_due_ns = min(self._next_due_ns, next_ns)

    def _make_scheduled(
        self, volume: Volume, settings: Settings, next_ns: int, now_ns: int
    ) -> None:
        name = SCHEDULED_PREFIX + _compact_time(now_ns)
        try:
            self._create(name, [volume.name], scheduled=True)
        except SnapshotExists:
            log.info("scheduled snapshot is there already snapshot=%s@%s", volume.name, name)
        except VolumeError as error:
            log.error("scheduled snapshot failed volume=%s error=%s", volume.name, error)
        with self._catalog.lock:
            if volume.deleted:
                return
            number = volume.record.number
            current = self._history.settings(number)
            self._history.put_settings(number, replace(current, schedule_next_ns=next_ns))
            gone = list(self._too_many(number, settings.schedule_keep, now_ns))
            mirrored = self._catalog.is_replicated(volume)
            if gone and not mirrored:
                self._history.drop_snapshots(gone)
        if mirrored:
            self._drop_mirrored(volume, gone)
        if gone:
            self._dropped()
            log.info("scheduled snapshots removed volume=%s count=%d", volume.name, len(gone))

    def _drop_mirrored(self, volume: Volume, gone: list[SnapshotRow]) -> None:
        for row in gone:
            try:
                self._notes.drop(volume, row.name)
            except VolumeError as error:  # with the next one
                log.error("scheduled snapshots stay volume=%s error=%s", volume.name, error)
                return

    def _too_many(self, number: int, keep: str, now_ns: int) -> Iterator[SnapshotRow]:
        rows = [row for row in self._history.snapshots(number) if row.scheduled]
        rows.sort(key=lambda row: (row.seq, row.created_ns))
        stays = retention.select([row.created_ns for row in rows], retention.parse(keep), now_ns)
        for row, kept in zip(rows, stays, strict=True):
            if not kept and not row.pinned:
                yield row


def checked_schedule(every_s: int, keep: str) -> str:
    """`keep` as it is kept. InvalidPolicy."""
    policy = str(retention.parse(keep))
    if not MIN_SCHEDULE_S <= every_s < 1 << 32:
        raise InvalidPolicy(f"every {every_s}s", f"{MIN_SCHEDULE_S} s is the shortest interval")
    if not policy:
        raise InvalidPolicy(keep, "a schedule that keeps nothing is none")
    return policy


def _snapshot_info(
    volume: Volume, row: SnapshotRow, state: VersionRow, stored: bool
) -> SnapshotInfo:
    """`stored`: `state` is a version, in chunks; not a point, whose bytes are in the journal."""
    return SnapshotInfo(
        volume=volume.name,
        name=row.name,
        seq=row.seq,
        epoch=state.epoch,
        size=state.size,
        created_ns=row.created_ns,
        commit=state.commit.hex() if stored else None,
        pinned=row.pinned,
        scheduled=row.scheduled,
    )


def _schedule_info(volume: str, settings: Settings) -> ScheduleInfo | None:
    if not settings.schedule_s:
        return None
    return ScheduleInfo(
        volume, settings.schedule_s, settings.schedule_keep, settings.schedule_next_ns
    )


def _compact_time(time_ns: int) -> str:
    """As in a snapshot's name: 20261122T103105Z."""
    return datetime.fromtimestamp(time_ns // _NS, UTC).strftime("%Y%m%dT%H%M%SZ")
