"""One machine of a world: a disk, and a store on it without threads, which crashes lose or leave.

Everything that a store does happens at once, in the event that asked for it; between events the
machine may lose its power or its process, and within them its power, at any operation of the disk.
"""

import random
from dataclasses import replace

from tests.sim.cluster.timeline import NodeClock
from tests.sim.crash import survivors
from tests.sim.image import Image
from tests.sim.simdisk import Inode, SimDisk
from tests.sim.store_rig import KIB, TracedKeyValue, UnsyncedKeyValue, index_at
from tests.sim.world.stamps import Violation
from volume.diskerror import SyncFailed
from volume.kv import KeyValue
from volume.layout import META_KEY_SEALED
from volume.options import StoreOptions
from volume.scheduler import InlineScheduler
from volume.store import Store

SEGMENT_BYTES = 32 * KIB
LONGEST_WRITE = 12 * KIB
"""That is one record in such a segment: it shows as a whole or not at all."""

OPTIONS = StoreOptions(
    journal_limit=8 * SEGMENT_BYTES,
    segment_bytes=SEGMENT_BYTES,
    pack_bytes=48 * KIB,
    reserve_bytes=0,
    cache_bytes=64 * KIB,
    manifest_cache_bytes=16 * KIB,
    window_bytes=40 * SEGMENT_BYTES,
    window_s=3600,
    history_keep="",
    compression="none",
    destage_fill=0.5,
    gc_interval_s=1e6,  # when the nemesis says so
    gc_condemn_s=0.0,
    damage_patience_s=30.0,  # longer than a disk of a world cannot be read
)


WINDOWS = (2, 40, 40)
"""Segments: with few of them a member that was away may need all of the volume."""


def drawn_options(rng: random.Random) -> StoreOptions:
    """Of all nodes of a world."""
    return replace(OPTIONS, window_bytes=rng.choice(WINDOWS) * SEGMENT_BYTES)


Rot = dict[tuple[str, int], int]
"""(file, byte of it) -> bits that have gone bad, until it is written again."""


class CheckedDisk(SimDisk):
    """A disk that remembers which syncs have failed: what they were to keep may be gone, and the
    next one would not say so. `rot` is on the medium: it outlives the machine's power."""

    def __init__(self, image: Image, rot: Rot | None = None) -> None:
        super().__init__(image)
        self.rot: Rot = {} if rot is None else rot
        self.seen_through = False
        """Whoever looks at the world sees what was written."""
        for path, offset in list(self.rot):
            if path not in image.files or offset >= image.files[path].size:
                del self.rot[path, offset]
        self.failed_syncs: set[str] = set()
        """Files whose sync has failed."""
        self.tried_again = ""
        """One of them that was synced once more."""

    def pread(self, inode: Inode, length: int, offset: int) -> bytes:
        data = super().pread(inode, length, offset)
        if not self.rot or self.seen_through or not inode.linked:
            return data
        changed = bytearray(data)
        for (path, at), mask in self.rot.items():
            if path == inode.path and offset <= at < offset + len(data):
                changed[at - offset] ^= mask
        return bytes(changed)

    def _write(self, inode: Inode, data: bytes, offset: int) -> None:
        for at in [at for path, at in self.rot if path == inode.path]:
            if offset <= at < offset + len(data):
                del self.rot[inode.path, at]
        super()._write(inode, data, offset)

    def unlink(self, path: str) -> None:
        super().unlink(path)
        for key in [each for each in self.rot if each[0] == path]:
            del self.rot[key]

    def sync(self, inode: Inode) -> None:
        if inode.path in self.failed_syncs:
            self.tried_again = inode.path
        try:
            super().sync(inode)
        except SyncFailed:
            self.failed_syncs.add(inode.path)
            raise


class Machine:
    """Its disk outlives stores; `boot` opens the next one on what the last crash left."""

    def __init__(self, clock: NodeClock, seed: str, options: StoreOptions = OPTIONS) -> None:
        self.clock = clock
        self.options = options
        self.disk = CheckedDisk(Image())
        self.store: Store | None = None
        self._random = random.Random(f"machine:{seed}")
        self._image = Image()
        self._meta: dict[bytes, bytes] = {}
        self._index: dict[bytes, bytes] = {}
        self._rot: Rot = {}
        self._boots = 0
        self._distrusted = False  # since a sync has failed

    def boot(self, crash_at: int = 0) -> Store:
        """Open the store; `crash_at`: as of SimDisk, 0 for none. What `Store` raises, PowerCut;
        StoreSealed: nothing has changed."""
        self.disk = disk = CheckedDisk(self._image, self._rot)
        if crash_at:
            disk.crash_at(crash_at)
        self._meta_kv = TracedKeyValue(disk, self._meta)
        self._index_kv = index = UnsyncedKeyValue(disk, self._index)

        def open_index(fresh: bool) -> KeyValue:
            if fresh:
                index.restore({})
            return index

        self.store = store = Store(
            *(disk, self.clock, self._meta_kv, open_index, InlineScheduler(), self.options),
            boot_id=f"boot-{self._boots}",
        )
        if self._distrusted:
            raise Violation(
                "I2 a disk that failed a sync is used again, and nobody has looked at it"
            )
        while store.tend():
            pass
        return store

    def kill(self) -> None:
        """The process is gone; what it wrote is there."""
        self._image = self.disk.image()
        self._index = dict(self._index_kv.snapshot())
        self._left()

    def cut(self) -> None:
        """The power is gone: of what was not synced any part may be there."""
        self._boots += 1
        self._image = survivors(self.disk.trace, self._random)
        self._index = dict(index_at(self.disk.trace.marks(len(self.disk.trace.ops)), self._index))
        self._left()

    @property
    def sealed(self) -> bool:
        """A sync has failed, and somebody has to look at the disk before it is used again."""
        return self._distrusted or bool(self.disk.failed_syncs)

    def unseal(self) -> None:
        """`blockd doctor --unseal`, while no store is open."""
        assert self.store is None
        self._meta.pop(META_KEY_SEALED, None)
        self._distrusted = False

    def _left(self) -> None:
        self._distrusted = self._distrusted or bool(self.disk.failed_syncs)
        self._meta = dict(self._meta_kv.snapshot())
        self.disk.power_off()
        self.store = None

    def rot(self, path: str, offset: int, mask: int) -> bool:
        """Bits of a file go bad; whether there is such a byte."""
        file = self.disk.image().files.get(path)
        if file is None or offset >= file.size:
            return False
        self._rot[path, offset] = mask
        return True

    def wipe(self) -> None:
        """An empty disk is in its place."""
        self.disk.power_off()
        self.store = None
        self._image, self._meta, self._index = Image(), {}, {}
        self._rot.clear()
        self._boots += 1
        self._distrusted = False
