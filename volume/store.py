"""Store: an open data directory; puts the parts of this package together.

    submit -> native core (journal, hot maps) -> done
                 |  waits: reader (disk), flusher (group commit), backlog (journal space)
                 v
    destager: frozen hot maps -> chunks -> manifest -> head; gc: what no head reaches

`Store.open` is for the daemon: real files, LMDB, threads. The constructor takes every seam (disk,
clock, key-value stores, scheduler) and starts no thread: a simulation drives `destage`, `collect`
and `tend` by hand, and every submit finishes before it returns.

Order at opening: lock, meta (epoch raised durably), packs, index (rebuilt unless trusted), journal
replay, one sync. Order at closing: threads end, journal synced and marked, index synced and marked
clean, lock released. A crash anywhere in between is what recovery is for.
"""

import contextlib
import errno
import logging
import os
import shutil
import threading
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from native import OP_UNMAP, Journal, PlaceTable, Request, VolumeCore
from volume import gc
from volume.background import Worker
from volume.backlog import WriteBacklog, delay_for
from volume.checkpoint import Checkpoint, first_checkpoint
from volume.chunks import ChunkStore
from volume.codecs import CODEC_NAMES
from volume.destager import Destager
from volume.disk import Clock, Disk, PosixDisk, SystemClock
from volume.errors import (
    CorruptData,
    DirectoryLocked,
    InvalidSize,
    NoSuchVolume,
    OutOfSpace,
    ShrinkRefused,
    StoreSealed,
    VolumeBusy,
)
from volume.flusher import Flusher
from volume.index import ChunkIndex
from volume.kv import NO_SPACE_ERRNOS, KeyValue, LmdbKeyValue
from volume.locking import DirectoryLock
from volume.manifest import Manifests
from volume.meta import Meta, VolumeRecord
from volume.model import (
    BLOCK_SIZES,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_CHUNK_SIZE,
    MAX_CHUNK_SIZE,
    MAX_VOLUME_SIZE,
    MIN_CHUNK_SIZE,
    StoreStatus,
    VolumeInfo,
)
from volume.options import StoreOptions, journal_geometry
from volume.packs import Packs
from volume.reader import ChunkResolver, Reader
from volume.recovery import JournalRecovery
from volume.scheduler import InlineScheduler, Scheduler
from volume.segments import TRIM_RESERVE, SegmentPool
from volume.space import SpaceGuard
from volume.volume import Volume

log = logging.getLogger(__name__)

