"""The daemon that is soaked: started, killed and started again, while clients ask where it is."""

import threading
import time
from pathlib import Path

from growth import Life, Sample, sample

from tests.check.record import Addresses
from tests.daemon import Daemon

SETTINGS = """\
[store]
cache = "16M"
journal_limit = "128M"
window = "128M"
window_s = 5
keep = ""
gc_interval_s = 20
gc_condemn_s = 1
"""
HOST = "127.0.0.1"


class Server:
    """Clients on other threads use `daemon` while `up` is set, and may find it gone at any time:
    what they were doing when `generation` changed says nothing."""

    def __init__(self, folder: Path) -> None:
        data = folder / "data"
        data.mkdir()
        (data / "blockd.toml").write_text(SETTINGS)
        self.daemon = Daemon(data, listen=("--nbd", f"{HOST}:0", "--iscsi", f"{HOST}:0"))
        self.up = threading.Event()
        self.generation = 0
        self.kills = 0
        self.lives: list[Life] = []
        self._samples: list[Sample] = []

    def start(self) -> None:
        self.daemon.start()
        self.generation += 1
        self.sample()
        self.up.set()

    def kill(self) -> None:
        """SIGKILL."""
        self._end_life()
        self.daemon.kill()
        self.kills += 1

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._end_life()
        return self.daemon.stop()

    def sample(self) -> Sample:
        taken = sample(self.daemon.pid, time.monotonic())
        self._samples.append(taken)
        return taken

    def addresses(self) -> Addresses:
        host, port = self.daemon.iscsi_address.rsplit(":", 1)
        return Addresses(self.daemon.host_port, (host, int(port)))

    def _end_life(self) -> None:
        self.up.clear()
        self.sample()
        self.generation += 1
        self.lives.append(Life(tuple(self._samples)))
        self._samples = []
