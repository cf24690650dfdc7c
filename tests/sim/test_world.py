"""Worlds from seeds: the whole daemon under crashes and bad disks; and proof that they can fail.

`scripts/sim` lives as many more as there is time for.
"""

import functools
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.world import plan as plans
from tests.sim.world.plan import Profile
from tests.sim.world.world import World, lived

ROOT = Path(__file__).parents[2]
ACTS = 60
SEEDS = 30


@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_world_keeps_every_promise(seed: int) -> None:
    report = lived(seed, ACTS)
    assert not report.error, f"scripts/sim --seed {seed} --acts {ACTS}\n{report.details}"


def test_disk_that_lies_about_a_sync_is_found_out() -> None:
    """Nobody can keep what such a disk loses; but it shows, and nothing else is shown instead."""
    found = 0
    for seed in range(1, 7):
        report = World(plans.drawn(seed, ACTS, plans.LIES)).live()
        assert not report.error, report.details
        found += report.counts["lies found out"] + report.counts["refused to open a damaged store"]
    assert found


def test_volumes_with_limits_keep_every_promise() -> None:
    """A flush among requests that wait, a crash, a client that vanishes, a server that stops."""
    held = 0
    for seed in range(1, 9):
        report = World(plans.drawn(seed, ACTS, plans.LIMITED)).live()
        assert not report.error, report.details
        held += report.counts["requests held back"]
    assert held > 100


def test_these_worlds_hold_what_they_are_to_try() -> None:
    """Guards the tests above."""
    profiles = {plans.drawn(seed, ACTS).profile.name for seed in range(1, SEEDS + 1)}
    assert profiles >= {profile.name for profile, _ in plans.PROFILES} - {
        plans.LIES.name,
        plans.LIMITED.name,
    }


@pytest.mark.parametrize("seed", [2, 3, 17])
def test_same_seed_lives_the_same_world(seed: int) -> None:
    assert lived(seed, ACTS).digest == lived(seed, ACTS).digest


def test_other_process_lives_the_same_worlds() -> None:
    """Whatever the order of its sets is, and wherever its objects lie."""
    seeds = (1, 4, 5)
    code = (
        "from tests.sim.world.world import lived\n"
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


@pytest.mark.parametrize(
    ("rule", "profile", "first", "invariant"),
    [
        ("journal.ack-unwritten", plans.CRASHES, 1, "I4"),
        ("journal.sync-nothing", plans.CRASHES, 1, "CorruptJournal"),
        # Without this rule hot maps may point at what is freed: some worlds end the process.
        ("journal.release-unchecked", plans.CRASHES, 12, "CorruptJournal"),
        ("replay.any-payload", plans.CRASHES, 1, "I5"),
        ("read.unchecked", plans.DAMAGE, 1, "I"),
        ("read.zeros-for-damage", plans.DAMAGE, 1, "I"),
    ],
)
def test_broken_safety_rule_is_caught(
    rule: str, profile: Profile, first: int, invariant: str
) -> None:
    plan = (plans.drawn(seed, ACTS, profile) for seed in range(first, 41))
    errors = (World(each, broken=rule).live().error for each in plan)
    assert any(invariant in error for error in errors)


def test_failure_is_told_with_the_command_that_lives_it_again() -> None:
    options = ["--acts", "20", "--profile", "calm", "--break", "journal.ack-unwritten"]
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
    sim = [sys.executable, "-m", "tests.sim.world"]
    told = run([*sim, "--seeds", "1", *options])
    assert told.returncode == 1
    (command,) = [line for line in told.stdout.splitlines() if "scripts/sim --seed 1 " in line]
    again = run([*sim, *shlex.split(command)[1:]])
    assert again.returncode == 1
    assert "Violation: I4" in again.stdout
