"""`python -m tests.check scan` on volumes that are served, over NBD and over iSCSI."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.check.clients import Connection, IscsiConnection, NbdConnection
from tests.check.events import FLUSH, FUA, READ, TRIM, WRITE, WRITES, ZERO, Recorder
from tests.clients import FindTool
from tests.daemon import Daemon, StartDaemon

SIZE = 1 << 20


def do(recorder: Recorder, connection: Connection, kind: str, first: int, count: int) -> None:
    """One recorded operation, from its begin to its end."""
    operation = recorder.begin(1, kind, first, count)
    data = recorder.payload(1, operation, first, count) if kind in WRITES else b""
    connection.send(operation, kind, first, count, data)
    answer = connection.receive()
    assert (answer.tag, answer.error) == (operation, 0)
    if kind == READ:
        recorder.saw(operation, first, answer.data)
    else:
        recorder.end(operation)


def connected(server: Daemon, protocol: str) -> Connection:
    if protocol == "nbd":
        return NbdConnection(server.host_port, "demo")
    host, port = server.iscsi_address.rsplit(":", 1)
    return IscsiConnection((host, int(port)), "demo")


def scan(device: str, history: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "tests.check", "scan", device, "--history", str(history)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("protocol", ["nbd", "iscsi"])
def test_a_served_volume_is_scanned_against_its_history(
    client_tool: FindTool, daemon: StartDaemon, tmp_path: Path, protocol: str
) -> None:
    client_tool("qemu-img")
    server = daemon(listen=("--nbd", "127.0.0.1:0", "--iscsi", "127.0.0.1:0"))
    server.create("demo", SIZE)
    device = server.uri() if protocol == "nbd" else server.iscsi_url()
    history = tmp_path / "history"
    connection = connected(server, protocol)
    with Recorder(history, "demo", SIZE) as recorder:
        for kind, first, count in (
            (WRITE, 0, 64),
            (FUA, 100, 7),
            (TRIM, 8, 8),
            (ZERO, 40, 3),
            (FLUSH, 0, 0),
            (WRITE, 60, 16),
            (READ, 0, 128),
        ):
            do(recorder, connection, kind, first, count)
    code, text = scan(device, history)
    assert (code, "ok; 7 operations" in text) == (0, True), text

    connection.send(99, WRITE, 101, 1, b"\xee" * 512)  # somebody who does not keep a history
    assert connection.receive().error == 0
    connection.send(100, ZERO, 61, 1, b"")
    assert connection.receive().error == 0
    connection.close()
    code, text = scan(device, history)
    assert code == 1
    assert "I8" in text
    assert "sectors [101, +1)" in text
    assert "I2" in text
    assert "sectors [61, +1)" in text
