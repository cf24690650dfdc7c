"""Keeps a daemon busy for a long time, kills it now and then, and sees that it loses nothing and
does not grow. What is done meanwhile, all at once:

- recorded clients over NBD and iSCSI on one volume, that come and go; what they saw is judged by
  the history checker (tests/check), with whole reads after kills, and of snapshots and clones;
- fio's verify (crc32c) over NBD on two volumes, qemu-io's patterns over iSCSI on a third;
- snapshots, clones, deletes, resizes, gc, scrub;
- kill -9 in the first part of the run; the daemon's last life is left alone until SIGTERM.

At the end everything is deleted: packs and journal have to be given back.
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zlib
from pathlib import Path

from administrator import Administrator
from growth import Life, MiB
from guests import Fio, Guest, QemuIo
from report import Progress, summary
from server import Server

from tests.check.events import Recorder
from tests.check.judge import judge_file
from tests.check.record import Clients, Pace

RECORDED = "recorded"
WRITERS = 6
KILLS_UNTIL = 0.6
"""Of the run; after that the daemon lives on, so that growth can be told from warming up."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=0.0)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument(
        "--rate", type=float, default=1000, help="requests a second, all together (default: 1000)"
    )
    parser.add_argument("--size-mib", type=int, default=32, help="of a volume (default: 32)")
    parser.add_argument(
        "--kill-every-s", type=float, default=120, help="on an average (default: 120)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of what is done (default: any)")
    parser.add_argument(
        "--dir", type=Path, help="where data and history go; kept if something fails"
    )
    parser.add_argument("--summary", type=Path, help="write the summary, in Markdown, here too")
    options = parser.parse_args()
    options.seconds = options.hours * 3600 + options.minutes * 60
    if options.seconds <= 0:
        parser.error("say --hours or --minutes")
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 31)
    return options


class Soak:
    """One run in `folder`."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.seconds: float = options.seconds
        self.findings: list[str] = []
        self.began = time.monotonic()
        self.server = Server(folder)
        self._seed: int = options.seed
        self._kill_every_s: float = options.kill_every_s
        self._rng = random.Random(f"{options.seed}/soak")
        self._folder = folder
        size = options.size_mib * MiB
        self._history = folder / "history"
        number = zlib.crc32(str(options.seed).encode())
        self.recorder = Recorder(self._history, RECORDED, size, number)
        self._pace = options.rate * 0.6
        pause_s = max(0.2, 1000 / options.rate)
        self.guests: list[Guest] = [
            Fio(
                self.server,
                f"fio-{block}",
                size,
                self._seed,
                block=block,
                rate=max(1, int(options.rate * 0.2)),
                folder=folder / f"fio-{block}",
            )
            for block in ("4k", "16k")
        ]
        self.guests.append(QemuIo(self.server, "patterns", size, self._seed, pause_s=pause_s))
        names = [guest.name for guest in self.guests]
        self.administrator = Administrator(self.server, self.recorder, names, self._seed)
        self._turn_s = max(0.5, 2000 / options.rate)
        self.clients: Clients | None = None

    def run(self, progress: Progress) -> None:
        """Everything until the end of time; findings are collected."""
        self.server.start()
        for name in (RECORDED, *(guest.name for guest in self.guests)):
            self.server.daemon.create(name, self.recorder.header.size)
        self.clients = Clients(self.recorder, WRITERS, Pace(self._pace), self._seed)
        try:
            self.clients.go_on(self.server.addresses())
            for guest in self.guests:
                guest.begin()
            try:
                self._live(progress)
                self._last_look()
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                text = f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"
                self.findings.append(text)
        finally:
            self.server.up.clear()
            self.clients.stop()
            for guest in self.guests:
                guest.stop()
            self.recorder.close()
            self.server.daemon.discard()
        progress.line(self)

    def _live(self, progress: Progress) -> None:
        """Until the time is over, or something has failed."""
        until = self.began + self.seconds
        tick_s = min(5.0, self.seconds / 60)
        kills = self._kills()
        next_turn = self.began
        while (now := time.monotonic()) < until and not self._failed():
            self.server.sample()
            if kills and now >= kills[0]:
                kills.pop(0)
                self._kill()
            if now >= next_turn:
                self.administrator.turn()
                next_turn = time.monotonic() + self._turn_s
            progress.tick(self)
            time.sleep(max(0.0, min(tick_s, until - time.monotonic())))
        if not (self.server.kills or self.findings):
            self._kill()  # a slow machine: its turn had not come

    def _kills(self) -> list[float]:
        """When: at least one."""
        last = self.seconds * KILLS_UNTIL
        first = min(self.seconds, 2 * self._kill_every_s) * self._rng.uniform(0.2, 0.5)
        at = [self.began + first]
        while (after := self._rng.expovariate(1 / self._kill_every_s)) + at[-1] < self.began + last:
            at.append(at[-1] + after)
        return at

    def _failed(self) -> bool:
        assert self.clients is not None
        found = [f"recorded client: {error!r}" for error in self.clients.failures]
        found += [guest.failure for guest in self.guests if guest.failure]
        self.findings += [one for one in found if one not in self.findings]
        return bool(self.findings)

    def _kill(self) -> None:
        assert self.clients is not None
        self.server.kill()
        self.clients.quiet()
        self.recorder.crash()
        self.server.start()
        self.recorder.restart()
        self.administrator.look()
        self.clients.go_on(self.server.addresses())

    def _last_look(self) -> None:
        assert self.clients is not None
        self.clients.quiet()
        self.administrator.look()
        for guest in self.guests:
            guest.stop()
        self._failed()
        if not self.findings:
            self.administrator.give_back()
        self.server.sample()
        if code := self.server.stop():
            self.findings.append(f"SIGTERM: the daemon ended with {code}")

    def judge(self) -> str:
        """Judge the history and the daemon's lives; what the checker says, in a line."""
        for number, life in enumerate(self.server.lives, 1):
            self.findings += [f"life {number}: {text}" for text in life.complaints()]
        self.findings += self.administrator.findings
        began = time.monotonic()
        report = judge_file(self._history)
        took_s = time.monotonic() - began
        self.findings += [str(finding) for finding in report.findings]
        return (
            f"{report.total} operations, {report.sectors_read} sectors read, "
            f"{report.crashes} kills, {report.states} whole states; "
            f"{report.found} findings (in {took_s:.1f} s)"
        )

    @property
    def longest(self) -> Life:
        return max(self.server.lives, key=lambda life: life.seconds, default=Life(()))


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the daemon, too
    if options.dir is not None:
        options.dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="soak-", dir=options.dir))
    progress = Progress(options.seconds)
    print(f"soak: seed {options.seed}, {options.seconds:.0f} s, in {folder}", flush=True)
    soak = Soak(options, folder)
    with progress:
        soak.run(progress)
    text = summary(soak, soak.judge())
    print(text)
    if options.summary is not None:
        options.summary.write_text(text + "\n")
    if soak.findings:
        print(f"soak: {len(soak.findings)} findings; seed {options.seed}; kept: {folder}")
        return 1
    shutil.rmtree(folder)
    print("soak: ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
