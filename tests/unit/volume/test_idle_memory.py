"""A store keeps nothing in memory for each chunk that it has: neither at rest nor after gc.

`scripts/bench versions large` measures a daemon with 1 TiB; this is a 256th of it, where what a
single Python object for each chunk takes would already show.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from native import OP_WRITE, Request
from tests.daemon import JOURNAL_BYTES
from tests.synthetic import CHUNK, PACK_BYTES, fill_volume, memory, threadless
from volume.options import StoreOptions
from volume.volume import Volume

MiB = 1 << 20
COUNT = 1 << 16
LIMIT = 8 * MiB
"""Leaves of the tree in their cache (2 MiB), allocator's slack; 128 bytes a chunk would be more."""


def make_store(path: Path) -> None:
    with threadless(path, StoreOptions(journal_limit=JOURNAL_BYTES)) as store:
        store.create_volume("demo", COUNT * CHUNK)
        volume = store.get("demo")
        assert volume is not None
        request = Request(OP_WRITE, 0, 4096, b"x" * 4096)
        volume.submit([request], lambda _: None)
        assert request.error == 0
        assert store.destage()


def memory_of_a_store(path: Path) -> dict[str, int]:
    """Anonymous bytes of a process that opened the store, and after gc: what `main` prints."""
    command = [sys.executable, "-m", "tests.unit.volume.test_idle_memory", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, timeout=120.0)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_chunks_take_no_memory_each(tmp_path: Path) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    make_store(empty)
    make_store(full)
    fill_volume(full, "demo", COUNT)
    before, after = memory_of_a_store(empty), memory_of_a_store(full)
    for state in ("open", "collected"):
        assert after[state] - before[state] < LIMIT, (state, before, after)


def main(path: Path) -> None:
    with threadless(path, StoreOptions(pack_bytes=PACK_BYTES)) as store:
        for name in store.names():
            volume = store.get(name)
            assert isinstance(volume, Volume)
            store.upkeep.warm(volume)
        found = {"open": memory(os.getpid())["Anonymous"]}
        store.collect()
        found["collected"] = memory(os.getpid())["Anonymous"]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
