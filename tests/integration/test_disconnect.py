"""`blockd client` with a real daemon and qemu-io as the client of both protocols."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.clients import FindTool
from tests.daemon import Daemon, StartDaemon

SIZE = 16 << 20
END_S = 60.0


@pytest.fixture
def served(daemon: StartDaemon) -> Daemon:
    found = daemon("--iscsi", "127.0.0.1:0")
    found.create("demo", SIZE)
    return found


@contextmanager
def holding(qemu_io: str, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """qemu-io that has written to `url`, and stays connected."""
    command = [qemu_io, "-f", "raw", url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        try:
            process.stdin.write(b"write -P 7 0 4k\n")
            process.stdin.flush()
            told = b""
            while b"wrote 4096/4096" not in told:
                piece = process.stdout.read1(4096)
                assert piece, told
                told += piece
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("protocol", ["nbd", "iscsi"])
def test_a_client_that_works_is_listed_and_disconnected(
    served: Daemon, client_tool: FindTool, protocol: str
) -> None:
    url = served.uri() if protocol == "nbd" else served.iscsi_url()
    kind = "connections" if protocol == "nbd" else "sessions"
    with holding(client_tool("qemu-io"), url):
        [client] = served.run_json("client", "list")[kind]
        assert (client["write_count"], client["write_bytes"]) == (1, 4096)
        done = served.run_json("client", "disconnect", "--volume", "demo")
        assert done == {"ids": [client["id"]], "cut": []}
        with served.control() as control:
            left = [each.id for each in control.connections()]
            left += [each.id for each in control.sessions()]
        assert client["id"] not in left  # whoever is there has connected again
