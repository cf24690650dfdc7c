"""Store: an open data directory; puts the parts of this package together.

    submit -> native core (journal, hot maps) -> done
                 |  waits: reader (disk), flusher (group commit), backlog (journal space)
                 v
    destager: frozen hot maps -> chunks -> manifest -> head; gc: what nothing reaches
    catalog: volumes   snapshots: names   versions: log, restore, clone, diff   upkeep: when

`Store.open` is for the daemon: real files, LMDB, threads. The constructor takes every seam (disk,
clock, key-value stores, scheduler) and starts no thread: a simulation drives `upkeep` by hand, and
every submit finishes before it returns.

Order at opening: lock, meta (epoch raised durably), index and packs (either helps the other),
journal replay, one sync. Order at closing: threads end, journal synced and marked, index synced and
marked clean, lock released. A crash anywhere in between is what recovery is for.
"""

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TypeVar

from native import Journal, PlaceTable
from volume import codecs, retention
from volume.backlog import WriteBacklog
from volume.builder import Doubts, TreeBuilder
from volume.catalog import Catalog
from volume.changes import Changes, ChangeTracker, Look
from volume.chunkrepair import ChunkRepair
from volume.chunks import ChunkStore
from volume.damage import Damage
from volume.datadir import META_MAP_BYTES, holds_data, open_index, read_boot_id
from volume.destager import Destager
from volume.disk import Clock, Disk, PosixDisk, SystemClock
from volume.diskerror import seals
from volume.errors import JournalFull, MetaLost, StoreSealed
from volume.flusher import Flusher
from volume.gc import GcReport, GcStatus
from volume.heads import Machinery
from volume.history import History
from volume.historyrows import Settings
from volume.kv import KeyValue, LmdbKeyValue
from volume.laterkv import LaterKeyValue
from volume.locate import Location
from volume.locking import DirectoryLock
from volume.logreader import LogReader
from volume.manifest import Manifests
from volume.meta import Meta
from volume.metabackup import copied
from volume.model import (
    DEFAULT_BLOCK_SIZE,
    DEFAULT_CHUNK_SIZE,
    ReceiveInfo,
    SpaceReport,
    StoreCounters,
    StoreStatus,
    VolumeInfo,
)
from volume.noted import Notes
from volume.opening import Opening, find_checkpoint, note_first_versions, open_packs
from volume.options import StoreOptions, journal_geometry, window_segments
from volume.past import OpenVersions, PastVersions, PastVolume
from volume.ranges import RangeCloner
from volume.reader import ChunkResolver, Reader
from volume.receive import Receiver, Receives
from volume.referred import ReferredTrees
from volume.refs import check_new_volume_name
from volume.remake import Remake
from volume.replicas import Replicas
from volume.replicastate import ReplicaParts
from volume.rescue import Rescue
from volume.scheduler import InlineScheduler, Scheduler
from volume.scrub import ScrubStatus
from volume.seal import Seal
from volume.segments import SegmentPool
from volume.sites import fail_point
from volume.snapshots import Snapshots
from volume.space import SpaceGuard
from volume.spacereport import SpaceReporter
from volume.states import Damaged
from volume.storestatus import StoreFacts
from volume.stripehome import StripeHome
from volume.transfers import Transfers
from volume.upkeep import Upkeep
from volume.upkept import Upkept
from volume.versions import Versions
from volume.volume import Volume

log = logging.getLogger(__name__)

T = TypeVar("T")

JOURNAL_RETRIES = 3  # of a control operation that finds the journal full


