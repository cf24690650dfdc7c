"""Every crash state of the catalogue's workloads of the journal; see `tests.sim.crash_check`."""

import pytest

from tests.sim.catalogue import writes
from tests.sim.crash_check import check_workload

WORKLOADS = writes.CATALOGUE.workloads


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_crash_leaves_what_was_promised(name: str) -> None:
    workload = WORKLOADS[name]
    tally = check_workload(workload.lived(), limit=workload.gate)
    assert tally.states >= workload.states, f"{name} has {tally.states} states only"
