"""Crash states of workloads of volumes that come, go and change; see `tests.sim.crash_check`."""

import pytest

from tests.sim.catalogue import volumes
from tests.sim.crash_check import check_in_gate

WORKLOADS = volumes.CATALOGUE.workloads


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_crash_leaves_what_was_promised(name: str) -> None:
    check_in_gate(WORKLOADS[name])
