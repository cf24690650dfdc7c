"""Fixtures of the tests that run what the documentation says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.forks import Forks


@pytest.fixture(scope="session")
def blockd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The program `blockd`, quick to start."""
    forks = Forks(tmp_path_factory.mktemp("f"))
    yield forks.program
    forks.close()
