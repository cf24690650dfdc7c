"""What gc and scrub cost clients: fio's p99 while both run, beside the same without.

gc has something to do in each round: a volume of random data was written and deleted before.
"""

import os
import threading
from collections import defaultdict
from statistics import median

from tests.daemon import Daemon
from tests.integration.pipelined import WRITE, PipelinedClient
from versions import stores
from versions.clones import fill
from versions.common import Fio, FioResult, Settings, daemon, size, table

DEPTH = 8
LOADS = ("randread", "randwrite")
PIECE = 1 << 20
CONDEMN_S = 1
"""gc removes at once what it finds dead, for a run to have work."""


def measure(settings: Settings) -> list[str]:
    base, garbage = settings.pick(1 << 30, 64 << 20), settings.pick(512 << 20, 32 << 20)
    seconds, rounds = settings.pick(10, 2), settings.pick(3, 1)
    path = settings.folder / "data"
    settings.say(f"    a volume of {base >> 20} MiB")
    stores.in_child(fill, path, base)
    (path / "blockd.toml").write_text(f"[store]\ngc_condemn_s = {CONDEMN_S}\n")
    results: dict[tuple[str, str], list[FioResult]] = defaultdict(list)
    work = Work()
    server = daemon(path)
    try:
        for number in range(rounds):
            for rw in LOADS:
                load = Fio(server.uri("v0"), settings.folder, rw, DEPTH, seconds=seconds)
                results[rw, "idle"].append(load.run())
                make_garbage(server, garbage)
                with Background(server, work):
                    results[rw, "busy"].append(load.run())
            settings.say(f"    round {number + 1} of {rounds} done")
    finally:
        server.discard()
    return lines(results, work, rounds, seconds)


def make_garbage(server: Daemon, length: int) -> None:
    """Have `length` bytes in the packs that no volume needs, and nothing in the hot maps."""
    server.create("garbage", length)
    with PipelinedClient(server.host_port, "garbage") as client:
        for number, offset in enumerate(range(0, length, PIECE)):
            client.send(WRITE, number, offset, PIECE, os.urandom(PIECE))
            assert client.reply() == (number, 0)
    server.wait_for("destage", lambda status: status.hot_bytes == 0)
    with server.control() as client:
        client.delete_volume("garbage", force=True)


class Work:
    """What was done in the background, over all rounds."""

    def __init__(self) -> None:
        self.gc_runs = 0
        self.scrubs = 0
        self.freed_bytes = 0


class Background:
    """gc and scrub, again as soon as they are done, while the context lasts."""

    def __init__(self, server: Daemon, work: Work) -> None:
        self._server = server
        self._work = work
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=call) for call in (self._collect, self._scrub)]

    def __enter__(self) -> None:
        self._before = self._server.store().pack_bytes
        for thread in self._threads:
            thread.start()

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._work.freed_bytes += max(0, self._before - self._server.store().pack_bytes)

    def _collect(self) -> None:
        with self._server.control() as client:
            while not self._stopping.wait(0.5):
                client.collect()
                self._work.gc_runs += 1

    def _scrub(self) -> None:
        with self._server.control() as client:
            client.start_scrub()
            while not self._stopping.wait(0.5):
                if not client.scrub_status().running:
                    self._work.scrubs += 1
                    client.start_scrub()
            client.stop_scrub()


def lines(
    results: dict[tuple[str, str], list[FioResult]], work: Work, rounds: int, seconds: int
) -> list[str]:
    rows = []
    for rw in LOADS:
        idle, busy = results[rw, "idle"], results[rw, "busy"]
        pairs = list(zip(idle, busy, strict=True))
        rows.append(
            [
                f"4 KiB {rw}, QD{DEPTH}",
                f"{median(result.iops for result in idle):,.0f}",
                f"{median(result.iops for result in busy):,.0f}",
                f"{median(b.iops / a.iops for a, b in pairs):.2f}",
                f"{median(result.p99_us for result in idle):,.0f}",
                f"{median(result.p99_us for result in busy):,.0f}",
                f"{median(b.p99_us / a.p99_us for a, b in pairs):.2f}",
            ]
        )
    head = ("load", "IOPS idle", "with gc, scrub", "ratio")
    return [
        f"fio for {seconds} s, {rounds} rounds, each without and with gc and scrub, which were "
        f"asked for again and again: {work.gc_runs} runs of gc, {work.scrubs} whole passes of "
        f"scrub, {size(work.freed_bytes)} MiB of packs removed meanwhile.",
        "",
        *table((*head, "p99 us idle", "with gc, scrub", "ratio"), rows),
    ]
