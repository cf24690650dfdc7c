"""How long a diff of two versions of 1 TiB takes: python scripts/benchmark/diff.py

Makes the whole tree of a volume of 1 TiB without a hole (16,777,216 chunks of 64 KiB: 65,793 nodes,
0.5 GiB; the data chunks themselves are never read by a diff and are not made), then versions that
differ from it in 1 MiB, in one place and in many. Each diff is measured with nothing cached (files
dropped from the page cache, node cache empty), with the files cached, and with the nodes cached.
"""

import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from volume.chunks import ChunkStore
from volume.diff import Side, changed_extents
from volume.disk import PosixDisk
from volume.index import ChunkIndex
from volume.kv import LmdbKeyValue
from volume.layout import CHUNK_ID_LENGTH, FAN_OUT, KIND_NODE, ChunkId
from volume.manifest import Manifests, encode_node
from volume.packs import Packs

CHUNK_SIZE = 64 * 1024
CHUNKS = (1 << 40) // CHUNK_SIZE
HEIGHT = 3
STORE_UUID = bytes(16)
ROUNDS = 11
PLACES = {
    "1 MiB in one place": [8_000_000 + number for number in range(16)],
    "16 chunks in 16 places": list(range(0, CHUNKS, CHUNKS // 16)),
    "256 writes of 4 KiB in 256 places": list(range(77, CHUNKS, CHUNKS // 256)),
}


class Rig:
    """A chunk store on real files, without a journal."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kv = LmdbKeyValue(path / "index", synced=False, map_size=1 << 30)
        self._packs = Packs(PosixDisk(path), STORE_UUID)
        self.store = ChunkStore(self._packs, ChunkIndex(self._kv, STORE_UUID))

    def close(self) -> None:
        self.store.sync()
        self._packs.close()
        self._kv.sync()
        self._kv.close()


def whole_tree(store: ChunkStore) -> ChunkId:
    """The root of a tree in which every id is another."""
    source = random.Random(1)
    ids = [source.randbytes(FAN_OUT * CHUNK_ID_LENGTH) for _ in range(0, CHUNKS, FAN_OUT)]
    for level in range(HEIGHT):
        nodes = [store.put(encode_node(level, row), KIND_NODE) for row in ids]
        ids = [b"".join(nodes[at : at + FAN_OUT]) for at in range(0, len(nodes), FAN_OUT)]
    assert len(nodes) == 1
    return nodes[0]


def drop_cache(path: Path) -> None:
    for file in (*(path / "packs").iterdir(), path / "index" / "data.mdb"):
        descriptor = os.open(file, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def timed(manifests: Manifests, old: Side, new: Side, expected: int) -> float:
    """Milliseconds of one diff."""
    began = time.perf_counter()
    found = sum(length for _, length in changed_extents(manifests, old, new, CHUNK_SIZE))
    took = (time.perf_counter() - began) * 1000
    assert found == expected * CHUNK_SIZE
    return took


def measure(path: Path, old: Side, new: Side, expected: int) -> tuple[float, float, float]:
    """Medians in ms: nothing cached, files cached, nodes cached."""
    dropped, reopened, warm = [], [], []
    for _ in range(ROUNDS):
        drop_cache(path)
        rig = Rig(path)  # maps the index anew: pages of an old map cannot be dropped
        dropped.append(timed(Manifests(rig.store), old, new, expected))
        manifests = Manifests(rig.store)
        reopened.append(timed(manifests, old, new, expected))
        warm.append(timed(manifests, old, new, expected))
        rig.close()
    return statistics.median(dropped), statistics.median(reopened), statistics.median(warm)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="blockd-diff-", dir="."))
    try:
        rig = Rig(folder)
        root = whole_tree(rig.store)
        rig.store.sync()
        other = random.Random(2)
        manifests = Manifests(rig.store)
        roots = {
            name: manifests.update(
                root, HEIGHT, {at: other.randbytes(CHUNK_ID_LENGTH) for at in places}
            )
            for name, places in PLACES.items()
        }
        rig.close()
        print("| versions of 1 TiB that differ in | cold ms | files cached ms | nodes cached ms |")
        print("| --- | ---: | ---: | ---: |")
        old = Side(root, HEIGHT, CHUNKS * CHUNK_SIZE)
        for name, places in PLACES.items():
            new = Side(roots[name], HEIGHT, CHUNKS * CHUNK_SIZE)
            cold, files, nodes = measure(folder, old, new, len(places))
            print(f"| {name} | {cold:.1f} | {files:.1f} | {nodes:.2f} |", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
