"""Worlds of a cluster that have failed, each for a fault of the product or of the checker that has
a test of its own as well. A seed means the same only as long as what is drawn from it is drawn in
the same order, so these show that it went, and later worlds that it stays so."""

import pytest

from tests.sim.cluster import plan as plans
from tests.sim.cluster.world import ClusterWorld


@pytest.mark.parametrize(
    ("profile", "seed", "acts"),
    [
        ("members", 149483, 40),  # status: a member has what it had before it began anew
        ("network", 110972, 40),  # records of an epoch of which others were undone, for ever
        ("everything", 106787, 40),  # the checker: by the word of one that had lost its power
        ("rot", 134447, 40),
        ("rot", 219, 120),  # damaged, out of space, and a snapshot in the log only
    ],
)
def test_a_world_that_has_failed_keeps_every_promise(profile: str, seed: int, acts: int) -> None:
    report = ClusterWorld(plans.drawn(seed, acts, plans.named(profile))).live()
    assert not report.error, report.details
