"""A real `blockd serve` process under a test's control.

It listens on a free TCP port of 127.0.0.1 and on unix sockets in its data directory, tells where
by the JSON line that it prints when it is ready, and is ended by its pid. What it wrote to stderr,
over all its starts, is kept in a file beside the data directory.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from blockd.api.client import Client
from blockd.iscsi.targets import IQN_PREFIX
from tests import forks
from tests.forks import Forked, Forks
from volume.model import StoreStatus

READY_S = 120.0  # a start with a full journal to replay, under sanitizers, on a busy machine
STOP_S = 90.0  # the drain time and what it takes to close the store
CLI_S = 120.0  # a transfer of a test's volume on a busy machine
POLL_S = 0.05
PROGRAM = (sys.executable, "-m", "blockd")
JOURNAL_BYTES = 128 << 20
STORE = f"""\
short_percent = 0
journal_limit = "{JOURNAL_BYTES >> 20}MiB"
"""
"""[store] of a daemon that has no settings of its own. Space is never short: how full the disk of a
test machine is must not decide which versions stay. The journal has segments of 8 MiB: by default
they have 64, and a new directory begins with four that are full of zeros and synced, which was most
of what a start cost, and is nothing that a test looks at."""


class Daemon:
    """`options` are those of `blockd serve`; `prefix` is a command that starts it in our place,
    `program` is blockd itself. Without these it is forked (`tests.forks`), in a run of pytest.
    Without settings of its own it has `STORE`.
    """

    def __init__(
        self,
        data: Path,
        options: Sequence[str] = (),
        *,
        listen: Sequence[str] = ("--nbd", "127.0.0.1:0"),
        prefix: Sequence[str] = (),
        program: Sequence[str] = PROGRAM,
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.data = data
        self.options = list(options)
        self.ready: dict[str, Any] = {}
        self._listen = list(listen)
        self._prefix = list(prefix)
        self._program = list(program)
        self._pass_fds = tuple(pass_fds)
        self._environ = {**os.environ, **(environ or {})}
        self._log = data.with_name(data.name + ".stderr")
        self._process: subprocess.Popen[bytes] | Forked | None = None

    def command(self) -> list[str]:
        serve = [*self._program, "serve", "--json", "--data", str(self.data)]
        return [*self._prefix, *serve, *self._listen, *self.options, *self._settings()]

    def _settings(self) -> Sequence[str]:
        if "--config" in self.options or (self.data / "blockd.toml").exists():
            return ()
        config = self.data.with_name(self.data.name + ".toml")
        config.write_text(f"[store]\n{STORE}")
        return ("--config", str(config))

    def start(self) -> None:
        """Returns when clients can attach. Raises AssertionError with stderr when it does not."""
        process = self._launch()
        assert process.stdout is not None
        line = _read_line(process.stdout.fileno(), READY_S)
        assert line, f"blockd did not become ready; its stderr:\n{self.stderr()}"
        self.ready = json.loads(line)

    def _forks(self) -> Forks | None:
        """What starts it quicker, if it is to be started as usual."""
        usual = not self._prefix and not self._pass_fds and self._program == [*PROGRAM]
        return forks.shared.get() if usual else None

    def _launch(self) -> "subprocess.Popen[bytes] | Forked":
        assert self._process is None, "started twice"
        quick = self._forks()
        with self._log.open("ab") as log:
            if quick is not None:
                arguments = self.command()[len(PROGRAM) :]
                self._process = quick.serve(arguments, log, self._environ)
                return self._process
            self._process = subprocess.Popen(
                self.command(),
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environ,
                pass_fds=self._pass_fds,
            )
        return self._process

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: what a crash of the process is."""
        self.end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, as a service manager does; the exit code."""
        return self.end(signal.SIGTERM)

    def interrupt(self) -> int:
        """SIGINT, as Ctrl-C does; the exit code."""
        return self.end(signal.SIGINT)

    def end(self, signal_number: int) -> int:
        """Send a signal and wait for the end; the exit code, negative for a signal."""
        process = self._process
        assert process is not None, "not started"
        process.send_signal(signal_number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the process to end by itself; the exit code."""
        process = self._process
        assert process is not None, "not started"
        assert process.stdout is not None
        try:
            return process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"blockd did not end; its stderr:\n{self.stderr()}") from None
        finally:
            process.stdout.close()
            self._process = None

    def discard(self) -> None:
        """Be gone, in whatever state."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def stderr(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def uri(self, volume: str = "demo") -> str:
        """NBD URI over TCP."""
        return f"nbd://{self.address}/{volume}"

    def unix_uri(self, volume: str = "demo") -> str:
        """NBD URI over the unix socket."""
        return f"nbd+unix:///{volume}?socket={self.socket}"

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return next(str(address) for address in self.ready["nbd"] if not _is_path(address))

    @property
    def host_port(self) -> tuple[str, int]:
        host, port = self.address.rsplit(":", 1)
        return host, int(port)

    @property
    def socket(self) -> str:
        return next(str(address) for address in self.ready["nbd"] if _is_path(address))

    @property
    def iscsi_address(self) -> str:
        """HOST:PORT of the first iSCSI portal."""
        return str(self.ready["iscsi"][0])

    def iscsi_url(self, volume: str = "demo", lun: int = 0) -> str:
        """URL of the unit that every volume has without any configuration, as libiscsi takes it."""
        return f"iscsi://{self.iscsi_address}/{IQN_PREFIX}{volume}/{lun}"

    def create(self, volume: str, size: int, block_size: int = 512) -> None:
        """Make a volume; by default one whose clients may write single sectors."""
        with self.control() as client:
            client.create_volume(volume, size, block_size=block_size)

    def control(self) -> Client:
        """A client of the control API; a context manager."""
        return Client(Path(self.ready["control"]))

    def run(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        """The standard output of `blockd ARGUMENTS` on this daemon. AssertionError if it fails."""
        done = self.finish(*arguments, stdin=stdin)
        said = done.stderr.decode(errors="replace")
        assert done.returncode == 0, f"blockd {' '.join(arguments)}: {done.returncode}\n{said}"
        return done.stdout

    def run_json(self, *arguments: str) -> Any:
        """What `blockd ARGUMENTS --json` prints, decoded."""
        return json.loads(self.run(*arguments, "--json"))

    def finish(
        self, *arguments: str, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `blockd ARGUMENTS` on this daemon to its end, whatever that is."""
        return run_blockd(self.cli(*arguments)[len(self._program) :], stdin, self._program)

    def cli(self, *arguments: str) -> list[str]:
        """The command line of `blockd ARGUMENTS` on this daemon."""
        control = ("--control", str(self.ready["control"]))
        return [*self._program, *arguments, *control]

    def store(self) -> StoreStatus:
        with self.control() as client:
            return client.status().store

    def wait_for(
        self, what: str, reached: Callable[[StoreStatus], bool], timeout_s: float = 60.0
    ) -> StoreStatus:
        """Poll the store's status until `reached`. Raises AssertionError that says `what`."""
        deadline = time.monotonic() + timeout_s
        with self.control() as client:
            while True:
                status = client.status().store
                if reached(status):
                    return status
                assert time.monotonic() < deadline, f"{what}: not in {timeout_s} s; {status}"
                time.sleep(POLL_S)


def run_blockd(
    arguments: Sequence[str],
    stdin: bytes | None = None,
    program: Sequence[str] = PROGRAM,
    environ: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run `blockd ARGUMENTS` to its end, whatever that is."""
    quick = forks.shared.get() if tuple(program) == PROGRAM else None
    if quick is not None:
        return quick.run(arguments, stdin=stdin or b"", environ=environ, timeout_s=CLI_S)
    return subprocess.run(
        [*program, *arguments],
        input=stdin or b"",
        env=environ,
        capture_output=True,
        timeout=CLI_S,
        check=False,
    )


class StartDaemon(Protocol):
    """What the fixture `daemon` gives: `options` of `blockd serve`, keywords of `Daemon`."""

    def __call__(self, *options: str, start: bool = True, **keywords: Any) -> Daemon: ...


def _is_path(address: str) -> bool:
    return address.startswith("/")


def _read_line(fd: int, timeout_s: float) -> bytes:
    """The first line that arrives on `fd`; empty at the end of it. Nothing may follow the line."""
    deadline = time.monotonic() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return b""
            piece = os.read(fd, 65536)
            if not piece:
                return b""
            line += piece
    return line
