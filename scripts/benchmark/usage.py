"""How long an account of the space takes: python scripts/benchmark/usage.py [millions of chunks]

Fills a store with that many distinct chunks (of 512 bytes, so that it is quick; an account never
reads them) in one volume, adds 100 snapshots of which each has 1,000 chunks of its own in 16 MiB
runs, and counts who holds what. Then the same with the head alone.
"""

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from volume.chunks import ChunkStore
from volume.disk import PosixDisk
from volume.gc import Root
from volume.index import ChunkIndex
from volume.kv import LmdbKeyValue
from volume.layout import ZERO_ID, ChunkId
from volume.manifest import Manifests, height_for
from volume.packs import Packs
from volume.usage import UsageRoot, account

CHUNK_SIZE = 64 * 1024
CHUNK_BYTES = 512
ROUND = 65_536  # chunks
SNAPSHOTS = 100
CHANGED = 1_000
STORE_UUID = bytes(16)


def put(store: ChunkStore, source: random.Random, count: int) -> list[ChunkId]:
    ids = [store.put(source.randbytes(CHUNK_BYTES)) for _ in range(count)]
    store.sync()
    return ids


def counted(store: ChunkStore, manifests: Manifests, roots: list[UsageRoot], what: str) -> None:
    began, cpu_began = time.perf_counter(), time.process_time()
    usage = account(store, manifests, roots)
    took, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    print(f"{what}: {took:.1f} s, {cpu:.1f} s of it CPU; live {usage.live_bytes} bytes")
    assert len(usage.rows) == len(roots)


def main(chunk_count: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="blockd-usage-", dir="."))
    try:
        kv = LmdbKeyValue(folder / "index", synced=False, map_size=1 << 30)
        packs = Packs(PosixDisk(folder), STORE_UUID)
        store = ChunkStore(packs, ChunkIndex(kv, STORE_UUID))
        manifests = Manifests(store)
        height = height_for(chunk_count * CHUNK_SIZE, CHUNK_SIZE)
        source = random.Random(1)
        root = ZERO_ID
        for first in range(0, chunk_count, ROUND):
            ids = put(store, source, min(ROUND, chunk_count - first))
            root = manifests.update(root, height, dict(enumerate(ids, first)))
            store.sync()
        roots = []
        for number in range(SNAPSHOTS):
            tree = Root(root, height)
            roots.append(UsageRoot("vol", "snapshot", f"s{number}", (tree,), CHUNK_SIZE))
            at = source.randrange(chunk_count - CHANGED)
            root = manifests.update(root, height, dict(enumerate(put(store, source, CHANGED), at)))
            store.sync()
        head = UsageRoot("vol", "head", None, (Root(root, height),), CHUNK_SIZE)
        print(f"{chunk_count + SNAPSHOTS * CHANGED} chunks in {store.packs.total_bytes} bytes")
        counted(store, manifests, [head], "head alone")
        counted(store, manifests, [*roots, head], f"head and {SNAPSHOTS} snapshots")
        packs.close()
        kv.close()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(int(float(sys.argv[1]) * 1_000_000) if sys.argv[1:] else 1_000_000)
