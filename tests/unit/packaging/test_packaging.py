"""What is in packaging/ and the Dockerfile: systemd's own judgement, and what has to agree."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.clients import FindTool, run_tool

ROOT = Path(__file__).parents[3]
UNITS = ROOT / "packaging" / "systemd"
PROGRAM = "/opt/blockd/bin/blockd"
MAX_EXPOSURE = "15"  # 1.5 of 10, as systemd-analyze counts; "OK" begins below 5


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units, with a program that is there instead of ours."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    return tmp_path


def test_systemd_finds_nothing_wrong_with_the_units(client_tool: FindTool, installed: Path) -> None:
    analyze = client_tool("systemd-analyze")
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, sorted(installed.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", ["blockd.service", "blockd-backup-meta.service"])
def test_services_are_exposed_to_little(client_tool: FindTool, installed: Path, unit: str) -> None:
    judge = ("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", "--no-pager")
    run_tool(client_tool("systemd-analyze"), *judge, installed / unit)


def test_every_socket_is_the_services() -> None:
    """And it says so of each: who is not in Sockets= is not passed on when the service starts."""
    service = (UNITS / "blockd.service").read_text()
    (sockets,) = re.findall(r"^Sockets=(.*)$", service, re.MULTILINE)
    assert sorted(sockets.split()) == sorted(unit.name for unit in UNITS.glob("*.socket"))


def test_the_compose_file_runs_what_the_image_has() -> None:
    compose = yaml.safe_load((ROOT / "packaging" / "compose.yaml").read_text())
    service = compose["services"]["blockd"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    (uid,) = re.findall(r"--uid (\d+)", dockerfile)
    assert (ROOT / "packaging" / service["build"]["context"] / "Dockerfile").is_file()
    assert f"uid={uid},gid={uid}" in service["tmpfs"][0]
    for port in re.findall(r"\d+", re.findall(r"^EXPOSE (.*)$", dockerfile, re.MULTILINE)[0]):
        assert f"127.0.0.1:{port}:{port}" in service["ports"]
    (command,) = re.findall(r"^CMD \[(\"serve\".*?)\]$", dockerfile, re.MULTILINE | re.DOTALL)
    assert " ".join(service["command"]).replace("=", " ") == " ".join(
        re.findall(r'"(.*?)"', command)
    )
    assert 'CMD ["blockd", "status"]' in dockerfile
