"""The servers that are compared: how each is started on a folder, and what it costs to run.

Each serves one volume of the same size with the same content on a free port of 127.0.0.1. The C
servers share one raw file; blockd has a data directory that the file's content was copied to.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

START_S = 60.0
STOP_S = 60.0
RAW = "volume.raw"
QCOW2 = "volume.qcow2"
LIMIT = "no-work server"
VOLUME = "bench"
PID_FILE = "nbd-server.pid"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Server:
    """`command` makes the command line from the folder and the port; `version` asks for it."""

    name: str
    program: str
    command: Callable[[Path, int], list[str]]
    version: tuple[str, ...]
    daemonizes: bool = False
    """The command returns at once; the server's pid is in PID_FILE."""

    @property
    def is_blockd(self) -> bool:
        return self.program == sys.executable


def _qemu(aio: str) -> Callable[[Path, int], list[str]]:
    def command(folder: Path, port: int) -> list[str]:
        options = [f"--aio={aio}", "--cache=writeback", "--discard=unmap", "--shared=16"]
        where = ["--bind=127.0.0.1", f"--port={port}", f"--export-name={VOLUME}"]
        return ["qemu-nbd", "--format=raw", "--persistent", *options, *where, str(folder / RAW)]

    return command


def _qcow2(folder: Path, port: int) -> list[str]:
    options = ["--aio=threads", "--cache=writeback", "--discard=unmap", "--shared=16"]
    where = ["--bind=127.0.0.1", f"--port={port}", f"--export-name={VOLUME}"]
    return ["qemu-nbd", "--format=qcow2", "--persistent", *options, *where, str(folder / QCOW2)]


def _limit(folder: Path, port: int) -> list[str]:
    return [str(folder / "limit"), str(port), str((folder / RAW).stat().st_size)]


def _nbdkit(folder: Path, port: int) -> list[str]:
    return ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "file", str(folder / RAW)]


def _nbd_server(folder: Path, port: int) -> list[str]:
    config = folder / "nbd-server.conf"
    config.write_text(
        f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n"
        f"[{VOLUME}]\nexportname = {folder / RAW}\nflush = true\nfua = true\ntrim = true\n"
    )
    return ["nbd-server", "-C", str(config), "-p", str(folder / PID_FILE)]


def _blockd(folder: Path, port: int) -> list[str]:
    return [
        *(sys.executable, "-m", "blockd", "serve", "--json", "--log-level", "warning"),
        *("--data", str(folder / "blockd"), "--nbd", f"127.0.0.1:{port}"),
    ]


SERVERS = (
    Server("qemu-nbd", "qemu-nbd", _qemu("threads"), ("qemu-nbd", "--version")),
    Server("qemu-nbd io_uring", "qemu-nbd", _qemu("io_uring"), ("qemu-nbd", "--version")),
    Server("qemu-nbd qcow2", "qemu-nbd", _qcow2, ("qemu-nbd", "--version")),
    Server("nbdkit file", "nbdkit", _nbdkit, ("nbdkit", "--version")),
    Server("nbd-server", "nbd-server", _nbd_server, ("nbd-server", "--version"), daemonizes=True),
    Server(LIMIT, "gcc", _limit, ("gcc", "--version")),
    Server("blockd", sys.executable, _blockd, (sys.executable, "-m", "blockd", "--version")),
)
BLOCKD = SERVERS[-1]


def make_volume(folder: Path, size: int) -> None:
    """The raw file with random bytes, and blockd's volume with the same."""
    with (folder / RAW).open("wb") as file:
        for _ in range(size >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    convert = ["qemu-img", "convert", "-O", "qcow2", str(folder / RAW), str(folder / QCOW2)]
    subprocess.run(convert, check=True)
    build_limit(folder)
    fill_volume(BLOCKD, folder)


def build_limit(folder: Path) -> None:
    """The server that does no work, see limit/server.c."""
    source = Path(__file__).parent / "limit" / "server.c"
    command = ["gcc", "-O2", "-o", str(folder / "limit"), str(source), "-lpthread"]
    subprocess.run(command, check=True)


def settle(server: Server, folder: Path) -> None:
    """Let nothing of what was measured before go on while the next is: a running blockd destages,
    and what is dirty in the page cache goes to the disk."""
    if server.is_blockd:
        wait_until_destaged(_control(folder))
    os.sync()


def fill_volume(server: Server, folder: Path) -> None:
    """Copy the raw file into the volume of a blockd, and wait until it is at rest."""
    with Running(server, folder) as blockd:
        subprocess.run(
            ["nbdcopy", "--flush", str(folder / RAW), blockd.uri], check=True, stdout=sys.stderr
        )
        wait_until_destaged(_control(folder))


def _control(folder: Path) -> str:
    return str(folder / "blockd" / "control.sock")


def wait_until_destaged(control: str) -> None:
    """Reads are to be those of data at rest, and nothing that was measured is to go on. Gives up
    quietly: a busy destager is no error."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        status = subprocess.run(
            [sys.executable, "-m", "blockd", "status", "--json", "--control", control],
            check=True,
            capture_output=True,
        )
        if json.loads(status.stdout)["store"]["hot_bytes"] == 0:
            return
        time.sleep(1.0)


class Running:
    """A server that listens while the context lasts."""

    def __init__(self, server: Server, folder: Path, volume: str = VOLUME) -> None:
        """`volume`: what a blockd serves; the others have one only."""
        self.server = server
        self._volume = volume if server.is_blockd else VOLUME
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"nbd://127.0.0.1:{self._port}/{self._volume}"

    @property
    def fio(self) -> tuple[str, ...]:
        return "--ioengine=nbd", f"--uri={self.uri}"

    def __enter__(self) -> "Running":
        if shutil.which(self.server.program) is None:
            raise SystemExit(f"{self.server.name}: {self.server.program} is not installed")
        log_path = self._folder / "server.log"
        with log_path.open("wb") as log:
            command = self.server.command(self._folder, self._port)
            if self.server.is_blockd:
                size = (self._folder / RAW).stat().st_size
                command += ["--volume", f"{self._volume}={size}"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not _listens(self._port):
            if self._process.poll() or time.monotonic() > deadline:
                self._process.kill()
                self._process.wait()
                raise SystemExit(f"{self.server.name}: did not start\n{log_path.read_text()}")
            time.sleep(0.05)
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        while self._process.poll() is None or _listens(self._port):
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                deadline += STOP_S
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of the server itself."""
        assert self._process is not None
        if self.server.daemonizes:
            return int((self._folder / PID_FILE).read_text())
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds so far of the process, its descendants, and those that it has reaped."""
        return cpu_s(self.pid)

    def resident_bytes(self) -> int:
        return resident_bytes(self.pid)


def cpu_s(root: int) -> float:
    """CPU seconds so far of a process, its descendants, and those that it has reaped."""
    return sum(_cpu_ticks(pid) for pid in _tree(root)) / TICKS


def resident_bytes(root: int) -> int:
    """Of a process and its descendants."""
    return sum(_resident_pages(pid) for pid in _tree(root)) * PAGE


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _tree(root: int) -> list[int]:
    """`root` and its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5): field 3); empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_ticks(pid: int) -> int:
    return sum(int(field) for field in _stat(pid)[11:15])  # utime, stime, cutime, cstime


def _resident_pages(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) if fields else 0
