"""The catalog: which volumes there are, and what changes them as a whole.

Every change is durable when its method returns, and is one transaction of `meta/`. The catalog's
lock is the store's control lock: it is held while volumes come, go or change, and by the destager
while it freezes them or moves their heads. It is not held while a disk is waited for longer than
one such transaction, or one sync of the journal.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from native import OP_UNMAP, Request, VolumeCore
from volume import codecs
from volume.errors import (
    InvalidSize,
    JournalFull,
    NoSuchVolume,
    ShrinkRefused,
    SnapshotExists,
    StoreSealed,
    VolumeBusy,
    VolumeHasSnapshots,
    VolumeReplicated,
    WouldWait,
)
from volume.headrecord import described
from volume.heads import Heads, Machinery
from volume.history import History
from volume.historyrows import Settings, SnapshotRow, VersionRow, settings_put, versions_put
from volume.meta import Head, Meta, VolumeRecord
from volume.model import (
    BLOCK_SIZES,
    DEFAULT_BLOCK_SIZE,
    DEFAULT_CHUNK_SIZE,
    MAX_CHUNK_SIZE,
    MAX_VOLUME_SIZE,
    MIN_CHUNK_SIZE,
    VolumeInfo,
)
from volume.points import PointRecord, encode_tail
from volume.refs import check_new_volume_name
from volume.seal import Seal
from volume.sites import fail_point
from volume.volume import Volume

log = logging.getLogger(__name__)


Rows = Mapping[bytes, bytes]


class Catalog:
    """The volumes of an open store. Control methods wait for disks; any thread may call them."""

    def __init__(
        self,
        machinery: Machinery,
        meta: Meta,
        history: History,
        seal: Seal,
        going: Callable[[int], None],
    ) -> None:
        """`going(number)`: a volume is deleted; past versions of it that are open must not be read
        on."""
        self.lock = threading.Lock()
        self.naming = threading.Lock()  # after `lock`: names are given, or volumes go or change
        self._parts = machinery
        self._meta = meta
        self._history = history
        self._seal = seal
        self.going = going
        self.protect: Callable[[VersionRow], bool] = lambda _row: True
        """Told of a version whose tree has just become a head: gc may be about to give it up
        (`volume.gc`). Set by `volume.upkeep`."""
        self.unrecorded: set[int] = set()
        """Numbers of volumes that the log after the checkpoint has no HEAD record of."""
        self.replicated: set[int] = set()
        """Numbers of volumes that other nodes have as well; see `volume.replica`."""
        self.attached: Callable[[], None] = lambda: None
        """Told that a volume has got its first client. Set by `volume.upkeep`."""
        self._volumes = {record.name: self._make(record) for record in meta.volumes()}
        self.heads = Heads(self, machinery, meta, history, seal)

    def _make(self, record: VolumeRecord) -> Volume:
        parts = self._parts
        core = VolumeCore(
            *(parts.journal, parts.table, record.number, record.epoch, record.chunk_size),
            *(record.size, record.head.seq, 0),
        )
        return Volume(
            record,
            core,
            clock=parts.clock,
            scheduler=parts.scheduler,
            reader=parts.reader,
            flusher=parts.flusher,
            backlog=parts.backlog,
            compare=parts.compare,
            clone_range=parts.clone_range,
            attached=lambda: self.attached(),
        )

    def succeed(self, record: VolumeRecord) -> Volume:
        """Another device takes the place of the one with that name. The lock is held."""
        successor = self._make(record)
        self._volumes = {**self._volumes, record.name: successor}
        return successor

    # -- looking

    def all(self) -> list[Volume]:
        with self.lock:
            return self.unlocked()

    def unlocked(self) -> list[Volume]:
        """All volumes, for who holds the lock."""
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

    def named(self, name: str) -> Volume:
        volume = self._volumes.get(name)
        if volume is None:
            raise NoSuchVolume(name)
        return volume

    def of_uuid(self, uuid: bytes) -> Volume | None:
        """The volume with that uuid, whatever it is called now."""
        found = (each for each in self._volumes.values() if each.uuid == uuid)
        return next(found, None)

    def is_replicated(self, volume: Volume) -> bool:
        """Whether other nodes have it as well."""
        return volume.record.number in self.replicated

    def numbered(self, number: int) -> Volume:
        """The volume of that number, whatever it is called now."""
        for volume in self._volumes.values():
            if volume.record.number == number:
                return volume
        raise NoSuchVolume(f"number {number}")

    def __len__(self) -> int:
        return len(self._volumes)

    # -- changing

    def create(
        self,
        name: str,
        size: int,
        *,
        block_size: int = DEFAULT_BLOCK_SIZE,
        chunk_size: int = DEFAULT_CHUNK_SIZE,
        compression: str | None = None,
    ) -> VolumeInfo:
        """Make an empty volume; durable on return. InvalidName, InvalidSize, VolumeExists.

        `compression`: the codec of its chunks, None for the store's default."""
        check_new_volume_name(name)
        check_sizes(size, block_size, chunk_size)
        settings = self._history.defaults()
        if compression is not None:
            settings = replace(settings, codec=codecs.number(compression))
        return self._add(name, size, block_size, chunk_size, Head(), settings)

    def create_replica(
        self, name: str, uuid: bytes, size: int, block_size: int, chunk_size: int, rows: Rows
    ) -> VolumeInfo:
        """Make an empty volume that is one node's part of a larger one: `uuid` is of that, and
        `rows` are put in the same transaction. As `create`."""
        check_new_volume_name(name)
        check_sizes(size, block_size, chunk_size)
        settings = self._history.defaults()
        return self._add(
            *(name, size, block_size, chunk_size, Head(), settings), uuid=uuid, more=rows
        )

    def clone(self, name: str, source: VolumeRecord, row: VersionRow) -> VolumeInfo:
        """Make a volume whose first version is `row` of `source`, which must stay until then."""
        check_new_volume_name(name)
        head = Head(row.commit, row.root, row.height, 0)
        settings = replace(
            self._history.settings(source.number),
            schedule_s=0,
            schedule_keep="",
            schedule_next_ns=0,
        )
        info = self._add(name, row.size, source.block_size, source.chunk_size, head, settings)
        fail_point("clone.made")
        self.protect(row)
        return info

    def receive(self, name: str, block_size: int, chunk_size: int, row: VersionRow) -> VolumeInfo:
        """Make a volume whose first version is `row`, which came from elsewhere."""
        check_sizes(row.size, block_size, chunk_size)
        head = Head(row.commit, row.root, row.height, 0)
        info = self._add(name, row.size, block_size, chunk_size, head, self._history.defaults())
        self.protect(row)
        return info

    def _add(
        self,
        name: str,
        size: int,
        block_size: int,
        chunk_size: int,
        head: Head,
        settings: Settings,
        *,
        uuid: bytes | None = None,
        more: Rows | None = None,
    ) -> VolumeInfo:
        parts = self._parts
        with self.lock:
            self._seal.check()
            now_ns = parts.clock.now_ns()
            lsn = parts.journal.state()[0]

            def rows(number: int) -> Mapping[bytes, bytes]:
                first = VersionRow(
                    *(number, 0, 1, lsn, now_ns, size, 0, head.commit, head.root, head.height)
                )
                put = {**versions_put([first]), **settings_put(number, settings)}
                return {**put, **(more or {})}

            fail_point("volume.create.before")
            record = self._meta.create(
                name,
                uuid=uuid or parts.clock.new_uuid(),
                size=size,
                block_size=block_size,
                chunk_size=chunk_size,
                created_ns=now_ns,
                head=head,
                rows=rows,
            )
            fail_point("volume.create.after")
            self.append_head(record)
            volume = self._make(record)
            if more is not None:
                self.replicated.add(record.number)
            self._volumes = {**self._volumes, record.name: volume}
            log.info("volume created volume=%s size=%d", name, size)
            return self.info_of(volume)

    def append_head(self, record: VolumeRecord, *, gone: bool = False) -> None:
        """Tell the journal as well what `meta/` has been told; see `volume.headrecord`.

        The change is made: what keeps the copy from being written is told to nobody but the log.
        Where only a segment is missing for it, it is tried again."""
        now_ns = self._parts.clock.now_ns()
        data = described(record, now_ns, gone=gone)
        try:
            self._parts.journal.append_head(
                record.number, record.epoch, record.head.seq, data, now_ns
            )
        except BlockingIOError:
            self.unrecorded.add(record.number)
        except OSError as error:
            log.warning("no head record in the journal volume=%s error=%s", record.name, error)

    def append_heads(self) -> None:
        """Append the HEAD records that are still missing."""
        for number in list(self.unrecorded):
            with self.lock:
                self.unrecorded.discard(number)
                record = self._meta.numbered(number)
                if record is not None and self._seal.reason is None:
                    self.append_head(record)
            if number in self.unrecorded:
                return  # still no segment

    def delete(self, name: str, *, force: bool = False) -> None:
        """Forget a volume and its versions; durable on return. Their space comes back with gc.

        VolumeBusy while it is attached, VolumeHasSnapshots; unless `force`: its clients then get
        ESHUTDOWN."""
        with self.lock:
            self._seal.check()
            volume = self.alone(name, "delete")
            number = volume.record.number
            if volume.clients and not force:
                raise VolumeBusy(name, volume.clients)
            if (count := self._history.snapshot_counts.get(number, 0)) and not force:
                raise VolumeHasSnapshots(name, count)
            self._delete(volume, ())

    def delete_replica(self, volume: Volume, rows: Iterable[bytes]) -> None:
        """Forget this node's part of a volume, which no node has any more, its versions, and the
        keys `rows`; durable on return."""
        with self.lock:
            self._seal.check()
            self._delete(volume, rows)
            self.replicated.discard(volume.record.number)

    def _delete(self, volume: Volume, rows: Iterable[bytes]) -> None:
        name, number = volume.name, volume.record.number
        with self.naming:
            fail_point("volume.delete.before")
            gone = self._meta.delete(name, [*self._history.keys_of(number), *rows])
            fail_point("volume.delete.after")
            self.append_head(gone, gone=True)
            self._history.forgotten(number)
            volume.deleted = True
            volume.core.retire()
            self._volumes = {key: kept for key, kept in self._volumes.items() if key != name}
        self.going(number)
        self._parts.table.drop_volume(number)
        log.info("volume deleted volume=%s", name)

    def rename(self, name: str, new_name: str) -> VolumeInfo:
        """Give a volume another name; durable on return. Attached clients notice nothing."""
        with self.lock:
            self._seal.check()
            return self._rename(self.alone(name, "rename"), new_name)

    def rename_replica(self, volume: Volume, new_name: str) -> None:
        """As `rename`, of a node's part of a volume that has that name on all of them."""
        with self.lock:
            self._seal.check()
            self._rename(volume, new_name)

    def _rename(self, volume: Volume, new_name: str) -> VolumeInfo:
        name = volume.name
        check_new_volume_name(new_name)
        with self.naming:
            volume.record = self._meta.rename(name, new_name)
            self.append_head(volume.record)
            others = {key: kept for key, kept in self._volumes.items() if key != name}
            self._volumes = {**others, new_name: volume}
        log.info("volume renamed volume=%s new_name=%s", name, new_name)
        return self.info_of(volume)

    def resize(self, name: str, size: int, *, force: bool = False) -> VolumeInfo:
        """Change a volume's size; durable on return. Growing shows zeros; shrinking, which needs
        `force`, drops what is cut off from the head. ShrinkRefused, InvalidSize.

        The versions before keep their size: the one of now becomes a point, and a record that
        unmaps what comes or goes makes the next version another one."""
        with self.lock:
            self._seal.check()
            volume = self.alone(name, "resize")
            record = volume.record
            check_sizes(size, record.block_size, record.chunk_size)
            if size < record.size and not force:
                raise ShrinkRefused(name, record.size, size)
            if size != record.size:
                self.add_points([name], None)
                volume.core.resize(max(size, record.size))
                try:
                    self._unmap(volume, min(size, record.size), max(size, record.size))
                except BaseException:
                    volume.core.resize(record.size)
                    raise
            fail_point("resize.unmapped")
            volume.record = self._meta.resize(name, size)
            fail_point("resize.stored")
            self.append_head(volume.record)
            volume.core.resize(size)
            log.info("volume resized volume=%s size=%d", name, size)
            return self.info_of(volume)

    def _unmap(self, volume: Volume, start: int, end: int) -> None:
        """Unmap [start, end), durably, before the size itself moves: after a crash in between the
        volume has its old size, and zeros there."""
        request = Request(OP_UNMAP, start, end - start)
        _, _, _, blocked = volume.core.submit([request], self._parts.clock.now_ns())
        if blocked:
            raise JournalFull(f"volume {volume.name}: the journal is full; try again later")
        if request.error:
            raise StoreSealed(f"unmap failed with errno {request.error}")
        self._seal.sync_journal()

    def alone(self, name: str, what: str) -> Volume:
        """The volume, unless other nodes have it as well: they would differ from here on."""
        volume = self.named(name)
        if volume.record.number in self.replicated:
            raise VolumeReplicated(name, what)
        return volume

    # -- for snapshots and restores

    def add_points(
        self,
        names: Iterable[str],
        snapshot: str | None,
        *,
        pinned: bool = False,
        scheduled: bool = False,
        wait: bool = True,
    ) -> list[tuple[Volume, VersionRow, SnapshotRow | None]]:
        """Note what the volumes called `names` are at this moment, as snapshots if a name is given.

        A barrier over every write that is acknowledged: all are taken at one position of the log.
        It waits for no disk: a record in the journal says so, which is as durable as the writes
        before it. Only when the journal has no room for that record, it waits until both the log
        and the names are durable. Without `wait` it raises WouldWait instead, also where it would
        wait for somebody else who gives names. NoSuchVolume, SnapshotExists: nothing was noted."""
        parts, history = self._parts, self._history
        with self._may_name(wait=wait):
            taken = [self.named(name) for name in dict.fromkeys(names)]
            if snapshot is not None and any(map(self.is_replicated, taken)):
                raise VolumeReplicated(taken[0].name, "name a state of")
            for volume in taken:
                number = volume.record.number
                if snapshot is not None and history.has_snapshot(number, snapshot):
                    raise SnapshotExists(volume.name, snapshot)
            now_ns = parts.clock.now_ns()
            tail = encode_tail(
                now_ns,
                snapshot or "",
                pinned=pinned,
                scheduled=scheduled,
                states=[(volume.record.epoch, volume.record.size) for volume in taken],
            )
            cores = [volume.core for volume in taken]
            in_journal = True
            try:
                lsn, seqs = parts.journal.append_point(cores, tail, now_ns)
                fail_point("snapshot.recorded")
            except BlockingIOError:
                if not wait:
                    raise WouldWait() from None
                in_journal = False
                (next_lsn, *_), seqs = parts.journal.point(cores)
                lsn = next_lsn - 1
            points: list[VersionRow] = []
            made: list[tuple[Volume, VersionRow, SnapshotRow | None]] = []
            for volume, seq in zip(taken, seqs, strict=True):
                record = volume.record
                row = None
                # No row is of a later seq than the head, but for points, whose seqs are in memory.
                if seq <= record.head.seq or (record.number, seq) in history.points:
                    row = history.version(record.number, seq) or history.point(record.number, seq)
                if row is None:
                    row = VersionRow(record.number, seq, record.epoch, lsn, now_ns, record.size)
                    points.append(row)
                named = snapshot and SnapshotRow(
                    record.number, snapshot, seq, now_ns, pinned, scheduled
                )
                made.append((volume, row, named or None))
            snapshots = [each for _, _, each in made if each is not None]
            if in_journal:
                history.note_later(points, snapshots, lsn)
            elif points or snapshots:
                self._seal.sync_journal()
                history.add_points(points, snapshots)
        return made

    @contextlib.contextmanager
    def _may_name(self, *, wait: bool) -> Iterator[None]:
        if not self.naming.acquire(blocking=wait):
            raise WouldWait()
        try:
            yield
        finally:
            self.naming.release()

    def replay_point(self, point: PointRecord) -> None:
        """At a start: what a POINT record says that `meta/` does not have yet."""
        history = self._history
        points: list[VersionRow] = []
        snapshots: list[SnapshotRow] = []
        known = {volume.record.number for volume in self._volumes.values()}
        for each in point.volumes:
            if each.number not in known:
                continue
            number, seq = each.number, each.seq
            if history.version(number, seq) is None and history.point(number, seq) is None:
                points.append(
                    VersionRow(number, seq, each.epoch, point.lsn, point.time_ns, each.size)
                )
            if point.name and history.snapshot(number, point.name) is None:
                snapshots.append(
                    SnapshotRow(
                        number, point.name, seq, point.time_ns, point.pinned, point.scheduled
                    )
                )
        history.note_later(points, snapshots, point.lsn)

    def info_of(self, volume: Volume) -> VolumeInfo:
        """What a person sees of a volume."""
        number = volume.record.number
        codec = self._history.settings(number).codec
        return replace(
            volume.info(),
            compression=codecs.CODEC_NAMES.get(codec, f"codec {codec}, which is unknown here"),
            snapshot_count=self._history.snapshot_counts.get(number, 0),
        )


def check_sizes(size: int, block_size: int, chunk_size: int) -> None:
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
