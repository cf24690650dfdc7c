"""Which worlds every run of the tests lives, in shares so that several processes have some."""

from collections.abc import Callable

import pytest

from tests.sim.cluster.world import lived

ACTS = 40
WORLDS = 1500
SHARES = 4
TOGETHER = 25  # worlds of one test


def worlds(share: int) -> Callable[[int], None]:
    """A test of the worlds of one share, 1 to SHARES."""
    count = WORLDS // SHARES

    @pytest.mark.parametrize("first", range(1 + (share - 1) * count, 1 + share * count, TOGETHER))
    def test_worlds_keep_every_promise(first: int) -> None:
        for seed in range(first, first + TOGETHER):
            report = lived(seed, ACTS)
            command = f"scripts/sim --cluster --seed {seed} --acts {ACTS}"
            assert not report.error, f"{command}\n{report.details}"

    return test_worlds_keep_every_promise
