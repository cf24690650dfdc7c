"""scripts/serve --cluster: three nodes and an etcd come up, and all of it ends with a signal."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blockd.api.client import Client
from blockd.cli.options import ENVIRONMENT
from tests.clients import FindTool
from tests.daemon import STOP_S
from tests.peer_nodes import until

ROOT = Path(__file__).parents[2]


def start(folder: Path, log: Path, etcd: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(ROOT / "scripts" / "clustering"), "3", "--data", str(folder)]
    path = f"{os.path.dirname(etcd)}:{os.environ['PATH']}"
    with log.open("ab") as out:
        return subprocess.Popen(
            [*IN_BACKGROUND, *command],
            stdout=out,
            stderr=out,
            env={**os.environ, "PATH": path},
            cwd=ROOT,
        )


UP_S = 180.0  # a dozen processes are started for it, one after the other
IN_BACKGROUND = ("sh", "-c", 'trap "" INT; exec "$0" "$@"')
"""As a shell starts what it does not wait for; a signal that is sent to it ends it all the same."""


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def run(line: str, control: Path) -> None:
    """What a person was told to type."""
    _, *arguments = shlex.split(line, comments=True)
    command = [sys.executable, "-m", "blockd", *arguments]
    subprocess.run(command, check=True, env={**os.environ, ENVIRONMENT: str(control)}, cwd=ROOT)


def serving(folder: Path, volume: str) -> bool:
    with Client(folder / "n1" / "control.sock") as client:
        return any(each.name == volume and each.primary for each in client.cluster_status().volumes)


def test_three_nodes_come_up_and_end_and_come_up_again(
    client_tool: FindTool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    etcd = client_tool("etcd")
    folder = tmp_path_factory.mktemp("c")
    log = folder.with_suffix(".log")
    for life in (1, 2):
        process = start(folder, log, etcd)
        try:
            until(
                lambda life=life, process=process: (  # type: ignore[misc]
                    log.read_text().count("Ctrl-C ends") == life or process.poll() is not None
                ),
                "it is up",
                UP_S,
            )
            assert process.poll() is None, log.read_text()
            started = children(process.pid)
            assert len(started) == 4
            with Client(folder / "n2" / "control.sock") as client:
                shown = client.cluster()
            assert [each.name for each in shown.nodes if each.connected] == ["n1", "n2", "n3"]
            if life == 1:
                told = log.read_text().splitlines()
                (create,) = (line for line in told if "blockd cluster create" in line)
                run(create, folder / "n1" / "control.sock")
            until(lambda: serving(folder, "demo"), "the volume is served")
            process.send_signal(signal.SIGINT)
            assert process.wait(3 * STOP_S) == 0, log.read_text()
            assert not any(Path(f"/proc/{pid}").exists() for pid in started)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(3 * STOP_S)
