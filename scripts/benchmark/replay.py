"""How long a start takes that replays a full journal: python scripts/benchmark/replay.py [GiB].

A child process fills the journal with 4 KiB random writes and ends as kill -9 would; then the
directory is opened, twice: once with the journal in the page cache, once after dropping it.
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from native import OP_WRITE, Request
from volume.options import StoreOptions
from volume.store import Store

NEVER_S = 1e9
BATCH = 64
BLOCK = 4096
VOLUME_BYTES = 100 << 30


def options(journal_bytes: int) -> StoreOptions:
    return StoreOptions(
        journal_limit=journal_bytes,
        destage_age_s=NEVER_S,
        destage_idle_s=NEVER_S,
        destage_fill=2.0,
        hot_map_bytes=1 << 40,
    )


def fill(path: Path, journal_bytes: int) -> None:
    """Write until the journal is as good as full, then end without closing anything."""
    store = Store.open(path, options(journal_bytes))
    store.create_volume("bench", VOLUME_BYTES)
    volume = store.get("bench")
    assert volume is not None
    generator, data = random.Random(1), os.urandom(BATCH * BLOCK)
    while store.status().journal_bytes < journal_bytes - (80 << 20):
        done: list[Request] = []
        batch = [
            Request(
                OP_WRITE,
                generator.randrange(VOLUME_BYTES // BLOCK) * BLOCK,
                BLOCK,
                data[number * BLOCK : (number + 1) * BLOCK],
            )
            for number in range(BATCH)
        ]
        volume.submit(batch, done.extend)
        while len(done) < BATCH:  # no segment was ready: the upkeep thread makes one
            time.sleep(0.001)
    os._exit(0)


def measure(path: Path, journal_bytes: int, what: str) -> None:
    began = time.monotonic()
    store = Store.open(path, options(journal_bytes))
    took = time.monotonic() - began
    used = store.status().journal_bytes / (1 << 30)
    print(f"{what}: opened {used:.2f} GiB of journal in {took:.2f} s", flush=True)
    store.close()


def drop_cache(path: Path) -> None:
    for file in (path / "journal").iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def main() -> None:
    if sys.argv[1] == "--fill":
        fill(Path(sys.argv[2]), int(sys.argv[3]))
    journal_bytes = int(float(sys.argv[1]) * (1 << 30))
    folder = Path(tempfile.mkdtemp(prefix="blockd-replay-", dir="."))
    try:
        command = [sys.executable, __file__, "--fill", str(folder / "data"), str(journal_bytes)]
        subprocess.run(command, check=True)
        measure(folder / "data", journal_bytes, "in the page cache")
        drop_cache(folder / "data")
        measure(folder / "data", journal_bytes, "from the disk")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.argv[1:] = sys.argv[1:] or ["4"]
    main()
