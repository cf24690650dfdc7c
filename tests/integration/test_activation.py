"""Socket activation: systemd, or a client of libnbd, opens the socket and passes it on."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clients import FindTool, run_libnbd, run_tool
from tests.daemon import StartDaemon

APPEAR_S = 60.0

LAUNCHER = """
import os, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
os.dup2(sock.fileno(), 3)
os.environ["LISTEN_FDS"] = "1"
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + APPEAR_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_an_inherited_socket_is_served_and_no_other_is_opened(
    client_tool: FindTool, daemon: StartDaemon
) -> None:
    nbdinfo = client_tool("nbdinfo")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        fd = listening.fileno()
        server = daemon(
            "--volume",
            "demo=64M",
            listen=(),
            prefix=(sys.executable, "-c", LAUNCHER, str(fd)),
            pass_fds=(fd,),
        )
    assert server.address == f"127.0.0.1:{port}"
    assert run_tool(nbdinfo, "--size", f"nbd://127.0.0.1:{port}/demo").strip() == str(64 << 20)
    assert server.stop() == 0


def test_systemd_starts_it_on_the_first_connection(
    client_tool: FindTool, data_dir: Path, tmp_path: Path
) -> None:
    activate, nbdinfo = client_tool("systemd-socket-activate"), client_tool("nbdinfo")
    path = data_dir.with_name("a.sock")
    serve = (sys.executable, "-m", "blockd", "serve", "--data", data_dir, "--volume", "demo=64M")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([activate, "-l", path, "-E", "PATH", *serve], stderr=log)
    try:
        _wait_for(path)
        uri = f"nbd+unix:///demo?socket={path}"
        assert run_tool(nbdinfo, "--size", uri).strip() == str(64 << 20)
    finally:
        process.terminate()
        assert process.wait(90) == 0, (tmp_path / "log").read_text()


@pytest.mark.usefixtures("libnbd")
def test_libnbd_starts_it_as_its_own_server(data_dir: Path) -> None:
    run_libnbd(
        "",
        """
h = nbd.NBD()
h.set_export_name("demo")
h.connect_systemd_socket_activation(arguments)
h.pwrite(b"a" * 4096, 0)
h.flush()
assert h.pread(8192, 0) == b"a" * 4096 + bytes(4096)
h.shutdown()
""",
        *(sys.executable, "-m", "blockd", "serve"),
        *("--data", os.fspath(data_dir), "--volume", "demo=64M"),
    )


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_attached_qemu_writes_on_through_a_restart(
    client_tool: FindTool, daemon: StartDaemon, how: signal.Signals
) -> None:
    """The listening socket outlives the daemon: who connects in between waits."""
    qemu_io, nbdinfo = client_tool("qemu-io"), client_tool("nbdinfo")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        fd = listening.fileno()
        prefix = (sys.executable, "-c", LAUNCHER, str(fd))
        server = daemon("--volume", "demo=64M", listen=(), prefix=prefix, pass_fds=(fd,))
        image = f"driver=raw,file.driver=nbd,file.host={host},file.port={port},file.export=demo"
        image += ",file.reconnect-delay=60"
        with subprocess.Popen(
            [qemu_io, "--image-opts", image],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as qemu:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            qemu.stdin.write("write -P 1 0 64k\n")
            while "wrote 65536/65536" not in qemu.stdout.readline():
                assert qemu.poll() is None
            server.end(how)
            qemu.stdin.write("write -P 2 64k 64k\nread -P 1 0 64k\nread -P 2 64k 64k\nquit\n")
            early = subprocess.Popen(
                [nbdinfo, "--size", f"nbd://{host}:{port}/demo"], stdout=subprocess.PIPE, text=True
            )
            server.start()
            said, _ = qemu.communicate(timeout=60)
            assert early.communicate(timeout=60)[0].strip() == str(64 << 20)
        assert "wrote 65536/65536 bytes at offset 65536" in said, said
        assert said.count("read 65536/65536") == 2, said
        assert "failed" not in said, said
