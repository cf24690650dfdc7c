"""How long `snapshot create` takes while fio writes: the answer is to be the same few milliseconds
with few and with many snapshots there, on a small and on a large volume.

fio's writes go to a small part of the volume in both, so that all cells have the same load: every
one of these snapshots keeps the chunks that were written since the one before.
"""

import random
import time
from pathlib import Path

from versions import stores
from versions.common import Fio, Settings, daemon, met, percentile, table

GiB = 1 << 30
VOLUMES = (("1 GiB", GiB), ("10 TiB", 10 << 40))
COUNTS = (10, 100_000)
VERSIONS = 1000  # that the snapshots there beforehand name
REGION = 32 << 20  # where fio writes
DEPTH = 32
PAUSE_S = 0.2  # between two creations
WARM_UP_S = 2.0
TARGET_MS = 10.0


def prepare(path: Path, size: int, count: int, region: int) -> None:
    """A volume with `count` snapshots of as many versions as that makes sense for."""
    generator = random.Random(7)
    with stores.filling(path) as store:
        store.create_volume("bench", size)
        for offset in range(0, REGION, 1 << 20):
            stores.write(store, "bench", region + offset, generator.randbytes(1 << 20))
        each = max(1, count // VERSIONS)
        for number in range(count):
            if number % each == 0:
                offset = generator.randrange(size // 4096) * 4096
                stores.write(store, "bench", offset, generator.randbytes(4096))
            store.snapshots.create(f"s{number}", ["bench"])
            if number % (100 * each) == 0:
                stores.settle(store)


def measure(settings: Settings) -> list[str]:
    rows, p99s = [], []
    for title, size in VOLUMES:
        for full_count in COUNTS:
            count = min(full_count, settings.pick(full_count, 1000))
            settings.say(f"    {title} with {count} snapshots")
            path = settings.folder / f"{count}-{size}"
            region = size // 2
            began = time.monotonic()
            stores.in_child(prepare, path, size, count, region)
            settings.say(f"    filled in {time.monotonic() - began:.0f} s")
            created, inside, plain, iops = creations(settings, path, region)
            p99s.append(percentile(inside, 0.99))
            rows.append(
                [
                    f"{title}, {count:,} snapshots",
                    f"{len(created)}",
                    f"{percentile(inside, 0.5):.2f}",
                    f"{p99s[-1]:.2f}",
                    f"{max(inside):.1f}",
                    f"{percentile(created, 0.5):.1f}",
                    f"{percentile(created, 0.99):.1f}",
                    f"{percentile(plain, 0.99):.1f}",
                    f"{iops:,.0f}",
                ]
            )
    head = (
        "volume",
        "created",
        "p50 ms",
        "p99 ms",
        "max ms",
        "p50 ms of the call",
        "p99 ms of the call",
        "p99 ms of an empty call",
        "fio IOPS",
    )
    return [
        "The first three are the creation itself, as the daemon tells in its answer. The call is "
        "over the control API, by a client that stays connected and shares two processors with the "
        f"daemon and fio, which writes 4 KiB at QD{DEPTH}; an empty one only asks for the volume.",
        "",
        *table(head, rows),
        f"p99 below {TARGET_MS:.0f} ms: {met(max(p99s) < TARGET_MS)}. "
        f"Largest p99 to smallest: {max(p99s) / min(p99s):.2f} (target: 2): "
        f"{met(max(p99s) <= 2 * min(p99s))}.",
        "",
    ]


def creations(
    settings: Settings, path: Path, region: int
) -> tuple[list[float], list[float], list[float], float]:
    """Milliseconds of each call that creates, of the creation in it, of each empty call, and fio's
    IOPS meanwhile."""
    wanted = settings.pick(300, 20)
    server = daemon(path)
    try:
        extra = (f"--offset={region}", f"--size={REGION}")
        load = Fio(
            server.uri("bench"), settings.folder, "randwrite", DEPTH, seconds=3600, extra=extra
        )
        created, inside, plain = [], [], []
        with server.control() as client, load:
            time.sleep(WARM_UP_S)
            for number in range(wanted):
                began = time.perf_counter()
                client.create_snapshot(f"new{number}", ["bench"])
                created.append((time.perf_counter() - began) * 1e3)
                inside.append(client.server_ms["create"])
                time.sleep(PAUSE_S / 2)
                began = time.perf_counter()
                client.volume("bench")
                plain.append((time.perf_counter() - began) * 1e3)
                time.sleep(PAUSE_S / 2)
        assert load.result is not None
        assert not load.result.errors
        return created, inside, plain, load.result.iops
    finally:
        server.discard()
