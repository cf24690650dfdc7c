"""What all simulations have in common."""

import ctypes
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def give_memory_back() -> Iterator[None]:
    """Thousands of stores are opened and dropped, whose tables leave holes: without this the C
    library keeps close to a gigabyte of them, in each worker, until the last test."""
    yield
    ctypes.CDLL(None).malloc_trim(0)
