"""Rounds of the storm: start a real daemon that is to die at a fail point, and look what it left.

A round: start it with the point armed; check everything that was durable before, which also
exercises what recovery has done; let clients be at work until it is gone. It must have died by
SIGKILL, of that point, before `PATIENCE_S` are over. What it left is checked by the next round.

Errors of clients are expected when the daemon dies under their hands; a `Mismatch` never is.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from blockd import doctor
from blockd.config import load_config
from tests.daemon import CLI_S, Daemon
from tests.storm.life import HEALED, QUIET_BYTES, Life, Scene
from tests.storm.points import REPAIR, START, STOP, WAYS, Way
from tests.storm.writer import Mismatch
from volume import sites
from volume.datadir import META_MAP_BYTES
from volume.disk import SystemClock
from volume.kv import LmdbKeyValue
from volume.meta import Meta
from volume.repair import rebuild_index
from volume.segments import READY_TARGET

PATIENCE_S = 60.0  # a point is reached in a second or two; a busy machine takes longer
DEATH_S = 10.0  # between the first error of a client and the end of the process
SHORT_LIFE = 3  # scenes
LONG_WINDOW_S = 600  # longer than a storm's segments stay young
SETTINGS = """\
[store]
journal_limit = "8M"
window = "{window}"
window_s = 1
keep = ""
destage_age_s = 0.2
destage_idle_s = 0.05
gc_interval_s = 0.2
gc_condemn_s = 0
compression = "none"
"""


class NotReached(AssertionError):
    """No client of the scene made the daemon come by the point."""


class Storm:
    """Rounds on one data directory, which is `data` and need not be there."""

    def __init__(self, data: Path, seed: int = 0, *, rare: str | None = None) -> None:
        """`rare`: value of BLOCKD_RARE for every daemon, so that rare events happen all the time;
        `rare_reached` and `rare_fired` tell which of them did."""
        self.data = data
        self.rare_reached: set[str] = set()
        self.rare_fired: set[str] = set()
        self._rare = {} if rare is None else {sites.RARE: rare}
        self.life = Life(seed)
        self.kills = 0
        self._report = data.with_name(data.name + ".sites")
        self._founded = False

    # -- rounds

    def round(self, point: str, nth: int | None = None) -> None:
        """Have the daemon die at `point`, coming by for the `nth` time. NotReached, Mismatch."""
        way = WAYS[point]
        if not self._founded:
            self.found()
        if way.prepare is not None:
            getattr(self, way.prepare)()
        self._collect_report()
        environ = {
            sites.FAIL_POINT: f"{point}:{nth or way.nth}",
            sites.REPORT: str(self._report),
        }
        if way.scene == REPAIR:
            self._repair(environ)
        else:
            # httpcore leaves a socket open whose connection was refused.
            with warnings.catch_warnings(action="ignore", category=ResourceWarning):
                self._serve(way, environ)
        if f"fired {point}" not in self._collect_report():
            raise NotReached(f"{point}: nothing in its scene has reached it")
        self.kills += 1
        self.life.damaged.clear()
        self._examine()
        print(f"{point}: killed there; acknowledged {self.life.writer.acknowledged} commands")

    def live(self, *scenes: Scene) -> None:
        """One life without an armed point, scene by scene, ended by kill -9."""
        if not self._founded:
            self.found()
        self._alone(lambda server: [scene(self.life, server) for scene in scenes])

    def verify(self) -> None:
        """A daemon that is left alone: everything is there, and sound; it closes, the index is
        made anew, nothing is missing, and everything is there still."""
        for _ in range(2):
            server = self._daemon({})
            try:
                server.start()
                self.life.check(server)
                with server.control() as control:
                    control.collect()
                self.life.scrubs(server)
                if code := server.stop():
                    raise Mismatch(f"the daemon ended with {code}: {server.stderr()[-2000:]}")
            finally:
                server.discard()
            self._examine()
            self._collect_report()
            report = rebuild_index(self.data)
            if report.missing_count or report.unreadable:
                raise Mismatch(f"after a repair of the index: {report}")

    # -- before a round

    def found(self) -> None:
        """What all scenes need, made by a daemon that is left alone; then it is killed."""
        self._founded = True
        self._alone(lambda server: self.life.found(server))

    def begin_anew(self) -> None:
        """Nothing is there: neither a directory, nor anything that must be in it."""
        shutil.rmtree(self.data)
        self.life = Life(self.life.rng.randrange(1 << 32))
        self._founded = False

    def live_shortly(self) -> None:
        """Some clients' work, then a kill in the middle of nothing."""
        self._alone(self._live)

    def fill_window(self) -> None:
        """Have more segments in the window than a journal keeps ready: those are used again, and
        only what is left of them is removed."""

        def write(server: Daemon) -> None:
            with server.control() as control:
                control.set_history("demo", window_s=LONG_WINDOW_S)
                deadline = time.monotonic() + PATIENCE_S
                segment_bytes = max(
                    path.stat().st_size for path in (self.data / "journal").iterdir()
                )
                while control.space().window_bytes <= READY_TARGET * segment_bytes:
                    assert time.monotonic() < deadline, server.store()
                    self._live(server)

        self._alone(write, window="16M")

    def die_with_unsealed_pack(self) -> None:
        """Entries that no footer tells of."""

        def write(server: Daemon) -> None:
            for _ in range(SHORT_LIFE):
                self.life.garbage(server)  # which waits for a round
            self.life.versions(server)

        self._alone(write)

    def distrust_index(self) -> None:
        """As after a power cut."""
        kv = LmdbKeyValue(self.data / "meta", synced=True, map_size=META_MAP_BYTES)
        try:
            Meta(kv, SystemClock()).distrust_index()
        finally:
            kv.close()

    def damage(self) -> None:
        """Flip a bit of a chunk of HEALED, wherever it is stored."""

        def settle(server: Daemon) -> None:
            self.life.check(server)
            self.life.garbage(server)  # which waits for a round

        self._alone(settle, seal=True)
        wanted = self.life.model.state(HEALED)[:4096]
        found = 0
        for path in sorted((self.data / "packs").iterdir()):
            data = path.read_bytes()
            at = data.find(wanted)
            while at >= 0:
                with path.open("r+b") as file:
                    file.seek(at + 100)
                    file.write(bytes([data[at + 100] ^ 1]))
                found += 1
                at = data.find(wanted, at + 1)
        assert found, "the volume is in no pack"
        self.life.damaged.add(HEALED)

    # -- inside

    def _daemon(self, environ: dict[str, str], settings: str = "", *, window: str = "2M") -> Daemon:
        self.data.mkdir(mode=0o700, exist_ok=True)
        (self.data / "blockd.toml").write_text(SETTINGS.format(window=window) + settings)
        report = {sites.REPORT: str(self._report)}
        environ = {**self._rare, **report, **environ}
        return Daemon(self.data, ("--iscsi", "127.0.0.1:0"), environ=environ)

    def _alone(
        self, work: Callable[[Daemon], object], *, seal: bool = False, window: str = "2M"
    ) -> None:
        """A life without an armed point, ended by kill -9; `seal`: as it should end, so that all
        packs have their footers."""
        server = self._daemon({}, window=window)
        try:
            server.start()
            self.life.check(server)
            work(server)
            if seal:
                server.stop()
            else:
                server.kill()
        finally:
            server.discard()

    def _live(self, server: Daemon) -> None:
        for _ in range(SHORT_LIFE):
            self.life.writes(server)

    def _serve(self, way: Way, environ: dict[str, str]) -> None:
        """Until the daemon has died, or `PATIENCE_S` are over."""
        server = self._daemon(environ, way.settings)
        try:
            self._work_with(server, way)
        except Mismatch:
            raise
        except Exception:
            if not self._dies(server):
                raise
        finally:
            server.discard()

    def _work_with(self, server: Daemon, way: Way) -> None:
        server.start()
        self.life.check(server)
        if way.scene == START:
            return
        if way.scene == STOP:
            self._live(server)
            server.stop()
            return
        assert callable(way.scene)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            way.scene(self.life, server)

    def _dies(self, server: Daemon) -> bool:
        """Whether the process was killed, or is about to be."""
        deadline = time.monotonic() + DEATH_S
        while server.running:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return server.wait() == -signal.SIGKILL

    def _repair(self, environ: dict[str, str]) -> None:
        command = (sys.executable, "-m", "blockd", "doctor", "--repair-index")
        subprocess.run(
            [*command, "--data", str(self.data)],
            env={**os.environ, **environ},
            capture_output=True,
            timeout=CLI_S,
            check=False,
        )

    def _collect_report(self) -> list[str]:
        """What armed sites have said since the last time."""
        if not self._report.exists():
            return []
        lines = self._report.read_text().splitlines()
        self._report.unlink()
        told = [line.split() for line in lines]
        self.rare_reached |= {name for _, name in told if name in sites.RARE_SITES}
        self.rare_fired |= {
            name for what, name in told if what == "fired" and name in sites.RARE_SITES
        }
        return lines

    def _examine(self) -> None:
        """What `blockd doctor` says of the directory; the machine it is on does not matter."""
        machine = doctor.Machine(which=lambda tool: tool, modinfo=lambda module: True)
        findings = doctor.examine(load_config(None, self.data), self.data, machine)
        failed = [finding for finding in findings if finding.level == doctor.FAIL]
        if failed:
            raise Mismatch(f"blockd doctor: {failed}")


__all__ = ["QUIET_BYTES", "WAYS", "NotReached", "Storm"]