class Store:
    """An open data directory. Control methods block on the disk and may come from any thread."""

    def __init__(
        self,
        disk: Disk,
        clock: Clock,
        meta_kv: KeyValue,
        open_index: Callable[[bool], KeyValue],
        scheduler: Scheduler,
        options: StoreOptions,
        *,
        path: str = "",
        boot_id: str = "",
    ) -> None:
        """`open_index(fresh)` opens the index, emptied when `fresh`. Raises what `open` does."""
        self.path = path
        self.options = options
        self._disk = disk
        self._clock = clock
        self._boot_id = boot_id
        self._scheduler = scheduler
        self._copy_meta: Callable[[int], None] | None = None
        self._closers: list[Callable[[], None]] = [meta_kv.close]
        try:
            self._open(meta_kv, open_index)
        except BaseException:
            self._close_all()
            raise

    @classmethod
    def open(
        cls, path: Path, options: StoreOptions | None = None, scheduler: Scheduler | None = None
    ) -> "Store":
        """Open a directory, made if need be, and start the store's threads.

        DirectoryLocked, UnknownFormat, StoreSealed, MetaLost, OldMeta, CorruptData, OutOfSpace,
        OSError."""
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True)
            PosixDisk(path.parent).sync_dir(".")
        lock = DirectoryLock(path)
        if not (path / "meta" / "data.mdb").exists() and holds_data(PosixDisk(path)):
            lock.release()
            raise MetaLost(str(path))  # before an empty one is made

        try:
            meta_kv = LmdbKeyValue(path / "meta", synced=True, map_size=META_MAP_BYTES)
            store = cls(
                PosixDisk(path),
                SystemClock(),
                meta_kv,
                lambda fresh: open_index(path, fresh=fresh),
                scheduler or InlineScheduler(),
                options or StoreOptions(),
                path=str(path),
                boot_id=read_boot_id(),
            )
        except BaseException:
            lock.release()
            raise
        store._closers.insert(0, lock.release)  # last
        store._copy_meta = meta_kv.copy_to
        store._start()
        return store

    def _open(self, meta_kv: KeyValue, open_index: Callable[[bool], KeyValue]) -> None:
        options, clock = self.options, self._clock
        if next(meta_kv.items(), None) is None and holds_data(self._disk):
            raise MetaLost(self.path)
        self._meta_kv = kv = LaterKeyValue(meta_kv)
        self._meta = meta = Meta(kv, clock)
        if meta.sealed_reason is not None:
            raise StoreSealed(meta.sealed_reason)
        checkpoint = find_checkpoint(meta, options, self._disk)
        epoch = meta.begin_epoch()
        fail_point("open.epoch")
        self._history = history = History(
            kv,
            Settings(
                options.window_s,
                str(retention.parse(options.history_keep)),
                codecs.number(options.compression),
            ),
        )
        note_first_versions(meta, history, checkpoint, clock.now_ns())
        packs, self._index = open_packs(
            *(meta, self._disk, self._boot_id, options.pack_bytes),
            open_index,
            self._closers,
        )
        self._chunks = ChunkStore(
            *(packs, self._index),
            codec=codecs.number(options.compression),
            rescue=Rescue(clock.monotonic, self._scheduler),
        )
        self._manifests = Manifests(self._chunks, options.manifest_cache_bytes)
        resolver = ChunkResolver(self._chunks, self._manifests)
        self._table = PlaceTable(options.cache_bytes)

        self._journal = Journal(meta.uuid, checkpoint.segment_bytes, epoch)
        disk_bytes = self._disk.total_bytes()
        self._geometry = journal_geometry(options, disk_bytes, checkpoint.segment_bytes)
        self._pool = SegmentPool(self._disk, self._journal, self._geometry, meta.uuid, self._clock)
        self._closers.append(self._pool.close)
        self._seal = Seal(self._journal, meta, self.path)
        kv.sync_with(self._seal.try_sync)
        self._reader = Reader(resolver, self._scheduler)
        self._flusher = Flusher(self._journal, self._scheduler, self._seal.close)
        self._backlog = WriteBacklog(
            *(self._scheduler, clock, self._flusher, checkpoint.segment_bytes),
            lambda: self.upkeep.starving(),
        )
        self._seal.closed = self._backlog.give_up
        logs = LogReader(self._pool, meta.uuid, checkpoint.segment_bytes)
        past = PastVersions(
            history, logs, self._pool, self._table, lambda: self._journal.state()[0]
        )
        tracker = ChangeTracker()
        receives = Receives(kv, clock)

        def compare(number: int, ref: str, look: Look) -> Changes:
            return self.versions.compare(number, ref, look)

        def clone_range(
            volume: Volume, offset: int, source: object, source_offset: int, length: int
        ) -> int:
            return self._ranges.clone(volume, offset, source, source_offset, length)

        def settle(number: int, seq: int, timeout_s: float = float("inf")) -> None:
            self.upkeep.settle(number, seq, timeout_s)

        def between_rounds(call: Callable[[], T]) -> T:
            return self.upkeep.submit(call)

        opened = OpenVersions(past, logs, self._table, self._reader, clock, compare)
        self._catalog = Catalog(
            Machinery(
                self._journal,
                self._table,
                clock,
                self._scheduler,
                self._reader,
                self._flusher,
                self._backlog,
                compare,
                clone_range,
            ),
            meta,
            history,
            self._seal,
            going=opened.close_volume,
        )
        self._notes = Notes(
            *(self._catalog, history, meta, self._journal, clock, self._seal),
            wake=lambda: self.upkeep.points_added(),
            dropped=lambda: self.upkeep.dropped(),
        )
        self._referred = referred = ReferredTrees(kv)
        Opening(
            self._disk,
            clock,
            self._journal,
            self._pool,
            meta,
            kv,
            history,
            self._catalog,
            self._notes,
            referred,
            self._seal,
            options.accept_journal_loss,
        ).run(checkpoint)
        self._space = SpaceGuard(
            self._disk,
            self._journal,
            reserve_bytes=options.reserve_bytes,
            short_percent=options.short_percent,
        )
        self._destager = Destager(
            self._journal,
            self._chunks,
            TreeBuilder(
                *(self._chunks, self._manifests, resolver),
                should_stop=lambda: self.upkeep.stopping,
                rest=lambda: self.upkeep.rest(),
                doubts=Doubts(clock, options.damage_patience_s),
            ),
            resolver,
            meta,
            history,
            past,
            clock,
            checkpoint.segment_bytes,
            freed=lambda slots: self.upkeep.released(slots),
            control=self._catalog.lock,
            damaged=lambda lost: self.upkeep.lost(lost),
        )
        self.snapshots = Snapshots(
            *(self._catalog, history, self._notes, clock, self._seal),
            wake=lambda: self.upkeep.points_added(),
            dropped=lambda: self.upkeep.dropped(),
        )
        self.versions = Versions(
            self._catalog,
            history,
            past,
            opened,
            tracker,
            self._manifests,
            clock,
            self._seal,
            settle=settle,
            dropped=lambda: self.upkeep.dropped(),
            notes=self._notes,
            between_rounds=between_rounds,
        )
        self.upkeep = Upkeep(
            Upkept(
                clock=clock,
                options=options,
                geometry=self._geometry,
                window_segments=window_segments(options, disk_bytes, checkpoint.segment_bytes),
                journal=self._journal,
                pool=self._pool,
                chunks=self._chunks,
                manifests=self._manifests,
                resolver=resolver,
                table=self._table,
                catalog=self._catalog,
                history=history,
                past=past,
                opened=opened,
                tracker=tracker,
                receives=receives,
                referred=referred,
                snapshots=self.snapshots,
                destager=self._destager,
                backlog=self._backlog,
                space=self._space,
                seal=self._seal,
            )
        )
        self._ranges = RangeCloner(
            *(self._catalog, opened, referred, self._journal, clock, self._seal),
            self._manifests,
            self.versions.settled,
            lambda: self.upkeep.make_room(),
        )
        self._transfers = Transfers(
            self._chunks,
            self._manifests,
            receives,
            self._catalog,
            history,
            self.versions,
            self.upkeep.submit,
            clock,
            lambda: self._space.left_bytes,
        )
        self.replicas = Replicas(
            ReplicaParts(
                self._catalog,
                history,
                self._journal,
                self._seal,
                self._notes,
                past,
                self.versions,
                clock,
                self._scheduler,
                self._transfers,
                between_rounds=self.upkeep.submit,
                round_stands=lambda: self._destager.standing,
                held_up=lambda: self._destager.held_up,
                starving=self.upkeep.starving,
                dropped=self.upkeep.dropped,
            )
        )
        if any(self.replicas):  # before a first round
            self._chunks.rescue.expect()
        self.stripe_home = StripeHome(
            *(self._chunks, self.upkeep.collector, meta.uuid),
            self.upkeep.submit,
            clock.monotonic,
            self._table.take_read_packs,
        )
        self.chunk_repair = ChunkRepair(
            *(self._chunks, self.upkeep.scrubber, self.upkeep.submit, self.upkeep.forget_pack),
            Remake(
                *(self._chunks, self._manifests, resolver, self._catalog, history, self.versions),
            ),
        )
        self._spaces = SpaceReporter(
            self._catalog,
            history,
            self._chunks,
            self._manifests,
            self._pool,
            referred,
            checkpoint.segment_bytes,
            self.upkeep,
        )
        self._facts = StoreFacts(
            self.path,
            self._disk,
            clock,
            meta,
            self._journal,
            self._geometry,
            self._pool,
            self._table,
            self._chunks,
            self._manifests,
            self._catalog,
            self._destager,
            self._space,
            self._seal,
            self.upkeep,
        )
        if self._journal.state()[3] == 0:
            self._pool.tend()  # the first segment of a new store
        self.upkeep.refresh_space()

    def _start(self) -> None:
        self._flusher.start()
        self._reader.start(self.options.read_threads)
        self.upkeep.start()

    # -- volumes

    def names(self) -> list[str]:
        """Names of all volumes, sorted."""
        return self._catalog.names()

    def get(self, name: str) -> Volume | None:
        """The volume of that name; "" is the only one there is."""
        return self._catalog.get(name)

    def open_version(self, name: str) -> PastVolume:
        """A past version "vol@ref" as a device; see `Versions.open`."""
        return self.versions.open(name)

    def version_names(self, volume: str | None, limit: int) -> list[str]:
        """Snapshots as "vol@name", of one volume or of all; each's newest first, `limit` in all."""
        return self.snapshots.names(volume, limit)

    def volumes(self) -> list[VolumeInfo]:
        infos = (self._catalog.info_of(volume) for volume in self._catalog.all())
        return sorted(infos, key=lambda info: info.name)

    def info(self, name: str) -> VolumeInfo:
        return self._catalog.info_of(self._catalog.named(name))

    def create_volume(
        self,
        name: str,
        size: int,
        *,
        block_size: int = DEFAULT_BLOCK_SIZE,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        compression: str | None = None,
    ) -> VolumeInfo:
        """As `Catalog.create`."""
        return self._catalog.create(
            name, size, block_size=block_size, chunk_size=chunk_size, compression=compression
        )

    def delete_volume(self, name: str, *, force: bool = False) -> None:
        """As `Catalog.delete`."""
        self._catalog.delete(name, force=force)
        self.upkeep.dropped()

    def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        """As `Catalog.rename`."""
        return self._catalog.rename(name, new_name)

    def resize_volume(self, name: str, size: int, *, force: bool = False) -> VolumeInfo:
        """As `Catalog.resize`; of a volume that other nodes have as well, `Notes.resize`, and W of
        them have it on their disks on return. NotPrimary, NotConfirmed."""
        for _ in range(JOURNAL_RETRIES):
            with contextlib.suppress(JournalFull):
                return self._resize(name, size, force=force)
            self.upkeep.make_room()
        return self._resize(name, size, force=force)

    def _resize(self, name: str, size: int, *, force: bool) -> VolumeInfo:
        volume = self._catalog.named(name)
        if not self._catalog.is_replicated(volume):
            return self._catalog.resize(name, size, force=force)
        seq = self._notes.resize(volume, size, force=force)
        self._notes.confirm(volume, seq, f"its size of {size} bytes", durable=True)
        return self.info(name)

    def space(self) -> SpaceReport:
        """Where the disk's bytes are, exactly; takes long. CorruptData."""
        return self._spaces.report()

    # -- streams; see `Transfers`

    def send(
        self, source: str, base: str | None = None, resume: str | None = None
    ) -> Iterator[bytes]:
        return self._transfers.send(source, base=base, resume=resume)

    def receive(self, name: str) -> Receiver:
        check_new_volume_name(name)
        return self._transfers.receive(name)

    def receives(self) -> list[ReceiveInfo]:
        return self._transfers.receives()

    def abort_receive(self, name: str) -> None:
        self._transfers.abort_receive(name)

    def backup_meta(self) -> IO[bytes]:
        """A copy of meta/ as it is now, at its start; see `metabackup.copied`. The caller closes
        it. Only of a directory that `open` has opened."""
        assert self._copy_meta is not None, "simulated stores have no files to copy"
        self._meta_kv.flush()
        lsn = self._journal.state()[0]
        return copied(self._copy_meta, Path(self.path), time_ns=self._clock.now_ns(), lsn=lsn)

    # -- what those around the store keep in it

    def kept(self, prefix: str, damaged: Damaged | None = None) -> dict[str, bytes]:
        """What `keep` was given, under names that start with `prefix`; see `volume.states`."""
        return dict(self._history.states(prefix, damaged))

    def keep(self, name: str, value: bytes | None) -> None:
        """Keep opaque bytes under a name; None forgets them. Durable on return. StoreSealed,
        OSError. Names start with what keeps them, as "iscsi/"."""
        assert "/" in name, "names without are the store's own"
        self._seal.check()
        fail_point("kept.write.before" if value is not None else "kept.delete.before")
        self._history.save_state(name, value)
        fail_point("kept.write.after" if value is not None else "kept.delete.after")

    # -- upkeep, by hand

    def tend(self) -> bool:
        return self.upkeep.tend()

    def destage(self) -> bool:
        return self.upkeep.destage()

    def collect(self, *, dry_run: bool = False) -> GcReport:
        """A whole run of gc, now; `dry_run`: what it would do, without doing it. CorruptData."""
        if dry_run:
            return self.upkeep.collector.dry_run()
        return self.upkeep.submit(self.upkeep.collect)

    def gc_status(self) -> GcStatus:
        return self.upkeep.collector.status()

    def scrub_status(self) -> ScrubStatus:
        return self.upkeep.scrubber.status()

    def start_scrub(self) -> None:
        """Read and verify everything that is stored, now and without rests but for clients."""
        self.upkeep.scrubber.run_now()

    def stop_scrub(self) -> None:
        """No more hurry: the pass that was asked for goes on at the usual rate."""
        self.upkeep.scrubber.stop()

    def damage_locations(self, damages: Iterable[Damage] | None = None) -> Iterator[Location]:
        return self.upkeep.damage_locations(damages)

    @property
    def last_gc(self) -> GcReport | None:
        return self.gc_status().last

    # -- state

    def status(self) -> StoreStatus:
        return self._facts.status()

    def counters(self) -> StoreCounters:
        return self._facts.counters()

    def close(self) -> None:
        """Finish what was submitted, leave everything durable, unlock. Idempotent."""
        if not self._closers:
            return
        self.upkeep.stop()
        self._flusher.stop()
        self._reader.stop()
        self._backlog.fail()
        if self._seal.reason is None:
            try:
                self._leave_clean()
            except OSError as error:
                if seals(error) or self._journal.state()[2]:  # the latter: its sync failed
                    self._seal.close(error)
                else:
                    log.error("not closed cleanly, the next start has more to do error=%s", error)
        self._close_all()

    def _leave_clean(self) -> None:
        """All durable; a last mark vouches for every record before it."""
        self._meta_kv.flush()
        self._journal.sync()
        with contextlib.suppress(BlockingIOError):  # no segment left for it: it is not needed
            self._journal.append_mark(self._clock.now_ns())
        self._journal.sync()
        self._index.sync()
        fail_point("close.index-synced")
        self._meta.mark_index_clean(self._boot_id)

    def _close_all(self) -> None:
        while self._closers:
            with contextlib.suppress(OSError):
                self._closers.pop()()
