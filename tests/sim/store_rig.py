"""A whole store on the simulated disk and clock, small enough that everything happens often.

`StoreRig` opens a `volume.store.Store` without threads: each submit is finished when it returns,
and `destage`, `collect` and `tend` are called by hand. Segments are 16 KiB, so a journal goes round
after a few writes, and packs fill up at once.

LMDB is a dict here. An update of meta/ goes into the disk's trace as a mark (`MetaCommitted`), in
order with the disk's own operations: a crash image comes with the meta that was committed by then
(`meta_at`). index/ is not synced until the store is closed: after a power cut it is what it was at
its last sync, after kill -9 as it was (`index_at`), and the store must know when to believe it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from blockd.device import BlockDevice
from native import (
    FLAG_FUA,
    OP_BLOCK_STATUS,
    OP_FLUSH,
    OP_READ,
    OP_UNMAP,
    OP_WRITE,
    OP_WRITE_ZEROES,
    Request,
)
from tests.sim.image import Image
from tests.sim.simclock import SimClock
from tests.sim.simdisk import SimDisk
from volume.kv import KeyValue, MemoryKeyValue
from volume.options import StoreOptions
from volume.past import MAX_OPEN
from volume.scheduler import InlineScheduler, Scheduler
from volume.store import Store
from volume.volume import Volume

KIB = 1024
SEGMENT_BYTES = 16 * KIB
MAX_PIECE = (SEGMENT_BYTES - 4096) // 2 & ~4095
"""Longest record payload in such a segment; longer writes become several records."""

SMALL = StoreOptions(
    journal_limit=6 * SEGMENT_BYTES,
    segment_bytes=SEGMENT_BYTES,
    pack_bytes=48 * KIB,
    reserve_bytes=0,
    cache_bytes=256 * KIB,
    manifest_cache_bytes=64 * KIB,
    window_bytes=0,
    window_s=0,
    history_keep="",
    gc_condemn_s=0.0,
    damage_patience_s=0.0,
)


@dataclass(frozen=True, slots=True)
class MetaCommitted:
    """Mark for a trace: from here on this is what meta/ holds after any crash."""

    items: Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class IndexChanged:
    """Mark for a trace: this is in index/ now; `synced` when a power cut leaves it so."""

    items: Mapping[bytes, bytes]
    synced: bool


class UnsyncedKeyValue(MemoryKeyValue):
    """A KeyValue whose updates are durable when `sync` returns."""

    def __init__(self, disk: SimDisk, items: Mapping[bytes, bytes] | None) -> None:
        super().__init__(items)
        self._disk = disk

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        super().update(puts, deletes)
        self._disk.mark(IndexChanged(self.snapshot(), False))

    def sync(self) -> None:
        self._disk.mark(IndexChanged(self.snapshot(), True))


class TracedKeyValue(MemoryKeyValue):
    """A synced KeyValue: durable when `update` returns, in the order of the disk's trace."""

    def __init__(self, disk: SimDisk, items: Mapping[bytes, bytes] | None) -> None:
        super().__init__(items)
        self._disk = disk

    def update(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = ()) -> None:
        items = self.snapshot()
        for key in deletes:
            items.pop(key, None)
        items.update(puts)
        self._disk.mark(MetaCommitted(items))  # PowerCut when the machine is off
        self.restore(items)


def meta_at(marks: Sequence[object], base: Mapping[bytes, bytes]) -> Mapping[bytes, bytes]:
    """What meta/ holds after these marks; `base` when the trace began."""
    for mark in reversed(marks):
        if isinstance(mark, MetaCommitted):
            return mark.items
    return base


def index_at(
    marks: Sequence[object], base: Mapping[bytes, bytes], *, killed: bool = False
) -> Mapping[bytes, bytes]:
    """What a power cut, or kill -9, after these marks leaves of index/; `base` as in `meta_at`."""
    for mark in reversed(marks):
        if isinstance(mark, IndexChanged) and (killed or mark.synced):
            return mark.items
    return base


def read_device(device: BlockDevice, offset: int, length: int) -> bytes:
    """Bytes of any device; the read must succeed, and at once."""
    request = _read(device, offset, length)
    assert request.error == 0, (request.error, request.message)
    assert isinstance(request.data, (bytes, bytearray))
    return bytes(request.data)


def read_error(device: BlockDevice, offset: int, length: int) -> int:
    """The errno of a read of any device."""
    return _read(device, offset, length).error


def _read(device: BlockDevice, offset: int, length: int) -> Request:
    finished: list[Request] = []
    request = Request(OP_READ, offset, length)
    device.submit([request], finished.extend)
    assert finished == [request], "the read waits"
    return request


