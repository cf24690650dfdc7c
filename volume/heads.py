"""Heads: what makes another version the head of a volume, which is how it reads from then on.

    restore    another device with the same uuid, in the next epoch; clients get ESHUTDOWN
    go back    a record of the volume says so, on every node that has it: its device stays
    rewind     as if the records behind that version had never been: for what nobody acknowledged

Each is durable on return, and one transaction of `meta/`, behind a sync of the journal.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from native import Journal, PlaceTable
from volume.backlog import WriteBacklog
from volume.disk import Clock
from volume.flusher import Flusher
from volume.history import History
from volume.historyrows import (
    SnapshotRow,
    VersionRow,
    point_key,
    points_put,
    snapshots_put,
    version_key,
    versions_put,
)
from volume.meta import Head, Meta
from volume.model import VolumeInfo
from volume.reader import Reader
from volume.scheduler import Scheduler
from volume.seal import Seal
from volume.sites import fail_point
from volume.volume import CloneRange, Compare, Volume

if TYPE_CHECKING:
    from volume.catalog import Catalog

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machinery:
    """What every volume works with."""

    journal: Journal
    table: PlaceTable
    clock: Clock
    scheduler: Scheduler
    reader: Reader
    flusher: Flusher
    backlog: WriteBacklog
    compare: Compare
    clone_range: CloneRange


class Heads:
    """Of the volumes of `catalog`. Waits for disks; any thread."""

    def __init__(
        self, catalog: "Catalog", machinery: Machinery, meta: Meta, history: History, seal: Seal
    ) -> None:
        self._catalog = catalog
        self._parts = machinery
        self._meta = meta
        self._history = history
        self._seal = seal

    def replace(
        self, volume: Volume, row: VersionRow, keep: Callable[[], str | None] | None = None
    ) -> VolumeInfo:
        """Make `row`, which is in chunks, the head of `volume`; durable on return, all or nothing.

        What it was becomes a version, with the name that `keep` gives, asked when nothing is
        written any more; None: it needs none. Clients of the volume get ESHUTDOWN from here on:
        what they have in their caches is not the volume's any more. The lock is held."""
        self._catalog.alone(volume.name, "restore")
        self._seal.sync_journal()  # most of it, while clients still write
        with self._catalog.naming:
            return self._replace(volume, row, keep)

    def _replace(
        self, volume: Volume, row: VersionRow, keep: Callable[[], str | None] | None
    ) -> VolumeInfo:
        record = volume.record
        number = record.number
        volume.core.retire()  # no write is acknowledged from here on
        fail_point("restore.retired")
        try:
            now_ns = self._parts.clock.now_ns()
            (next_lsn, *_), (seq,) = self._parts.journal.point([volume.core])
            self._seal.sync_journal()
            fail_point("restore.synced")
            old = VersionRow(number, seq, record.epoch, next_lsn - 1, now_ns, record.size)
            points = [] if self._history.version(number, seq) else [old]
            kept = None if keep is None else keep()
            names = [] if kept is None else [SnapshotRow(number, kept, seq, now_ns)]
            head = Head(row.commit, row.root, row.height, seq + 1)
            new = VersionRow(
                *(number, seq + 1, record.epoch + 1, next_lsn - 1, now_ns, row.size, 0),
                *(row.commit, row.root, row.height),
            )
            put = {**points_put(points), **snapshots_put(names), **versions_put([new])}
            record = self._meta.replace_head(record.name, head, row.size, put)
            fail_point("restore.replaced")
            self._catalog.append_head(record)  # before any record of the new epoch
        except BaseException:
            volume.core.revive()
            raise
        volume.deleted = True
        self._parts.table.drop_volume(number)
        successor = self._catalog.succeed(record)
        self._history.noted(points, names)
        self._catalog.protect(row)
        log.info("volume has another head volume=%s from_seq=%d kept=%s", record.name, seq, kept)
        return self._catalog.info_of(successor)

    def go_back(self, volume: Volume, row: VersionRow, seq: int, lsn: int) -> None:
        """Record `seq` of a volume that other nodes have as well, `lsn` of the journal, which is
        synced, has made it what `row` is, a version in chunks of it or of another volume: that
        becomes its head, and a version of its own. Durable on return, all or nothing. Nothing is
        hot in it but what came behind that record. Both locks are held."""
        record = volume.record
        head = Head(row.commit, row.root, row.height, seq)
        new = VersionRow(
            *(record.number, seq, record.epoch, lsn, self._parts.clock.now_ns(), row.size, 0),
            *(row.commit, row.root, row.height),
        )
        puts = versions_put([new])
        record = self._meta.replace_head(record.name, head, row.size, puts, epoch=record.epoch)
        fail_point("restore.replaced")
        self._catalog.append_head(record)
        volume.move_head(record)
        self._parts.table.drop_volume(record.number)
        volume.core.resize(row.size)
        volume.went_back += 1
        self._catalog.protect(row)

    def rewind(
        self,
        volume: Volume,
        row: VersionRow,
        epoch: int,
        rows: Mapping[bytes, bytes],
        keep: int | None = None,
        named: list[SnapshotRow] | None = None,
    ) -> Volume:
        """Make `row`, which is in chunks, the head of `volume`, as if there never had been records
        behind it: the next one gets the next seq. Durable on return, all or nothing, with `rows`.
        The volume as it is from here on.

        `epoch`: above that of all records that are undone, so that no replay takes them for those
        that follow; versions of them go, and names of these. No round is under way or stands.
        `keep`: versions up to that seq stay; from there on the log does not lead to `row`.
        `named`: all names that there are from here on; their versions are there, or in `rows`."""
        with self._catalog.lock, self._catalog.naming:
            self._seal.check()
            record = volume.record
            number = record.number
            last = row.seq if keep is None else keep
            gone = [each for each in self._history.newest(number) if each.seq > last]
            points = {each.seq for each in self._history.points_of(number) if each.seq > last}
            names = self._history.undo_of(number, last)
            if named is not None:
                names = self._history.naming_of(number, named, last, row.seq)
            for name in names.gone:
                log.warning(
                    "snapshot that other nodes do not have is gone snapshot=%s@%s",
                    *(record.name, name.name),
                )
            volume.core.retire()
            try:
                self._seal.sync_journal()
                head = Head(row.commit, row.root, row.height, row.seq)
                record = self._meta.replace_head(
                    *(record.name, head, row.size),
                    {**versions_put([replace(row, epoch=epoch)]), **names.puts, **rows},
                    epoch=epoch,
                    deletes=[
                        *(version_key(number, each.seq) for each in gone if each.seq != row.seq),
                        *(point_key(number, seq) for seq in points),
                        *names.deletes,
                    ],
                )
                self._catalog.append_head(record)  # before any record of the new epoch
            except BaseException:
                volume.core.revive()
                raise
            volume.undone = volume.deleted = True
            self._catalog.going(number)
            self._parts.table.drop_volume(number)
            successor = self._catalog.succeed(record)
            self._history.undone(number, points, names)
            self._catalog.protect(row)
            log.info("records undone volume=%s seq=%d epoch=%d", record.name, row.seq, epoch)
            return successor
