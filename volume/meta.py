"""What a data directory must never forget: its identity, epochs, volumes and their heads.

Meta lives in a synced `KeyValue` (the LMDB environment `meta/`), so every change is durable when
its method returns, and atomic: a crash leaves either the state before or the state after it. It is
small (a few hundred bytes per volume) and mirrored in memory; reads never touch the disk.

Values are fixed structs with a version byte in front and a crc32c behind (`volume.layout`), since
LMDB's own pages carry no checksum. Unknown versions are refused.

A *head* is the newest state of a volume that is wholly in chunks. `move_heads` sets the heads of
all volumes of a destage round together with the journal checkpoint, in one transaction: what is
before the checkpoint is in the heads, what is after it is replayed from the journal.

Trust in `index/`: that environment is not synced. It is sound after the death of the process, but
not after a power cut. `mark_index_open` notes the boot under which it is written, before the first
write; `mark_index_clean` notes that it was synced and closed. It can be believed if it was closed
cleanly, or if the machine has not booted since.

Threads: every method may be called from any thread.
"""

import struct
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from volume import layout
from volume.disk import Clock
from volume.errors import NoSuchVolume, OldMeta, UnknownFormat, VolumeExists
from volume.framing import corrupt_value, framed, text, unframed, unpacked
from volume.kv import KeyValue
from volume.layout import ZERO_ID, ChunkId
from volume.refs import check_volume_name, format_time
from volume.sites import fail_point

MAX_EPOCH = (1 << 64) - 1  # META_U64