META_MAP_BYTES = 16 * 1024 * 1024
INDEX_MAP_BYTES = 256 * 1024 * 1024
UPKEEP_INTERVAL_S = 0.1
DESTAGE_INTERVAL_S = 0.25
FULL_REST_S = 1.0  # between two runs of gc while the disk is full
GC_SHARE = 20  # gc rests at least this many times as long as its last run took


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
        self._lock = threading.Lock()  # control methods, and the table of volumes
        self._sealed: str | None = None
        self._workers: list[Worker] = []
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

        DirectoryLocked, UnknownFormat, StoreSealed, CorruptData, OutOfSpace, OSError."""
        if not path.is_dir():
            path.mkdir(mode=0o700, parents=True)
            PosixDisk(path.parent).sync_dir(".")
        lock = DirectoryLock(path)

        def open_index(fresh: bool) -> KeyValue:
            if fresh:
                shutil.rmtree(path / "index", ignore_errors=True)
            return LmdbKeyValue(path / "index", synced=False, map_size=INDEX_MAP_BYTES)

        try:
            store = cls(
                PosixDisk(path),
                SystemClock(),
                LmdbKeyValue(path / "meta", synced=True, map_size=META_MAP_BYTES),
                open_index,
                scheduler or InlineScheduler(),
                options or StoreOptions(),
                path=str(path),
                boot_id=read_boot_id(),
            )
        except BaseException:
            lock.release()
            raise
        store._closers.insert(0, lock.release)  # last
        store._start()
        return store

    def _open(self, meta_kv: KeyValue, open_index: Callable[[bool], KeyValue]) -> None:
        options = self.options
        self._meta = Meta(meta_kv, self._clock)
        if self._meta.sealed_reason is not None:
            raise StoreSealed(self._meta.sealed_reason)
        checkpoint = self._checkpoint()
        epoch = self._meta.begin_epoch()
        packs = Packs(self._disk, self._meta.uuid, pack_bytes=options.pack_bytes)
        self._closers.append(packs.close)
        self._index = self._open_index(packs, open_index)
        self._chunks = ChunkStore(packs, self._index, codec=_codec(options.compression))
        self._manifests = Manifests(self._chunks, options.manifest_cache_bytes)
        self._resolver = ChunkResolver(self._chunks, self._manifests)
        self._table = PlaceTable(options.cache_bytes)

        self._journal = Journal(self._meta.uuid, checkpoint.segment_bytes, epoch)
        self._geometry = journal_geometry(
            options, self._disk.total_bytes(), checkpoint.segment_bytes
        )
        self._pool = SegmentPool(self._disk, self._journal, self._geometry)
        self._closers.append(self._pool.close)
        self._reader = Reader(self._resolver, self._scheduler)
        self._flusher = Flusher(self._journal, self._scheduler, self._seal)
        self._backlog = WriteBacklog(
            self._scheduler, self._clock, self._flusher, checkpoint.segment_bytes, self._starving
        )
        self._volumes = {record.name: self._make(record) for record in self._meta.volumes()}
        self._recover(checkpoint)
        self._space = SpaceGuard(self._disk, self._journal, options.reserve_bytes)
        self._destager = Destager(
            self._journal,
            self._chunks,
            self._manifests,
            self._resolver,
            self._meta,
            self._clock,
            checkpoint.segment_bytes,
            freed=self._pool.recycle,
            control=self._lock,
        )
        now = self._clock.monotonic()
        self._warmed = False
        self._hot_since: float | None = None
        self._seen_lsn = 0
        self._seen_at = now
        self._collected_at = now
        self._collected_rounds = 0
        self._collect_rest_s = options.gc_interval_s
        self.last_gc: gc.GcReport | None = None
        if self._journal.state()[3] == 0:
            self._pool.tend()  # the first segment of a new store
        self._refresh_space()

    def _checkpoint(self) -> Checkpoint:
        if self._meta.checkpoint is not None:
            return Checkpoint.decode(self._meta.checkpoint)
        geometry = journal_geometry(self.options, self._disk.total_bytes(), None)
        checkpoint = first_checkpoint(geometry.segment_bytes)
        self._meta.move_heads({}, checkpoint.encode())
        return checkpoint

    def _open_index(self, packs: Packs, open_index: Callable[[bool], KeyValue]) -> ChunkIndex:
        trusted = self._meta.index_trusted(self._boot_id)
        kv = open_index(not trusted)
        self._closers.append(kv.close)
        index = ChunkIndex(kv, self._meta.uuid)
        if not trusted and packs.numbers():
            log.info("index not trusted after a power cut: rebuilt from packs")
            index.rebuild(packs, lambda done, total: _log_rebuild(done, total))
        self._meta.mark_index_open(self._boot_id)
        return index

    def _recover(self, checkpoint: Checkpoint) -> None:
        recovery = JournalRecovery(
            self._disk,
            self._clock,
            self._journal,
            self._pool,
            self._meta.uuid,
            checkpoint,
            accept_loss=self.options.accept_journal_loss,
        )
        cores = {volume.record.number: volume.core for volume in self._volumes.values()}
        moved = recovery.run(cores).checkpoint
        if moved is not None:
            self._meta.move_heads({}, moved.encode())
        try:
            self._journal.sync()  # what was replayed is durable before anything is served
        except OSError as error:
            self._seal(error)
            raise StoreSealed(self._sealed or str(error)) from error

    def _make(self, record: VolumeRecord) -> Volume:
        core = VolumeCore(
            *(self._journal, self._table, record.number, record.epoch, record.chunk_size),
            *(record.size, record.head.seq, 0),
        )
        return Volume(
            record,
            core,
            clock=self._clock,
            scheduler=self._scheduler,
            reader=self._reader,
            flusher=self._flusher,
            backlog=self._backlog,
        )

    # -- threads

    def _start(self) -> None:
        self._flusher.start()
        self._reader.start(self.options.read_threads)
        self._destage_worker = Worker(
            "blockd-destage", DESTAGE_INTERVAL_S, self._destage_if_due, self._seal
        )
        self._upkeep_worker = Worker("blockd-upkeep", UPKEEP_INTERVAL_S, self.tend, self._seal)
        self._workers = [self._destage_worker, self._upkeep_worker]
        for worker in self._workers:
            worker.start()

    def _starving(self) -> None:
        if self._workers:
            self._upkeep_worker.wake()
            self._destage_worker.wake()

    def tend(self) -> bool:
        """One round of upkeep: space, back-pressure, a ready segment. Whether to go on at once."""
        failed = self._journal.state()[2]
        if failed and self._sealed is None:  # an append failed: only its writer was told
            self._seal(OSError(failed, os.strerror(failed)))
        self._refresh_space()
        self._backlog.delay_s = delay_for(self._journal_bytes() / self._geometry.limit)
        try:
            made = self._pool.tend()
        except OSError as error:
            if error.errno not in NO_SPACE_ERRNOS:  # without space the journal stays as it is
                raise
            made = False
        if self._backlog.count and (self._journal.state()[3] > 1 or self._space.full):
            self._backlog.wake()
        return made

    def _destage_if_due(self) -> bool:
        did = False
        if not self._warmed:
            self._warmed = True
            self.warm()
        if self._destage_due():
            did = self.destage()
        if self._collect_due():
            self.collect()
        return did

    def _destage_due(self) -> bool:
        options = self.options
        states = [volume.core.state() for volume in self._all()]
        now = self._clock.monotonic()
        lsn = self._journal.state()[0]
        if lsn != self._seen_lsn:
            self._seen_lsn, self._seen_at = lsn, now
        filled = self._journal_bytes() >= options.destage_fill * self._geometry.limit
        if not any(state[4] for state in states):
            self._hot_since = None
            return filled and self._journal.state()[4] > 0  # segments of volumes that are gone
        if self._hot_since is None:
            self._hot_since = now
        return (
            now - self._hot_since >= options.destage_age_s
            or now - self._seen_at >= options.destage_idle_s
            or filled
            or sum(state[5] for state in states) >= options.hot_map_bytes
        )

    def warm(self) -> None:
        """After a start: cache where chunks are, so that the first reads need not look.

        Stops when there is something to destage, or damage, which a read then reports."""
        for volume in self._all():
            head = volume.head()
            ahead = takewhile(
                lambda _: not self._stopping() and not self._destage_due(),
                self._resolver.stored_chunks(head),
            )
            try:
                self._resolver.warm(volume.target(), head, ahead)
            except (CorruptData, OSError) as error:
                log.warning("warming stopped volume=%s error=%s", volume.name, error)

    def destage(self) -> bool:
        """One destage round over everything that is hot; whether there was anything.

        OutOfSpace: everything stays in the journal, and the next call tries again."""
        self._check_sealed()
        try:
            did = self._destager.run(lambda: list(self._volumes.values()))
        except OutOfSpace:
            self._refresh_space(stuck=True)
            self.collect()
            self._backlog.wake()
            raise
        self._hot_since = None
        self._refresh_space()
        self._backlog.wake()
        return did

    def _collect_due(self) -> bool:
        idle_s = self._clock.monotonic() - self._collected_at
        changed = self._destager.rounds != self._collected_rounds or self.last_gc is None
        rest_s = FULL_REST_S if self._space.full else self._collect_rest_s
        return changed and idle_s >= rest_s

    def collect(self) -> gc.GcReport:
        """Remove what no head reaches from the packs. On the destager's thread, between rounds."""
        self._check_sealed()
        self._collected_rounds = self._destager.rounds
        heads = [volume.record.head for volume in self._all()]
        report = gc.collect(
            self._chunks,
            self._manifests,
            [gc.Root(head.root, head.height, _commits(head.commit)) for head in heads],
            monotonic=self._clock.monotonic,
            moved=self._forget_pack,
            removed=self._forget_pack,
            should_stop=self._stopping,
        )
        self._collected_at = self._clock.monotonic()
        self._collect_rest_s = max(self.options.gc_interval_s, GC_SHARE * report.duration_s)
        self.last_gc = report
        return report

    def _stopping(self) -> bool:
        return any(worker.stopping for worker in self._workers)

    def _forget_pack(self, number: int) -> None:
        self._resolver.forget_pack(number)
        self._table.drop_pack(number)

    # -- volumes

    def _all(self) -> list[Volume]:
        with self._lock:
            return list(self._volumes.values())

    def names(self) -> list[str]:
        """Names of all volumes, sorted."""
        return sorted(self._volumes)

    def get(self, name: str) -> Volume | None:
        """The volume of that name; "" is the only one there is."""
        volumes = self._volumes
        if name == "" and len(volumes) == 1:
            return next(iter(volumes.values()))
        return volumes.get(name)

    def volumes(self) -> list[VolumeInfo]:
        return sorted((volume.info() for volume in self._all()), key=lambda info: info.name)

    def info(self, name: str) -> VolumeInfo:
        return self._named(name).info()

    def _named(self, name: str) -> Volume:
        volume = self._volumes.get(name)
        if volume is None:
            raise NoSuchVolume(name)
        return volume

    def create_volume(
        self,
        name: str,
        size: int,
        *,
        block_size: int = DEFAULT_BLOCK_SIZE,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
    ) -> VolumeInfo:
        """Make an empty volume; durable on return. InvalidName, InvalidSize, VolumeExists."""
        _check_sizes(size, block_size, chunk_size)
        with self._lock:
            self._check_sealed()
            record = self._meta.create(
                name,
                uuid=self._clock.new_uuid(),
                size=size,
                block_size=block_size,
                chunk_size=chunk_size,
                created_ns=self._clock.now_ns(),
            )
            volume = self._make(record)
            self._volumes = {**self._volumes, record.name: volume}
            log.info("volume created volume=%s size=%d", name, size)
            return volume.info()

    def delete_volume(self, name: str, *, force: bool = False) -> None:
        """Forget a volume; durable on return. Its space comes back with the next gc.

        VolumeBusy while it is attached, unless `force`: its clients then get ESHUTDOWN."""
        with self._lock:
            self._check_sealed()
            volume = self._named(name)
            if volume.clients and not force:
                raise VolumeBusy(name, volume.clients)
            self._meta.delete(name)
            volume.deleted = True
            volume.core.retire()
            self._volumes = {key: kept for key, kept in self._volumes.items() if key != name}
            self._table.drop_volume(volume.record.number)
            self._collected_rounds = -1
            log.info("volume deleted volume=%s", name)

    def rename_volume(self, name: str, new_name: str) -> VolumeInfo:
        """Give a volume another name; durable on return. Attached clients notice nothing."""
        with self._lock:
            self._check_sealed()
            volume = self._named(name)
            volume.record = self._meta.rename(name, new_name)
            others = {key: kept for key, kept in self._volumes.items() if key != name}
            self._volumes = {**others, new_name: volume}
            log.info("volume renamed volume=%s new_name=%s", name, new_name)
            return volume.info()

    def resize_volume(self, name: str, size: int, *, force: bool = False) -> VolumeInfo:
        """Change a volume's size; durable on return. Growing shows zeros; shrinking, which needs
        `force`, drops what is cut off for good. ShrinkRefused, InvalidSize."""
        with self._lock:
            self._check_sealed()
            volume = self._named(name)
            record = volume.record
            _check_sizes(size, record.block_size, record.chunk_size)
            if size < record.size:
                if not force:
                    raise ShrinkRefused(name, record.size, size)
                self._cut_off(volume, size)
            volume.record = self._meta.resize(name, size)
            volume.core.resize(size)
            log.info("volume resized volume=%s size=%d", name, size)
            return volume.info()

    def _cut_off(self, volume: Volume, size: int) -> None:
        """Unmap what is beyond `size`, durably, before the size itself moves: after a crash in
        between the volume has its old size, and zeros there."""
        request = Request(OP_UNMAP, size, volume.record.size - size)
        _, _, _, blocked = volume.core.submit([request], self._clock.now_ns())
        if blocked:
            raise OutOfSpace(f"volume {volume.name}: the journal is full; try again later")
        if request.error:
            raise StoreSealed(f"unmap failed with errno {request.error}")
        try:
            self._journal.sync()
        except OSError as error:
            self._seal(error)
            raise StoreSealed(self._sealed or str(error)) from error

    # -- state

    def status(self) -> StoreStatus:
        lsn, synced_lsn, *_ = self._journal.state()
        _, cache_bytes, cache_limit, _, _ = self._table.stats()
        packs = self._chunks.packs
        state, reason = "ok", None
        if self._sealed is not None:
            state, reason = "sealed", self._sealed
        elif self._space.full:
            state, reason = "full", "the disk has no room for more than what is written already"
        hot_since = self._hot_since
        checkpoint = Checkpoint.decode(self._meta.checkpoint or b"")
        return StoreStatus(
            path=self.path,
            uuid=self._meta.uuid.hex(),
            state=state,
            reason=reason,
            node_epoch=self._meta.node_epoch,
            volume_count=len(self._volumes),
            lsn=lsn,
            synced_lsn=synced_lsn,
            checkpoint_lsn=checkpoint.lsn - 1,
            journal_bytes=self._journal_bytes(),
            journal_limit=self._geometry.limit,
            hot_bytes=self._hot_bytes(),
            oldest_hot_age_s=(
                0.0 if hot_since is None else round(self._clock.monotonic() - hot_since, 3)
            ),
            pack_count=packs.pack_count,
            pack_bytes=packs.total_bytes,
            cache_bytes=cache_bytes,
            cache_limit=cache_limit,
            disk_free_bytes=self._space.free_bytes,
            disk_total_bytes=self._disk.total_bytes(),
            space_left_bytes=self._space.left_bytes,
        )

    def _journal_bytes(self) -> int:
        _, _, _, _, full, position, _ = self._journal.state()
        return full * self._geometry.segment_bytes + position

    def _hot_bytes(self) -> int:
        return sum(volume.core.state()[3] for volume in self._all())

    def _refresh_space(self, *, stuck: bool = False) -> None:
        # A journal that can still grow needs no segment kept back: it makes another one.
        reserved = 0 if self._pool.can_grow() else TRIM_RESERVE
        self._space.refresh(self._hot_bytes(), reserved, stuck=stuck)

    def _check_sealed(self) -> None:
        if self._sealed is not None:
            raise StoreSealed(self._sealed)

    def _seal(self, error: OSError) -> None:
        """A sync, or a write that must not fail, has failed: take no more writes, ever."""
        if self._sealed is not None:
            return
        self._sealed = f"{error.strerror or error} while writing to {self.path or 'the disk'}"
        self._journal.seal(error.errno or errno.EIO)
        log.critical("store sealed reason=%s", self._sealed)
        with contextlib.suppress(Exception):  # the same disk; the mark is for the next start
            self._meta.seal(self._sealed)

    def close(self) -> None:
        """Finish what was submitted, leave everything durable, unlock. Idempotent."""
        for worker in self._workers:
            worker.stop()
        if not self._closers:
            return
        self._flusher.stop()
        self._reader.stop()
        self._backlog.fail()
        if self._sealed is None:
            try:
                self._leave_clean()
            except OSError as error:
                self._seal(error)
        self._close_all()

    def _leave_clean(self) -> None:
        """All durable; a last mark vouches for every record before it."""
        self._journal.sync()
        with contextlib.suppress(BlockingIOError):  # no segment left for it: it is not needed
            self._journal.append_mark(self._clock.now_ns())
        self._journal.sync()
        self._index.sync()
        self._meta.mark_index_clean(self._boot_id)

    def _close_all(self) -> None:
        while self._closers:
            with contextlib.suppress(OSError):
                self._closers.pop()()


