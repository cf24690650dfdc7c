"""Starting, stopping and starting again: what is kept, who is told what, which code is returned."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blockd.iscsi.targets import IQN_PREFIX
from tests.clients import FindTool, finish_tool, run_libnbd
from tests.daemon import StartDaemon
from tests.ports import free_ports

CONFLICT = 5  # blockd.cli.exits: directory in use


@pytest.mark.usefixtures("libnbd")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_data_and_volumes_outlive_the_process(daemon: StartDaemon, how: signal.Signals) -> None:
    server = daemon("--volume", "demo=64M")
    run_libnbd(
        server.uri(),
        """
h = connected()
for number in range(64):
    h.pwrite(bytes([number + 1]) * 65536, number * 65536)
h.trim(65536, 65536)
h.shutdown()
""",
    )
    with server.control() as client:
        client.create_volume("made", 32 << 20)
    server.end(how)
    server.start()
    run_libnbd(
        server.uri(),
        """
data = connected().pread(64 * 65536, 0)
for number in range(64):
    expected = bytes(65536) if number == 1 else bytes([number + 1]) * 65536
    assert data[number * 65536 : (number + 1) * 65536] == expected, number
""",
    )
    with server.control() as client:
        assert [volume.name for volume in client.volumes()] == ["demo", "made"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_by_signal_exits_with_zero(daemon: StartDaemon, how: signal.Signals) -> None:
    assert daemon("--volume", "demo=64M").end(how) == 0


@pytest.mark.usefixtures("libnbd")
def test_a_stop_answers_a_client_that_stays_connected(daemon: StartDaemon) -> None:
    """The client's requests end in success or ESHUTDOWN or a closed connection, never in a hang."""
    server = daemon("--volume", "demo=64M")
    run_libnbd(
        server.uri(),
        """
import os, signal
h = connected()
h.pwrite(b"x" * 4096, 0)
os.kill(int(arguments[0]), signal.SIGINT)
try:
    while True:
        h.pwrite(b"y" * 4096, 0)
except nbd.Error as error:
    assert error.errno in ("ESHUTDOWN", "ENOTCONN", "ECONNRESET", "EPIPE", "EINVAL"), error.errno
""",
        str(server.pid),
    )
    assert server.wait() == 0


def test_a_second_start_names_the_process_that_holds_the_directory(
    daemon: StartDaemon, data_dir: Path
) -> None:
    first = daemon("--volume", "demo=64M")
    serve = ("-m", "blockd", "serve", "--data", data_dir, "--nbd", "127.0.0.1:0")
    second = finish_tool(sys.executable, *serve)
    assert second.returncode == CONFLICT, second.stderr
    assert str(first.pid) in second.stderr
    assert first.running


def test_a_directory_is_free_again_after_a_crash(daemon: StartDaemon) -> None:
    server = daemon("--volume", "demo=64M")
    server.kill()
    server.start()
    assert server.store().volume_count == 1


def test_status_without_a_daemon_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blockd", "status"],
        cwd=tmp_path,
        env={**os.environ, "BLOCKD_CONTROL": str(tmp_path / "control.sock")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "blockd serve" in done.stderr


def test_server_restart_under_an_attached_client_resumes(
    client_tool: FindTool, daemon: StartDaemon
) -> None:
    """Clients of both protocols write on after kill -9, by themselves, and lose nothing."""
    qemu_io = client_tool("qemu-io")
    nbd, iscsi = free_ports(2)
    server = daemon(
        *("--volume", "one=16M", "--volume", "two=16M", "--iscsi", f"127.0.0.1:{iscsi}"),
        listen=("--nbd", f"127.0.0.1:{nbd}"),
    )
    images = (
        "driver=raw,file.driver=nbd,file.host=127.0.0.1,"
        f"file.port={nbd},file.export=one,file.reconnect-delay=60",
        f"driver=raw,file.driver=iscsi,file.transport=tcp,file.portal=127.0.0.1:{iscsi},"
        f"file.target={IQN_PREFIX}two,file.lun=0",
    )
    clients = [
        subprocess.Popen(
            [qemu_io, "--image-opts", image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
        )
        for image in images
    ]
    try:
        for each in clients:
            assert each.stdin is not None
            assert each.stdout is not None
            each.stdin.write("write -P 1 0 64k\n")
            while "wrote 65536/65536" not in each.stdout.readline():
                assert each.poll() is None
        server.kill()
        for each in clients:
            assert each.stdin is not None
            each.stdin.write(
                "write -P 2 64k 64k\nflush\nread -P 1 0 64k\nread -P 2 64k 64k\nquit\n"
            )
        server.start()
        for each in clients:
            said, _ = each.communicate(timeout=90)
            assert "wrote 65536/65536 bytes at offset 65536" in said, said
            assert said.count("read 65536/65536") == 2, said
            assert "failed" not in said, said
    finally:
        for each in clients:
            each.kill()
            each.wait()
