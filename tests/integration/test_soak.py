"""A soak of some seconds: everything that hours of it do, with a kill in the middle."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import FindTool

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240.0  # on a busy machine: what guests are doing when time is up goes on to its end


def test_a_short_soak_finds_nothing(client_tool: FindTool, short_folder: Path) -> None:
    for tool in ("fio", "qemu-io"):
        client_tool(tool)
    report = short_folder / "report.md"
    command = [sys.executable, str(ROOT / "scripts/soaking"), "--minutes", "0.2"]
    options = ["--rate", "1000", "--size-mib", "2", "--seed", "3", "--kill-every-s", "60"]
    done = subprocess.run(
        [*command, *options, "--dir", str(short_folder), "--summary", str(report)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "soak: ok" in done.stdout
    assert "1 kill -9" in report.read_text()
    assert list(short_folder.iterdir()) == [report]


@pytest.fixture
def short_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a path that is short enough for unix sockets in it."""
    return tmp_path_factory.mktemp("s")