def read_boot_id() -> str:
    """Names this boot of the machine: what the page cache holds is gone when it changes."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"unknown-{os.getpid()}"  # never the same again: the index is rebuilt


def unseal(path: Path) -> None:
    """Take the mark away that a failed sync left. DirectoryLocked when a daemon runs."""
    if not (path / "meta").is_dir():
        raise FileNotFoundError(2, "no data directory of blockd", str(path))
    lock = DirectoryLock(path)
    try:
        kv = LmdbKeyValue(path / "meta", synced=True, map_size=META_MAP_BYTES)
        try:
            Meta(kv, SystemClock()).unseal()
        finally:
            kv.close()
    finally:
        lock.release()


def _codec(name: str) -> int:
    for number, known in CODEC_NAMES.items():
        if known == name:
            return number
    raise InvalidSize("compression", 0, f"{name!r} is none of {', '.join(CODEC_NAMES.values())}")


def _commits(commit: bytes) -> tuple[bytes, ...]:
    return (commit,) if any(commit) else ()


def _log_rebuild(done: int, total: int) -> None:
    if done % 64 == 0 or done == total:
        log.info("index rebuild packs=%d/%d", done, total)


def _check_sizes(size: int, block_size: int, chunk_size: int) -> None:
    if block_size not in BLOCK_SIZES:
        raise InvalidSize("block size", block_size, "must be 512 or 4096")
    if chunk_size & (chunk_size - 1) or not MIN_CHUNK_SIZE <= chunk_size <= MAX_CHUNK_SIZE:
        raise InvalidSize("chunk size", chunk_size, "must be a power of two, 4 KiB to 1 MiB")
    if not 0 < size <= MAX_VOLUME_SIZE:
        raise InvalidSize("volume size", size, "must be from one block to 1 EiB")
    if size % block_size:
        below = size - size % block_size
        raise InvalidSize(
            "volume size",
            size,
            f"must be a multiple of the block size {block_size}, such as {below or block_size}",
        )


__all__ = ["DirectoryLocked", "Store", "StoreOptions", "read_boot_id", "unseal"]
