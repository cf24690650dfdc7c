"""tests.forks: a child of the process that has blockd loaded is what the program would be."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import forks
from tests.daemon import PROGRAM, run_blockd
from tests.forks import Forks

TIMEOUT_S = 60.0


@pytest.fixture
def shared() -> Forks:
    found = forks.shared.get()
    assert found is not None
    return found


@pytest.mark.parametrize("arguments", [("--version",), ("volume", "nonsense"), ("status",)])
def test_it_says_and_exits_as_the_program_does(
    shared: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)  # no daemon is near
    forked = shared.run(arguments, timeout_s=TIMEOUT_S)
    started = subprocess.run([*PROGRAM, *arguments], capture_output=True, check=False)
    assert (forked.returncode, forked.stdout, forked.stderr) == (
        started.returncode,
        started.stdout,
        started.stderr,
    )


def test_it_has_the_environment_that_is_given(shared: Forks, tmp_path: Path) -> None:
    environ = {"BLOCKD_CONTROL": str(tmp_path / "nobody")}
    done = shared.run(("status",), environ=environ, timeout_s=TIMEOUT_S)
    assert done.returncode == 3
    assert "nobody" in done.stderr.decode()


def test_it_has_no_files_but_its_streams(shared: Forks, data_dir: Path) -> None:
    """What a daemon opens stays its own: as many files each time, whatever else runs."""
    counts = []
    with (data_dir.parent / "log").open("wb") as log:
        serving = [
            shared.serve(
                ("serve", "--json", "--data", str(data_dir) + name, "--nbd", "none"),
                log,
                os.environ,
            )
            for name in "ab"
        ]
    for each in serving:
        assert each.stdout is not None
        ready = json.loads(each.stdout.readline())
        assert run_blockd(("volume", "list", "--control", ready["control"])).returncode == 0
        links = [os.readlink(entry) for entry in Path(f"/proc/{each.pid}/fd").iterdir()]
        counts.append(sum(link.startswith(("pipe:", "socket:")) for link in links))
        each.send_signal(signal.SIGTERM if not counts[1:] else signal.SIGKILL)
    assert [each.wait(TIMEOUT_S) for each in serving] == [0, -signal.SIGKILL]
    assert counts[0] == counts[1]
    for each in serving:
        assert each.stdout is not None
        each.stdout.close()
