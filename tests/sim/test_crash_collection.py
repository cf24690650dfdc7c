"""Crash states of the catalogue's workloads of gc and scrub; see `tests.sim.crash_check`."""

import pytest

from tests.sim.catalogue import collection
from tests.sim.crash_check import check_in_gate

WORKLOADS = collection.CATALOGUE.workloads


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_crash_leaves_what_was_promised(name: str) -> None:
    check_in_gate(WORKLOADS[name])
