"""Crash states of the catalogue's workloads of destage rounds; see `tests.sim.crash_check`."""

import pytest

from tests.sim.catalogue import rounds
from tests.sim.crash_check import check_in_gate

WORKLOADS = rounds.CATALOGUE.workloads


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_crash_leaves_what_was_promised(name: str) -> None:
    check_in_gate(WORKLOADS[name])
