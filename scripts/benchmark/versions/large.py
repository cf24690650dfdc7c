"""A volume with 1 TiB of data: what an idle daemon needs for it, and what a diff of two versions of
it costs.

Its 16.8 million chunks are all different, but nothing much is stored of them: `tests.synthetic`. As
many of them as a start looks up the places of can be read.
"""

import json
import os
import time
from pathlib import Path
from statistics import median

from tests.daemon import Daemon
from tests.synthetic import CHUNK, PACK_BYTES, PAGE, fill_volume, memory
from versions import stores
from versions.common import Settings, daemon, met, size, table
from volume.options import StoreOptions
from volume.reader import WARM_CHUNKS

MiB = 1 << 20
SETTLED_S = 25.0  # two times that a daemon which nobody talks to gives pages of its index back
START_S = 120.0
MEMORY_TARGET = 64 * MiB
DIFF_TARGET_MS = 50.0


def measure(settings: Settings) -> list[str]:
    count = settings.pick(1 << 24, 1 << 18)
    empty, full = settings.folder / "empty", settings.folder / "full"
    settings.say(f"    {count:,} chunks")
    stores.in_child(make_volume, empty, count * CHUNK)
    stores.in_child(make_volume, full, count * CHUNK)
    began = time.monotonic()
    stores.in_child(fill, full, count)
    settings.say(
        f"    filled in {time.monotonic() - began:.0f} s; index and packs take "
        f"{size(stores.stored_bytes(full))} MiB"
    )
    memory = [idle_memory(path) for path in (empty, full)]
    settings.say("    diff")
    stores.in_child(change, full, count * CHUNK)
    return [*memory_lines(count, *memory), *diff_lines(count, full)]


# -- filling


def make_volume(path: Path, length: int) -> None:
    with stores.filling(path) as store:
        store.create_volume("bench", length)
        stores.write(store, "bench", 0, os.urandom(PAGE))


def fill(path: Path, count: int) -> None:
    fill_volume(path, "bench", count, readable=WARM_CHUNKS)


# -- memory


def idle_memory(path: Path) -> dict[str, int]:
    """Bytes of a daemon that nobody talks to, once it has settled; of a store after gc."""
    # Of a pack's 64 MiB next to nothing is there: gc must know, or it joins them all.
    (path / "blockd.toml").write_text("[store]\ngc_interval_s = 3600\n")
    server = daemon(path)
    try:
        idle = settled(server)
    finally:
        server.discard()
    result = path / "collected.json"
    stores.in_child(collect, path, result)
    return {
        "Anonymous": idle["Anonymous"],
        "Rss": idle["Rss"],
        **json.loads(result.read_text()),
    }


def collect(path: Path, result: Path) -> None:
    """Run gc in this process and write down by how much its anonymous memory grew."""
    with stores.filling(path, StoreOptions(pack_bytes=PACK_BYTES)) as store:
        before = memory(os.getpid())["Anonymous"]
        began = time.monotonic()
        store.collect()
        grown = memory(os.getpid())["Anonymous"] - before
        result.write_text(json.dumps({"gc": grown, "gc_s": time.monotonic() - began}))


def settled(server: Daemon) -> dict[str, int]:
    """The memory of the process when it did not grow any more for SETTLED_S."""
    deadline = time.monotonic() + START_S
    best, since = memory(server.pid), time.monotonic()
    while time.monotonic() - since < SETTLED_S:
        if time.monotonic() > deadline:
            raise TimeoutError(f"memory goes on growing: {best}")
        time.sleep(0.2)
        now = memory(server.pid)
        if now["Rss"] > best["Rss"] + MiB // 4:
            best, since = now, time.monotonic()
    return memory(server.pid)


def memory_lines(count: int, empty: dict[str, int], full: dict[str, int]) -> list[str]:
    more = {key: full[key] - empty[key] for key in full}
    named = (("an empty volume", empty), ("full of data", full), ("difference", more))
    rows = [[name, *(size(found[key]) for key in ("Anonymous", "Rss"))] for name, found in named]
    return [
        f"#### Memory of an idle daemon with {count * CHUNK >> 30:,} GiB of data",
        "",
        f"{count:,} chunks of 64 KiB, all different. In MiB; *anonymous* is what the process has "
        "for itself, *resident* includes pages of the index file, which the kernel takes back when "
        "it needs them.",
        "",
        *table(("volume", "anonymous", "resident"), rows),
        f"At most {MEMORY_TARGET >> 20} MiB more than empty (anonymous): "
        f"{met(more['Anonymous'] <= MEMORY_TARGET)}. A run of gc over it takes "
        f"{full['gc_s']:.0f} s and leaves {size(full['gc'])} MiB more behind.",
        "",
    ]


# -- diff


def change(path: Path, length: int) -> None:
    """Two versions, one of them with 1 MiB changed in the midst."""
    with stores.filling(path) as store:
        # The tree was put under the volume's last version: one that is newer has it from the start.
        stores.write(store, "bench", 0, os.urandom(PAGE))
        stores.settle(store)
        store.snapshots.create("old", ["bench"])
        stores.write(store, "bench", length // 2, os.urandom(MiB))
        stores.settle(store)
        store.snapshots.create("new", ["bench"])


def diff_lines(count: int, path: Path) -> list[str]:
    dropped = [diff_ms(path, drop=True)[0] for _ in range(3)]
    cold, warm = [], []
    for _ in range(5):
        first, *others = diff_ms(path, again=20)
        cold.append(first)
        warm += others
    rows = [
        ["just opened, from the disk", f"{median(dropped):.2f}", f"{max(dropped):.2f}"],
        ["just opened, from the page cache", f"{median(cold):.2f}", f"{max(cold):.2f}"],
        ["again", f"{median(warm):.2f}", f"{max(warm):.2f}"],
    ]
    worst = max(dropped + cold + warm)
    return [
        f"#### Diff of two versions of {count * CHUNK >> 30:,} GiB that differ in 1 MiB",
        "",
        *table(("`store.versions.diff`", "median ms", "max ms"), rows),
        f"Below {DIFF_TARGET_MS:.0f} ms: {met(worst < DIFF_TARGET_MS)}.",
        "",
    ]


def diff_ms(path: Path, *, again: int = 0, drop: bool = False) -> list[float]:
    """Milliseconds of the first diff of a store just opened, and of `again` more."""
    took = []
    with stores.filling(path) as store:
        if drop:
            stores.drop_cache(path)
        for _ in range(1 + again):
            began = time.perf_counter()
            found = store.versions.diff("bench@old", "bench@new")
            took.append((time.perf_counter() - began) * 1e3)
            assert found.changed_bytes == MiB, found
    return took
