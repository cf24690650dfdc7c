"""How long a restart keeps clients waiting: the listening socket stays, the daemon goes and comes.

A client reads the first block, and connects anew as soon as it has lost its connection, as a client
does that reconnects. Without service is from the last reply before the daemon was told to stop, or
was killed, to the first reply of its successor, which is started when the old one has ended. The
listening socket is this program's, as it is systemd's with socket activation: no connection is
refused.

Idle: a volume that nobody writes to. Busy: writes of 64 KiB up to the moment of the stop, so that
the journal has them to replay.
"""

import argparse
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from report import machine, write
from servers import cpu_s

from tests.daemon import PROGRAM, Daemon
from tests.nbd_client import NbdClient

BEGIN = "<!-- scripts/bench restart: from here -->"
END = "<!-- scripts/bench restart: to here -->"
VOLUME = 1 << 30
BLOCK = 65536
LAUNCHER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_FDS"] = "1"
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
Address = tuple[str, int]


def attached(address: Address) -> NbdClient:
    client = NbdClient(address)
    client.__enter__()
    client.greet()
    client.go("demo")
    return client


def fill(address: Address, written: int) -> None:
    """Acknowledged writes, the last of them flushed."""
    client = attached(address)
    for number in range(written // BLOCK):
        client.write(number * BLOCK % VOLUME, os.urandom(BLOCK))
    client.flush()
    client.__exit__(None, None, None)


def first_reply(address: Address) -> float:
    """The moment of it; connects anew until somebody answers."""
    while True:
        with suppress(OSError, EOFError):
            client = attached(address)
            client.read(0, 4096)
            moment = time.monotonic()
            client.__exit__(None, None, None)
            return moment


def restarted(
    server: Daemon, address: Address, how: signal.Signals, written: int
) -> tuple[float, float]:
    """Seconds without service, and CPU seconds of the new process up to its first reply."""
    if written:
        fill(address, written)
    client = attached(address)
    client.read(0, 4096)
    last = time.monotonic()
    server.end(how)
    with suppress(OSError, EOFError):
        client.__exit__(None, None, None)
    with ThreadPoolExecutor(1) as client_thread:
        served = client_thread.submit(first_reply, address)
        server.start()
        return served.result() - last, cpu_s(server.pid)


def main(argv: Sequence[str], page: Path) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench restart", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--busy-mib", type=int, default=512, help="of the journal to be replayed")
    parser.add_argument("--dry-run", action="store_true", help="do not write the page")
    options = parser.parse_args(argv)
    rows = []
    for how in (signal.SIGTERM, signal.SIGKILL):
        for name, written in (("idle", 0), ("busy", options.busy_mib << 20)):
            seconds = []
            for number in range(options.rounds):
                seconds.append(one(how, written)[0])
                print(f"{how.name} {name}: round {number + 1}: {seconds[-1]:.3f} s", flush=True)
            rows.append(
                f"| {how.name}, {name} | {statistics.median(seconds):.2f} "
                f"| {min(seconds):.2f} | {max(seconds):.2f} |"
            )
    lines = [
        "",
        f"{machine()}. {options.rounds} rounds; busy: {options.busy_mib} MiB written before.",
        "",
        "| restart | median s | min | max |",
        "| --- | ---: | ---: | ---: |",
        *rows,
        "",
    ]
    print("\n".join(lines))
    if not options.dry_run:
        write(page, lines, begin=BEGIN, end=END)


def one(
    how: signal.Signals,
    written: int,
    program: Sequence[str] = PROGRAM,
    environ: Mapping[str, str] | None = None,
) -> tuple[float, float]:
    """As `restarted`, of a new daemon: this checkout's, or another one's."""
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        server = Daemon(
            Path(folder) / "data",
            ("--volume", f"demo={VOLUME}"),
            listen=(),
            program=program,
            environ=environ,
            prefix=(sys.executable, "-c", LAUNCHER, str(listening.fileno())),
            pass_fds=(listening.fileno(),),
        )
        server.start()
        try:
            return restarted(server, listening.getsockname(), how, written)
        finally:
            server.discard()
