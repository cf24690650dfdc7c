"""Data directories with a great many chunks of which next to nothing is stored.

Tree, index and pack tables are as a client's writes would have made them, and all chunk ids are
different. The bytes are not: chunks that shall be readable are zeros in holes of the pack files, of
the others there are a few bytes, which only a read of them would find out.
"""

import contextlib
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from blake3 import blake3
from typing_extensions import Buffer

from native import is_zero
from volume.chunks import ChunkStore
from volume.codecs import CODEC_LZ4, CODEC_NONE
from volume.commits import get_commit, put_commit
from volume.datadir import read_boot_id
from volume.disk import PosixDisk, PosixFile, SystemClock
from volume.index import MAX_BATCH, ChunkIndex, Place
from volume.kv import KeyValue, LmdbKeyValue
from volume.layout import KIND_DATA, ChunkId
from volume.locking import DirectoryLock
from volume.manifest import Manifests, height_for
from volume.meta import Meta
from volume.options import StoreOptions
from volume.packs import Packs
from volume.scheduler import InlineScheduler
from volume.store import Store

CHUNK = 65536
PAGE = 4096
BATCH = 65536  # chunks between two updates of the tree
PACK_ENTRIES = 1000  # about what a pack of 64 MiB holds of raw chunks
STUB = bytes(32)
"""What is stored of a chunk that nobody reads."""
PACK_BYTES = 256 * 1024
"""`StoreOptions.pack_bytes` with which gc does not find such packs too small."""
SPREAD = 0x9E3779B1  # odd: multiplying by it only reorders the numbers below a power of two
MAP_BYTES = 64 << 20
_ZERO_CHUNK = bytes(CHUNK)


class UnsyncedFile(PosixFile):
    """A file whose sync does nothing."""

    def __init__(self, file: PosixFile) -> None:
        """Takes `file` over."""
        fd = file.native()
        assert isinstance(fd, int)
        super().__init__(fd)

    def sync(self) -> None:
        pass


class UnsyncedDisk(PosixDisk):
    """As if every sync cost nothing. What it leaves is whole as long as the machine stays up."""

    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> PosixFile:
        return UnsyncedFile(super().open(path, create=create, read_only=read_only))

    def sync_dir(self, path: str) -> None:
        pass


class SparseFile(UnsyncedFile):
    """Leaves a hole where whole pages of zeros are written behind the end of the file."""

    def pwrite(self, data: Buffer, offset: int) -> int:
        view = memoryview(data).cast("B")
        end = offset + len(view)
        if offset < self.size() or len(view) < 2 * PAGE:
            return super().pwrite(view, offset)
        self.truncate(end)
        at = offset
        while at < end:
            stop = min(end, (at // PAGE + 1) * PAGE)
            piece = view[at - offset : stop - offset]
            if len(piece) < PAGE or not is_zero(piece):
                super().pwrite(piece, at)
            at = stop
        return len(view)


class SparseDisk(UnsyncedDisk):
    def open(self, path: str, *, create: bool = False, read_only: bool = False) -> PosixFile:
        return SparseFile(super().open(path, create=create, read_only=read_only))


@contextlib.contextmanager
def threadless(path: Path, options: StoreOptions | None = None) -> Iterator[Store]:
    """A store on `path` that works only when it is called, and syncs nothing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = DirectoryLock(path)

    def open_index(fresh: bool) -> KeyValue:
        if fresh:
            shutil.rmtree(path / "index", ignore_errors=True)
        return LmdbKeyValue(path / "index", synced=False, map_size=MAP_BYTES)

    store = Store(
        UnsyncedDisk(path),
        SystemClock(),
        LmdbKeyValue(path / "meta", synced=False, map_size=MAP_BYTES),
        open_index,
        InlineScheduler(),
        options or StoreOptions(),
        path=str(path),
        boot_id=read_boot_id(),
    )
    try:
        while store.tend():
            pass
        yield store
    finally:
        store.close()
        lock.release()


def fill_volume(path: Path, name: str, count: int, *, readable: int = 0) -> None:
    """Give a volume `count` chunks (a power of two), as a destager without hashing would; the first
    `readable` of them read as zeros. The directory is not in use, and the volume has a commit."""
    meta_kv = LmdbKeyValue(path / "meta", synced=False, map_size=MAP_BYTES)
    index_kv = LmdbKeyValue(path / "index", synced=False, map_size=MAP_BYTES)
    meta = Meta(meta_kv, SystemClock())
    packs = Packs(SparseDisk(path), meta.uuid)
    chunks = ChunkStore(packs, ChunkIndex(index_kv, meta.uuid))
    manifests = Manifests(chunks)

    record = meta.volume(name)
    height = height_for(count * CHUNK, CHUNK)
    root = manifests.grow(record.head.root, record.head.height, height)
    places = array("I")  # pack, offset and ordinal of each chunk, one after the other
    for first in range(0, count, BATCH):
        ids = {number: _chunk_id(number, count) for number in range(first, first + BATCH)}
        for number, chunk_id in ids.items():
            if number % PACK_ENTRIES == 0:
                packs.begin()
            place = _append(packs, chunk_id, number < readable)
            places.extend((place.pack, place.offset, place.ordinal))
        root = manifests.update(root, height, ids)
    commit = replace(get_commit(chunks, record.head.commit), root=root, height=height)
    head = replace(record.head, commit=put_commit(chunks, commit), root=root, height=height)
    chunks.sync()
    for batch in _indexed(places, count, readable):
        chunks.index.put(batch)
    assert meta.checkpoint is not None
    meta.move_heads({record.number: head}, meta.checkpoint)
    packs.close()
    index_kv.close()
    meta_kv.close()


def _chunk_id(number: int, count: int) -> ChunkId:
    """Neighbours in the volume are far apart in the index, as hashes are."""
    return _ranked_id(number * SPREAD % count, count)


def _ranked_id(rank: int, count: int) -> ChunkId:
    """The id that is the `rank`-th of all in the index."""
    prefix = (rank << 32) // count
    return prefix.to_bytes(4, "big") + blake3(rank.to_bytes(8, "big")).digest()[4:]


def _append(packs: Packs, chunk_id: ChunkId, readable: bool) -> Place:
    if readable:
        return packs.append(KIND_DATA, chunk_id, _ZERO_CHUNK, CHUNK, CODEC_NONE)
    return packs.append(KIND_DATA, chunk_id, STUB, CHUNK, CODEC_LZ4)


def _indexed(places: "array[int]", count: int, readable: int) -> Iterator[dict[ChunkId, Place]]:
    """The rows of the index in their order: LMDB takes so many in no other way in bearable time."""
    back = pow(SPREAD, -1, count)
    for first in range(0, count, MAX_BATCH):
        batch = {}
        for rank in range(first, min(first + MAX_BATCH, count)):
            number = rank * back % count
            pack, offset, ordinal = places[3 * number : 3 * number + 3]
            length, codec = (CHUNK, CODEC_NONE) if number < readable else (len(STUB), CODEC_LZ4)
            place = Place(pack, offset, length, CHUNK, ordinal, codec, KIND_DATA)
            batch[_ranked_id(rank, count)] = place
        yield batch


def memory(pid: int) -> dict[str, int]:
    """Fields of /proc/PID/smaps_rollup and status, in bytes: Anonymous, Rss, VmHWM and others."""
    found = {}
    for name in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{name}").read_text().splitlines():
            key, _, value = line.partition(":")
            if value.endswith(" kB"):
                found[key] = int(value.split()[0]) * 1024
    return found
