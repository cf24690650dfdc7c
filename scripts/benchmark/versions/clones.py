"""How long a clone takes to make, and whether the 1,000th of a chain reads as fast as the first.

Clones are timed in a store of its own, synced as it should be; reads go through the daemon by fio,
the first and the last clone in turn, so that the rest of the machine hits both alike.
"""

import os
import random
import time
from pathlib import Path
from statistics import median

from native import OP_WRITE, Request
from versions import stores
from versions.common import Fio, FioResult, Settings, daemon, met, percentile, table
from volume.store import Store

DEPTH = 32
BLOCK = 4096


def measure(settings: Settings) -> list[str]:
    chain = settings.pick(1000, 50)
    base = settings.pick(1 << 30, 64 << 20)
    path = settings.folder / "chain"
    settings.say(f"    a volume of {base >> 20} MiB")
    stores.in_child(fill, path, base)
    settings.say(f"    {chain} clones, each of the one before")
    took = make_chain(path, chain, base)
    settings.say("    reads")
    first, last = reads(settings, path, chain)
    ratios = [b.iops / a.iops for a, b in zip(first, last, strict=True)]
    return [
        f"A volume of {base >> 20} MiB, a clone of it, a clone of that, {chain:,} in all, each "
        "written to once (4 KiB) before the next is made.",
        "",
        *table(
            ("clone creation, durable", "p50 ms", "p99 ms", "max ms"),
            [
                _creation("the first 100", took[:100]),
                _creation("the last 100", took[-100:]),
                _creation("all", took),
            ],
        ),
        *table(
            (f"4 KiB randread, QD{DEPTH}", "IOPS", "p50 us", "p99 us", "to the 1st"),
            [
                _reads("clone 1", first, 1.0),
                _reads(f"clone {chain:,}", last, median(ratios)),
            ],
        ),
        f"The last clone reads as fast as the first (0.9 of it or more): "
        f"{met(median(ratios) >= 0.9)}.",
        "",
    ]


def _creation(name: str, took: list[float]) -> list[str]:
    figures = (percentile(took, 0.5), percentile(took, 0.99), max(took))
    return [name, *(f"{figure * 1e3:.2f}" for figure in figures)]


def _reads(name: str, results: list[FioResult], ratio: float) -> list[str]:
    return [
        name,
        f"{median(result.iops for result in results):,.0f}",
        f"{median(result.p50_us for result in results):,.0f}",
        f"{median(result.p99_us for result in results):,.0f}",
        f"{ratio:.2f}",
    ]


def fill(path: Path, size: int) -> None:
    with stores.filling(path) as store:
        store.create_volume("v0", size)
        for offset in range(0, size, 1 << 20):
            stores.write(store, "v0", offset, os.urandom(1 << 20))


def make_chain(path: Path, count: int, size: int) -> list[float]:
    """Seconds that each clone took, made durable by a store with its threads running."""
    generator = random.Random(3)
    took = []
    store = Store.open(path)
    try:
        for number in range(1, count + 1):
            began = time.perf_counter()
            store.versions.clone(f"v{number - 1}", f"v{number}")
            took.append(time.perf_counter() - began)
            offset = generator.randrange(size // BLOCK) * BLOCK
            data = generator.randbytes(BLOCK)
            clone = stores.volume_of(store, f"v{number}")
            stores.submit(clone, Request(OP_WRITE, offset, BLOCK, data))
        stores.wait_until_destaged(store)
    finally:
        store.close()
    return took


def reads(settings: Settings, path: Path, count: int) -> tuple[list[FioResult], list[FioResult]]:
    """fio on the first and the last clone, a run of each a round, the order alternating; the first
    round is thrown away: it brings packs and places into memory."""
    results: dict[str, list[FioResult]] = {"v1": [], f"v{count}": []}
    seconds, rounds = settings.pick(4, 1), settings.pick(8, 2)
    server = daemon(path)
    try:
        for number in range(rounds + 1):
            names = list(results)
            for name in names if number % 2 else reversed(names):
                uri = server.uri(name)
                result = Fio(uri, settings.folder, "randread", DEPTH, seconds=seconds).run()
                assert not result.errors
                if number:
                    results[name].append(result)
    finally:
        server.discard()
    return results["v1"], results[f"v{count}"]