@dataclass(frozen=True, slots=True)
class Head:
    """The newest state of a volume that is wholly in chunks."""

    commit: ChunkId = ZERO_ID
    """Its commit; ZERO_ID before the first one."""
    root: ChunkId = ZERO_ID
    height: int = 1
    """Levels of the tree under `root`; it may lag behind what the volume's size needs."""
    seq: int = 0
    """Last journal record of the volume that is in it."""


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume as `meta/` knows it. Sizes are bytes."""

    number: int
    """Names the volume in the journal; u32, from 1, never used again."""
    uuid: bytes
    name: str
    size: int
    block_size: int
    chunk_size: int
    created_ns: int
    epoch: int
    head: Head


class Meta:
    """The records of one data directory. Formats `kv` when it is empty.

    `path` only names the environment in messages. OldMeta: it is a copy. Errors of every method:
    those of `KeyValue`.
    """

    def __init__(self, kv: KeyValue, clock: Clock, path: str = "meta") -> None:
        self._kv = kv
        self._path = path
        self._lock = threading.Lock()
        if next(kv.items(), None) is None:
            store = layout.META_STORE.pack(
                layout.META_MAGIC, layout.META_VERSION, clock.new_uuid(), clock.now_ns()
            )
            kv.update({layout.META_KEY_STORE: framed(store)})
        self.uuid, self.created_ns = self._load_store()
        self._refuse_copy()
        self.node_epoch: int = self._integer(layout.META_KEY_NODE_EPOCH, layout.META_U64, 0)
        sealed = self._value(layout.META_KEY_SEALED)
        self.sealed_reason: str | None = (
            None if sealed is None else text(layout.META_KEY_SEALED, sealed, path)
        )
        self.checkpoint: bytes | None = self._value(layout.META_KEY_CHECKPOINT)
        self._volumes = self._load_volumes()
        self._numbers = {record.name: record.number for record in self._volumes.values()}

    # -- the node

    def begin_epoch(self) -> int:
        """Raise the node epoch and return it. To be called once at each opening for writing.

        CorruptData: it is the highest that fits, which no counting ever reaches."""
        with self._lock:
            epoch = self.node_epoch + 1
            if epoch > MAX_EPOCH:
                what = f"is {self.node_epoch}, and no higher epoch can be begun"
                corrupt_value(self._path, layout.META_KEY_NODE_EPOCH, what)
            self._put(layout.META_KEY_NODE_EPOCH, layout.META_U64.pack(epoch))
            self.node_epoch = epoch
            return epoch

    def seal(self, reason: str) -> None:
        """Note that a sync failed. The first reason stays: the others follow from it."""
        with self._lock:
            if self.sealed_reason is None:
                self.sealed_reason = reason  # known here even if the disk cannot take it
                self._put(layout.META_KEY_SEALED, reason.encode())

    def unseal(self) -> None:
        """Take the mark of `seal` away."""
        with self._lock:
            self._kv.update({}, [layout.META_KEY_SEALED])
            self.sealed_reason = None

    # -- trust in index/

    def index_trusted(self, boot_id: str) -> bool:
        """Whether `index/` is as it was left, given the boot id of the running kernel."""
        mark = self._value(layout.META_KEY_INDEX_TRUST)
        if not mark:
            return False
        clean = layout.META_INDEX_TRUST.unpack_from(mark)[0] == 1
        return clean or mark[layout.META_INDEX_TRUST.size :] == boot_id.encode()

    def mark_index_open(self, boot_id: str) -> None:
        """Note that `index/` is complete and will be written from now on under this boot."""
        mark = layout.META_INDEX_TRUST.pack(0) + boot_id.encode()
        self._put(layout.META_KEY_INDEX_TRUST, mark)

    def mark_index_clean(self, boot_id: str) -> None:
        """Note that `index/` has been synced and will not be written any more."""
        mark = layout.META_INDEX_TRUST.pack(1) + boot_id.encode()
        self._put(layout.META_KEY_INDEX_TRUST, mark)

    def distrust_index(self) -> None:
        """Have `index/` rebuilt at the next opening, whatever happens until then."""
        self._kv.update({}, [layout.META_KEY_INDEX_TRUST])

    # -- volumes

    def volumes(self) -> list[VolumeRecord]:
        """All volumes, sorted by name."""
        with self._lock:
            return sorted(self._volumes.values(), key=lambda record: record.name)

    def volume(self, name: str) -> VolumeRecord:
        """The volume of that name, or NoSuchVolume."""
        with self._lock:
            return self._volumes[self._number(name)]

    def numbered(self, number: int) -> VolumeRecord | None:
        """The volume of that number; None when it was deleted, or never was."""
        with self._lock:
            return self._volumes.get(number)

    def create(
        self,
        name: str,
        *,
        uuid: bytes,
        size: int,
        block_size: int,
        chunk_size: int,
        created_ns: int,
        head: Head | None = None,
        rows: Callable[[int], Mapping[bytes, bytes]] | None = None,
    ) -> VolumeRecord:
        """A new volume with a number of its own, in epoch 1. VolumeExists, InvalidName.

        `rows(number)` are put in the same transaction."""
        check_volume_name(name)
        with self._lock:
            if name in self._numbers:
                raise VolumeExists(name)
            number = self.next_number
            record = VolumeRecord(
                number, uuid, name, size, block_size, chunk_size, created_ns, 1, head or Head()
            )
            self._store(
                record,
                {
                    layout.META_KEY_NEXT_VOLUME: framed(layout.META_U32.pack(number + 1)),
                    _name_key(name): framed(layout.META_U32.pack(number)),
                    **(rows(number) if rows else {}),
                },
            )
            self._numbers[name] = number
            return record

    def delete(self, name: str, rows: Iterable[bytes] = ()) -> VolumeRecord:
        """Forget a volume and the keys `rows`; return what it was. Its chunks are gc's business."""
        with self._lock:
            record = self._volumes[self._number(name)]
            self._kv.update({}, [_volume_key(record.number), _name_key(name), *rows])
            del self._volumes[record.number]
            del self._numbers[name]
            return record

    def rename(self, old: str, new: str) -> VolumeRecord:
        """Give a volume another name that is free."""
        check_volume_name(new)
        with self._lock:
            record = self._volumes[self._number(old)]
            if old == new:
                return record
            if new in self._numbers:
                raise VolumeExists(new)
            record = replace(record, name=new)
            name = {_name_key(new): framed(layout.META_U32.pack(record.number))}
            self._store(record, name, [_name_key(old)])
            del self._numbers[old]
            self._numbers[new] = record.number
            return record

    def resize(self, name: str, size: int) -> VolumeRecord:
        """Set a volume's size. Whether it may shrink is for the caller to decide."""
        with self._lock:
            record = replace(self._volumes[self._number(name)], size=size)
            self._store(record)
            return record

    def replace_head(
        self,
        name: str,
        head: Head,
        size: int,
        rows: Mapping[bytes, bytes],
        *,
        epoch: int | None = None,
        deletes: Iterable[bytes] = (),
    ) -> VolumeRecord:
        """Give a volume another head and size, in its next epoch (or a later one, `epoch`), put
        `rows` and delete others: all or nothing.

        Records of earlier epochs that the journal still has are not the volume's any more."""
        with self._lock:
            old = self._volumes[self._number(name)]
            record = replace(old, head=head, size=size, epoch=epoch or old.epoch + 1)
            assert record.epoch >= old.epoch
            self._store(record, rows, list(deletes))
            return record

    def put_rows(self, rows: Mapping[bytes, bytes]) -> None:
        """Put rows of `volume.history`, all or nothing."""
        self._kv.update(rows)

    def move_heads(
        self,
        heads: Mapping[int, Head],
        checkpoint: bytes,
        puts: Mapping[bytes, bytes] | None = None,
        deletes: Iterable[bytes] = (),
    ) -> None:
        """Move heads (volume number -> head) and the journal checkpoint in one transaction.

        `checkpoint` is the journal's own, opaque here; so are the rows in `puts` and `deletes`.
        Volumes deleted meanwhile are passed over. The chunks that the heads name must be durable
        before."""
        with self._lock:
            moved = {
                number: replace(self._volumes[number], head=head)
                for number, head in heads.items()
                if number in self._volumes
            }
            values = {
                _volume_key(number): _volume_value(record) for number, record in moved.items()
            }
            values[layout.META_KEY_CHECKPOINT] = framed(checkpoint)
            fail_point("head.transaction.before")
            self._kv.update({**(puts or {}), **values}, deletes)
            fail_point("head.transaction.after")
            self._volumes.update(moved)
            self.checkpoint = checkpoint

    @property
    def next_number(self) -> int:
        """Of the next volume; none that was ever given is as high."""
        return self._integer(layout.META_KEY_NEXT_VOLUME, layout.META_U32, 1)

    # -- inside; `_lock` is held

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            raise NoSuchVolume(name)
        return number

    def _store(
        self,
        record: VolumeRecord,
        puts: Mapping[bytes, bytes] | None = None,
        deletes: list[bytes] | None = None,
    ) -> None:
        self._kv.update(
            {**(puts or {}), _volume_key(record.number): _volume_value(record)}, deletes or []
        )
        self._volumes[record.number] = record

    def _put(self, key: bytes, body: bytes) -> None:
        self._kv.update({key: framed(body)})

    def _value(self, key: bytes) -> bytes | None:
        value = self._kv.get(key)
        return None if value is None else unframed(key, value, self._path)

    def _integer(self, key: bytes, fields: struct.Struct, default: int) -> int:
        """What the only field of a value says; `default` when there is no such value."""
        value = self._value(key)
        return default if value is None else int(unpacked(fields, key, value, self._path)[0])

    def _load_store(self) -> tuple[bytes, int]:
        value = self._value(layout.META_KEY_STORE)
        if value is None or len(value) != layout.META_STORE.size:
            raise UnknownFormat(self._path, "has no store record")
        magic, version, uuid, created_ns = layout.META_STORE.unpack(value)
        if magic != layout.META_MAGIC or version != layout.META_VERSION:
            raise UnknownFormat(self._path, f"magic {magic!r}, format version {version}")
        return uuid, created_ns

    def _refuse_copy(self) -> None:
        """A copy of `volume.metabackup` says that it is one: its time is over."""
        copied = self._value(layout.META_KEY_BACKUP)
        if copied is not None:
            time_ns, _ = unpacked(layout.META_BACKUP, layout.META_KEY_BACKUP, copied, self._path)
            raise OldMeta(f"it was made by backup-meta at {format_time(time_ns)}")

    def _load_volumes(self) -> dict[int, VolumeRecord]:
        records = {}
        for key, value in self._kv.items(layout.META_PREFIX_VOLUME):
            record = self._parse_volume(key, unframed(key, value, self._path))
            records[record.number] = record
        return records

    def _parse_volume(self, key: bytes, body: bytes) -> VolumeRecord:
        fixed = layout.META_VOLUME
        if len(body) < fixed.size:
            corrupt_value(self._path, key, f"is {len(body)} bytes long")
        (number, uuid, size, block_size, chunk_size, created_ns, epoch, *head, name_length) = (
            fixed.unpack_from(body)
        )
        if len(body) != fixed.size + name_length or key != _volume_key(number):
            corrupt_value(self._path, key, "does not fit its key or its length")
        name = text(key, body[fixed.size :], self._path)
        return VolumeRecord(
            number, uuid, name, size, block_size, chunk_size, created_ns, epoch, Head(*head)
        )


def volume_put(record: VolumeRecord) -> dict[bytes, bytes]:
    """The rows of a volume, for who makes a `meta/` anew."""
    number = framed(layout.META_U32.pack(record.number))
    return {_volume_key(record.number): _volume_value(record), _name_key(record.name): number}


def _volume_key(number: int) -> bytes:
    return layout.META_PREFIX_VOLUME + layout.META_NUMBER_KEY.pack(number)


def _name_key(name: str) -> bytes:
    return layout.META_PREFIX_NAME + name.encode()


def _volume_value(record: VolumeRecord) -> bytes:
    name, head = record.name.encode(), record.head
    fixed = layout.META_VOLUME.pack(
        record.number,
        record.uuid,
        record.size,
        record.block_size,
        record.chunk_size,
        record.created_ns,
        record.epoch,
        head.commit,
        head.root,
        head.height,
        head.seq,
        len(name),
    )
    return framed(fixed + name)
