"""How many versions a second can be made, each of which can be restored by itself.

Every write is one. Through the volume's own interface, in batches on one thread, and over NBD by
fio; afterwards some are opened by number, and must hold what was written then and nothing later.
"""

import os
import random
import time
from dataclasses import dataclass

from native import OP_FLUSH, OP_WRITE, Request
from tests.daemon import Daemon
from versions import stores
from versions.common import Fio, Settings, daemon, met, table
from volume.options import StoreOptions
from volume.store import Store
from volume.volume import Volume

BLOCK = 512
SAMPLES = 20
TARGET = 1_000_000
VOLUME_BYTES = 1 << 30
NBD_SECONDS = 3


@dataclass(frozen=True, slots=True)
class Run:
    title: str
    batch: int
    sequential: bool
    durable: bool = False
    """A FLUSH ends each batch, and the next one begins when it is done."""


RUNS = (
    Run("random, batches of 128", 128, sequential=False),
    Run("random, batches of 512", 512, sequential=False),
    Run("sequential, batches of 512", 512, sequential=True),
    Run("random, batches of 512, a flush after each", 512, sequential=False, durable=True),
)


def measure(settings: Settings) -> list[str]:
    count = settings.pick(1_000_000, 20_000)
    rows = []
    best = 0.0
    for run in RUNS:
        settings.say(f"    {run.title}")
        path = settings.folder / "rate"
        # The log of all runs stays, so that any of it can be asked for.
        with_room = StoreOptions(journal_limit=8 << 30, window_bytes=8 << 30)
        store = Store.open(path, with_room)
        try:
            wall, cpu, checked = _api(store, run, count if not run.durable else count // 10)
        finally:
            store.close()
        best = max(best, cpu)
        survives = "a power cut" if run.durable else "kill -9"
        rows.append([run.title, survives, f"{wall:,.0f}", f"{cpu:,.0f}", f"{checked}"])
    settings.say("    over NBD")
    made, opened = _nbd(settings)
    title = f"fio over NBD, random, QD128, 2 connections, {NBD_SECONDS} s"
    rows.append([title, "kill -9", f"{made:,.0f}", "-", f"{opened}"])
    head = ("writes of 512 bytes", "survives", "a second", "a second of CPU", "of them checked")
    return [
        "Each write is a record of the journal with a number of its own, `volume@seq:N`. One "
        "thread submits, its requests are made in the timed part; CPU is that thread's. Checked: "
        "opened by number afterwards, and found to hold that write and none after it (over NBD: "
        "opened and read).",
        "",
        *table(head, rows),
        f"{TARGET:,} a second on one core, through the volume's interface: {met(best >= TARGET)}.",
        "",
    ]


def _api(store: Store, run: Run, count: int) -> tuple[float, float, int]:
    """(versions a second, a second of the thread's CPU, how many were checked)."""
    if store.get("v") is None:
        store.create_volume("v", VOLUME_BYTES, block_size=BLOCK)
    volume = stores.volume_of(store, "v")
    generator = random.Random(7)
    blocks = VOLUME_BYTES // BLOCK
    places = range(count) if run.sequential else [generator.randrange(blocks) for _ in range(count)]
    payload = os.urandom(BLOCK - 8)
    data = [number.to_bytes(8, "little") + payload for number in range(count)]
    first = volume.seq + 1
    began, began_cpu = time.perf_counter(), time.thread_time()
    for start in range(0, count, run.batch):
        part = range(start, min(start + run.batch, count))
        _submit(volume, [Request(OP_WRITE, places[n] * BLOCK, BLOCK, data[n]) for n in part])
        if run.durable:
            stores.submit(volume, Request(OP_FLUSH))
    wall, cpu = time.perf_counter() - began, time.thread_time() - began_cpu
    if volume.seq != first + count - 1:
        raise SystemExit(f"{count} writes made {volume.seq - first + 1} versions")
    checked = _check(store, first, [place * BLOCK for place in places], data, generator)
    return count / wall, count / cpu, checked


def _submit(volume: Volume, batch: list[Request]) -> None:
    """What the journal has no room for yet is waited for."""
    unfinished = len(batch)

    def done(requests: list[Request]) -> None:
        nonlocal unfinished
        for request in requests:
            if request.error:
                raise OSError(request.error, "a write failed")
        unfinished -= len(requests)

    volume.submit(batch, done)
    while unfinished:
        time.sleep(0.0001)


def _check(
    store: Store, first: int, offsets: list[int], data: list[bytes], generator: random.Random
) -> int:
    """Open some of the versions; how many."""
    later: dict[int, int] = {}  # the next write to the same place
    last: dict[int, int] = {}
    for number, offset in enumerate(offsets):
        if offset in last:
            later[last[offset]] = number
        last[offset] = number
    again = [number for number in later if later[number] - number > 1]
    chosen = generator.sample(again or range(len(offsets)), SAMPLES // 2)
    chosen += generator.sample(range(len(offsets)), SAMPLES - len(chosen))
    for number in chosen:
        version = store.open_version(f"v@seq:{first + number}")
        version.attach("bench")
        try:
            found = stores.read(version, offsets[number], BLOCK)
        finally:
            version.detach("bench")
        if found != data[number]:
            raise SystemExit(f"version seq:{first + number} does not hold its own write")
    return len(chosen)


def _seq(server: Daemon) -> int:
    found: int = server.run_json("volume", "show", "v")["seq"]
    return found


def _nbd(settings: Settings) -> tuple[float, int]:
    """(versions a second, how many were opened)."""
    server = daemon(settings.folder / "nbd", "--volume", f"v={VOLUME_BYTES}")
    try:
        before = _seq(server)
        extra = ("--bs=512", "--numjobs=2", "--group_reporting")
        began = time.perf_counter()
        Fio(
            server.uri("v"), settings.folder, "randwrite", 128, seconds=NBD_SECONDS, extra=extra
        ).run()
        took = time.perf_counter() - began
        made = _seq(server) - before
        generator = random.Random(9)
        names = [f"v@seq:{before + 1 + generator.randrange(made)}" for _ in range(SAMPLES // 4)]
        for name in names:
            Fio(server.uri(name), settings.folder, "randread", 1, seconds=1).run()
    finally:
        server.discard()
    return made / min(took, NBD_SECONDS + 0.5), len(names)
