"""A control API on a unix socket, around a store in memory."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

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
