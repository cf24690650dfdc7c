"""Fixtures of the tests that run what the documentation says."""

from pathlib import Path

import pytest

from tests import forks


@pytest.fixture(scope="session")
def blockd() -> Path:
    """The program `blockd`, quick to start."""
    shared = forks.shared.get()
    assert shared is not None
    return shared.program
