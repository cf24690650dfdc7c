"""Worlds from seeds: the whole daemon under crashes, and the same run for the same seed."""

import pytest

from tests.sim.world.world import lived

ACTS = 60


@pytest.mark.parametrize("seed", range(1, 25))
def test_world_keeps_every_promise(seed: int) -> None:
    report = lived(seed, ACTS)
    assert not report.error, f"scripts/sim --seed {seed} --acts {ACTS}\n{report.details}"


@pytest.mark.parametrize("seed", [2, 3, 17])
def test_same_seed_lives_the_same_world(seed: int) -> None:
    assert lived(seed, ACTS).digest == lived(seed, ACTS).digest