class StoreRig:
    """An open store on `image` and the meta that belongs to it; new ones by default."""

    def __init__(
        self,
        image: Image | None = None,
        meta: Mapping[bytes, bytes] | None = None,
        index: Mapping[bytes, bytes] | None = None,
        *,
        options: StoreOptions = SMALL,
        scheduler: Scheduler | None = None,
        disk: SimDisk | None = None,
        clock: SimClock | None = None,
        boot: str = "boot-1",
        seed: int = 0,
    ) -> None:
        """`index`: what is left of it, if `boot` is still the boot that wrote it. Stores of the
        same `seed` have the same uuid. `clock`: one that goes on, instead of a new one."""
        self.options = options
        self.boot = boot
        self.disk = disk or SimDisk(image)
        self.clock = clock or SimClock(seed)
        self.base_meta, self.base_index = dict(meta or {}), dict(index or {})
        self.meta = TracedKeyValue(self.disk, meta)
        self.index = UnsyncedKeyValue(self.disk, index)
        self.store = Store(
            self.disk,
            self.clock,
            self.meta,
            self._open_index,
            scheduler or InlineScheduler(),
            options,
            boot_id=boot,
        )

    def _open_index(self, fresh: bool) -> KeyValue:
        if fresh:
            self.index.restore({})
        return self.index

    # -- opening it again

    def killed(self, options: StoreOptions | None = None) -> "StoreRig":
        """The store after kill -9: all that was written is there, the index too."""
        return StoreRig(
            self.disk.image(),
            self.meta.snapshot(),
            self.index.snapshot(),
            options=options or self.options,
            clock=self.clock,
            boot=self.boot,
        )

    def rebooted(
        self, image: Image | None = None, options: StoreOptions | None = None
    ) -> "StoreRig":
        """The store after a power cut that left `image` (default: everything written)."""
        return StoreRig(
            image or self.disk.image(),
            self.meta.snapshot(),
            options=options or self.options,
            clock=self.clock,
            boot=self.boot + "'",
        )

    def closed(self) -> "StoreRig":
        """The store closed and opened again."""
        self.store.close()
        return self.killed()

    # -- requests

    def volume(self, name: str) -> Volume:
        volume = self.store.get(name)
        assert volume is not None, name
        return volume

    def submit(self, name: str, *batch: Request) -> list[Request]:
        """Submit a batch; those of its requests that are finished."""
        finished: list[Request] = []
        self.volume(name).submit(batch, finished.extend)
        return finished

    def run(self, name: str, request: Request) -> Request:
        """Submit one request, which must be finished at once."""
        assert self.submit(name, request) == [request], "the request waits"
        return request

    def write(self, name: str, offset: int, data: bytes, *, fua: bool = False) -> int:
        """Write; returns the errno."""
        flags = FLAG_FUA if fua else 0
        return self.run(name, Request(OP_WRITE, offset, len(data), data, flags)).error

    def fill(self, name: str, offset: int, data: bytes) -> None:
        """Write a lot, in blocks, with new segments made on the way; the journal must have room."""
        for at in range(0, len(data), 4096):
            self.tend()
            assert self.write(name, offset + at, data[at : at + 4096]) == 0

    def zero(self, name: str, offset: int, length: int, *, unmap: bool = False) -> int:
        op = OP_UNMAP if unmap else OP_WRITE_ZEROES
        return self.run(name, Request(op, offset, length)).error

    def flush(self, name: str) -> int:
        return self.run(name, Request(OP_FLUSH)).error

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Bytes of a volume (all of them by default); the read must succeed."""
        if length is None:
            length = self.volume(name).size - offset
        request = self.run(name, Request(OP_READ, offset, length))
        assert request.error == 0, request.message
        assert isinstance(request.data, (bytes, bytearray))
        return bytes(request.data)

    def read_error(self, name: str, offset: int, length: int) -> int:
        """The errno of a read."""
        return self.run(name, Request(OP_READ, offset, length)).error

    def extents(self, name: str, offset: int, length: int) -> list[tuple[int, int]]:
        request = self.run(name, Request(OP_BLOCK_STATUS, offset, length))
        assert request.error == 0, request.message
        assert isinstance(request.data, list)
        return request.data

    # -- versions

    def read_version(self, ref: str) -> bytes:
        """All bytes of a version, opened and closed for that. What `open_version` raises."""
        device = self.store.open_version(ref)
        device.attach("reader")
        try:
            return read_device(device, 0, device.size)
        finally:
            device.detach("reader")
            if len(self.store.versions._opened.all()) > MAX_OPEN // 2:
                self.close_idle()

    def close_idle(self) -> None:
        """Close the versions that nobody reads, before their time."""
        opened = self.store.versions._opened
        for device in opened.all():
            if not device.clients:
                opened._close(device)

    # -- upkeep

    def tend(self) -> None:
        """Upkeep until nothing is left to do."""
        while self.store.tend():
            pass

    def settle(self) -> None:
        """Destage all, free what can be freed, and have segments ready."""
        self.store.destage()
        self.store.collect()
        self.tend()
