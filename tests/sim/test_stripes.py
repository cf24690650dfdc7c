"""Worlds of stripes: that they hold what they are to try, lose nothing, and fail when a rule is
broken."""

from collections import Counter

import pytest

from tests.sim.stripes.rules import RULES
from tests.sim.stripes.world import StripeWorld

ACTS = 60
WORLDS = 24
TOGETHER = 6
NOTICED_WITHIN = 40


@pytest.mark.parametrize("first", range(1, WORLDS + 1, TOGETHER))
def test_stripes_lose_nothing_that_is_whole_somewhere(first: int) -> None:
    counts: Counter[str] = Counter()
    for seed in range(first, first + TOGETHER):
        told = StripeWorld(seed, ACTS).live()
        assert not told.error, f"seed {seed}\n{told.details}\n" + "\n".join(told.lines[-20:])
        counts += told.counts
    for what in ("stripes", "rotten shards", "struck", "chunks read"):
        assert counts[what], what


NOTICED_BY = {**dict.fromkeys(RULES, 1), "copies go unread": 35, "strays go whoever needs them": 9}
"""The seed to begin with, so that it does not take long."""


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_of_stripes_is_noticed(rule: str) -> None:
    first = NOTICED_BY[rule]
    for seed in range(first, first + NOTICED_WITHIN):
        if StripeWorld(seed, ACTS, broken=rule).live().error.startswith("Violation: "):
            return
    pytest.fail(f"{NOTICED_WITHIN} worlds from {first} on do not notice it")


def test_a_seed_is_the_same_world_each_time() -> None:
    one, other = (StripeWorld(7, ACTS).live() for _ in range(2))
    assert (one.lines, one.counts) == (other.lines, other.counts)
