"""A control API on a unix socket, around a store in memory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockd.cli import entry
from blockd.cli.options import ENVIRONMENT
from tests.command import Blockd, Result
from tests.fake_node import FakeNode, serving


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A folder whose path leaves room for the names of unix sockets."""
    with tempfile.TemporaryDirectory(prefix="blockd-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def _served() -> Iterator[FakeNode]:
    with tempfile.TemporaryDirectory(prefix="blockd-") as folder:
        node = FakeNode(Path(folder) / "control.sock")
        with serving(node):
            yield node


@pytest.fixture
def node(_served: FakeNode) -> FakeNode:
    """An empty node whose control API answers on `node.control`."""
    _served.reset()
    return _served


@pytest.fixture
def blockd(
    node: FakeNode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Blockd:
    """Runs a command line; the daemon is found by the environment."""
    monkeypatch.setenv(ENVIRONMENT, str(node.control))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        code = entry.run(arguments)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run
