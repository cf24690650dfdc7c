"""Worlds of several nodes: that they are the same each time, hold what they are to try, and fail
when a rule of the product is broken.

`scripts/sim --cluster` lives as many as there is time for; test_cluster_worlds_*.py some each time.
"""

import functools
import os
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.cluster import plan as plans
from tests.sim.cluster.gate import ACTS
from tests.sim.cluster.rules import RULES
from tests.sim.cluster.world import ClusterWorld, lived

ROOT = Path(__file__).parents[2]
NOTICED_WITHIN = 100  # worlds; the first of them do today

NOTICED_BY = {
    "ack before W": ("everything", 7),
    "ack before W, natively": ("everything", 7),
    "flush before W disks": ("crashes", 17),
    "a member that only says it has synced": ("everything", 3),
    "reads do not wait for W": ("network", 14),
    "a promise in memory": ("network", 259),
    "an epoch that is noted in memory": ("crashes", 1),
    "a promise too few": ("network", 11),
    "the longest wins": ("network", 7),
    "a lost transaction is taken for a won one": ("metastore", 23),
    "open before W know": ("members", 1),
    "no wait for the lease": ("network", 89),
    "a lease longer than the wait": ("clocks", 168),
    "a primary that ignores refusals": ("everything", 7),
    "what a member had counts on": ("members", 149483),
    "nothing is undone": ("everything", 2),
    "who was replaced keeps its part": ("members", 1),
    "a disk that failed a sync is used again": ("disks", 1),
    "a seal in memory": ("disks", 1),
    "catching up skips a record": ("everything", 1),
    "what is undone leaves its names": ("versions", 3),
    "what was dropped is gone at once": ("versions", 11),
    "members do nothing by a NOTE": ("versions", 1),
    "a start does nothing by a NOTE": ("versions", 14),
    "what is undone leaves its size": ("versions", 3),
    "only the primary goes back": ("restores", 3),
    "a restore is told of at once": ("restores", 1),
    "damage is not repaired": ("rot", 4),
    "what no pack has is not asked for": ("rot", 11),
    "zeros for damage": ("rot", 12),
    "bytes go out unchecked": ("rot", 12),
}
"""Profile, so that another one does not change what the seed means, and the seed to begin with, so
that it does not take long."""


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str) -> None:
    profile, first = NOTICED_BY[rule]
    for seed in range(first, first + NOTICED_WITHIN):
        plan = plans.drawn(seed, ACTS, plans.named(profile))
        if ClusterWorld(plan, broken=rule).live().error.startswith("Violation: "):
            return
    pytest.fail(f"{NOTICED_WITHIN} worlds of {profile} from {first} on do not notice it")


def test_worlds_hold_what_they_are_to_try() -> None:
    counts: Counter[str] = Counter()
    for seed in range(1, 26):
        counts += lived(seed, ACTS).counts
    for what in (
        "struck",
        "harmed",
        "moved",
        "opened",
        "error ESHUTDOWN",
        "gave up",
        "reads",
    ):
        assert counts[what], what
    assert counts["opened"] > 40
    assert counts["opened after loss"] < counts["opened"] / 5  # few of them may lose anything


def test_worlds_of_sick_disks_have_some_that_fail_a_sync() -> None:
    sick = plans.named("disks")
    told = [ClusterWorld(plans.drawn(seed, ACTS, sick)).live() for seed in range(1, 13)]
    assert not [world.error for world in told if world.error]
    assert sum(world.counts["sealed"] for world in told) > 3


def test_worlds_of_versions_tell_of_snapshots_and_sizes_and_read_them() -> None:
    profile = plans.named("versions")
    told = [ClusterWorld(plans.drawn(seed, ACTS, profile)).live() for seed in range(1, 11)]
    assert not [world.error for world in told if world.error]
    counts = sum((world.counts for world in told), Counter[str]())
    for what, least in (("snapshot", 20), ("drop", 3), ("size", 5), ("versions read", 20)):
        assert counts[what] > least, what


def test_worlds_of_restores_go_back_and_have_that_undone() -> None:
    profile = plans.named("restores")
    told = [ClusterWorld(plans.drawn(seed, ACTS, profile)).live() for seed in range(1, 11)]
    assert not [world.error for world in told if world.error]
    counts = sum((world.counts for world in told), Counter[str]())
    for what, least in (("restored", 10), ("restore undone", 0), ("versions read", 20)):
        assert counts[what] > least, what


def test_worlds_of_rot_have_damage_that_is_repaired() -> None:
    profile = plans.named("rot")
    told = [ClusterWorld(plans.drawn(seed, ACTS, profile)).live() for seed in range(1, 13)]
    assert not [world.error for world in told if world.error]
    counts = sum((world.counts for world in told), Counter[str]())
    assert counts["rotten bits"] > 15
    assert counts["repaired"] > 4


def test_every_profile_and_shape_is_drawn() -> None:
    seeds = range(1, 101)
    drawn = {plans.drawn(seed, ACTS).profile.name for seed in seeds}
    assert drawn == {profile.name for profile, _ in plans.PROFILES}
    assert len({plans.drawn_shape(seed) for seed in seeds}) > 5


def test_other_process_lives_the_same_worlds() -> None:
    """Whatever the order of its sets is, and wherever its objects lie."""
    seeds = (1, 2, 3, 7, 12)
    code = (
        "from tests.sim.cluster.world import lived\n"
        f"for seed in {seeds}: print(lived(seed, {ACTS}).digest)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == [lived(seed, ACTS).digest for seed in seeds]


def test_failure_is_shrunk_and_told_with_the_command_that_lives_it_again() -> None:
    rule = "a primary that ignores refusals"
    options = ["--cluster", "--acts", "30", "--shrink-s", "2", "--break", rule]
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    sim = [sys.executable, "-m", "tests.sim.world"]
    told = run([*sim, "--seeds", "4", "--from", "6", *options])
    assert told.returncode == 1
    command = next(line for line in told.stdout.splitlines() if "scripts/sim --cluster" in line)
    again = run([*sim, *shlex.split(command)[1:]])
    assert again.returncode == 1
    assert "Violation: I" in again.stdout
