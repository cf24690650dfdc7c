"""blockd as a user installs it: a wheel of the tree, in a virtual environment with nothing else.

The build goes on from what the last one has left in build/, and pip has its cache; both come from
the package index when they are not there.
"""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.clients import unavailable
from tests.daemon import Daemon
from tests.nbd_client import NbdClient

ROOT = Path(__file__).parents[2]
PIP_S = 300.0  # a whole build on a busy machine, or downloads over a slow line
PACKAGES = {"blockd", "native", "transport", "volume"}
OFFLINE = ("Failed to establish a new connection", "Temporary failure in name resolution")
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("PYTHON") and name != "VIRTUAL_ENV"
}


def pip(*arguments: str | Path, folder: Path) -> None:
    """Run pip in `folder`. Without the package index the test is skipped."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PIP_S,
        check=False,
    )
    if done.returncode and any(sign in done.stdout + done.stderr for sign in OFFLINE):
        unavailable("the Python package index")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ".", folder=ROOT)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The command, installed where nothing of the tree is."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    pip("--python", python, "install", "--no-compile", wheel, folder=folder)
    return str(folder / "venv" / "bin" / "blockd")


def test_a_wheel_has_the_packages_their_programs_and_no_sources_of_them(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert {name.split(".")[0] for name in names if name.endswith(".so")} == {
        "native/_native",
        "native/_tls",
    }
    parts = (".py", ".pyi", ".so", "/py.typed")
    assert [name for name in names if ".dist-info/" not in name and not name.endswith(parts)] == []
    assert all(f"{package}/py.typed" in names for package in PACKAGES)


def test_an_installed_blockd_serves_and_finds_again_what_was_written(
    program: str, tmp_path: Path
) -> None:
    shown = subprocess.run(
        [program, "--help"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "serve" in shown.stdout
    options = ("--volume", "disk=16M", "--iscsi", "127.0.0.1:0")
    environ = {"PYTHONPATH": "", "VIRTUAL_ENV": ""}
    server = Daemon(tmp_path / "data", options, program=[program], environ=environ)
    server.start()
    try:
        with NbdClient(server.host_port) as client:
            client.greet()
            client.go("disk")
            client.write(4096, b"installed" * 512)
            client.flush()
            client.disconnect()
        assert server.run_json("status")["store"]["state"] == "ok"
        assert server.stop() == 0
        server.start()
        with NbdClient(server.host_port) as client:
            client.greet()
            client.go("disk")
            assert client.read(4096, 9 * 512) == b"installed" * 512
        assert server.stop() == 0
    finally:
        server.discard()
