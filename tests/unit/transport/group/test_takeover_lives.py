"""Lives of volumes with takeovers: what clients saw stays, and the volume comes back.

In tests/takeover: members that crash and lose power, ghosts, clocks that drift, messages that are
lost, repeated and late, a MetaStore that does not say what happened."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.takeover.node import Node, build
from tests.takeover.world import Chances, World
from transport.group.chain import BadChain, Chain
from transport.group.lease import LEASE_S, MAX_DRIFT, Lease, Quiet
from transport.group.takeover_run import Effect, Takeover
from volume.metastore_records import Mode


def life_of(seed: str, members: int, mode: Mode, chances: Chances, accidents_s: float) -> World:
    """Accidents for so long, then none: the volume has to be there again."""
    world = build(random.Random(seed), members, mode, chances)
    world.at(5.0, world.accidents)
    world.run(accidents_s)
    world.heal()
    world.run(accidents_s + 120.0)
    writes, reads = world.judge.writes, world.judge.reads
    world.run(accidents_s + 150.0)
    assert world.judge.writes > writes, "nothing is written any more"
    assert world.judge.reads > reads, "nothing is read any more"
    return world


LIVES = {
    "kills": (Mode.MIRROR, Chances()),
    "power cuts": (Mode.STRICT, Chances(power=True)),
    "a bad network": (Mode.MIRROR, Chances(lost=0.1, repeated=0.1, slow=0.2)),
}


@pytest.mark.parametrize("kind", LIVES)
@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_what_clients_saw_stays_and_the_volume_comes_back(members: int, kind: str) -> None:
    mode, chances = LIVES[kind]
    epochs = writes = reads = 0
    for seed in range(10):
        world = life_of(f"{members}/{kind}/{seed}", members, mode, chances, 150.0)
        epochs += len(world.judge.served)
        writes += world.judge.writes
        reads += world.judge.reads
    assert epochs > 15
    assert min(writes, reads) > 500


class Crash:
    """Ends whoever takes over just before effect `step` of takeovers after the primary has died."""

    def __init__(self, world: World, step: int, power: bool, back_s: float | None) -> None:
        self._world = world
        self._left = step
        self._power = power
        self._back_s = back_s
        self.happened = False

    def __call__(self, node: Node, effect: Effect) -> None:
        if self._left == 0 and not self.happened:
            self.happened = True
            node.kill(self._power)
            if self._back_s is not None:
                self._world.at(self._world.now + self._back_s, node.start)
        self._left -= 1


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power cut"])
@pytest.mark.parametrize("members", [3, 5])
def test_a_crash_before_any_step_of_a_takeover_loses_nothing(members: int, power: bool) -> None:
    mode = Mode.STRICT if power else Mode.MIRROR
    for step in range(200):
        happened = False
        for back_s in (0.5, 20.0, None) if members == 3 else (20.0,):
            world = build(random.Random(f"{members}/{step}"), members, mode, Chances())
            world.healthy = True  # but for what comes now
            world.run(20.0)
            (primary,) = (node for node in world.nodes.values() if node.primary is not None)
            crash = Crash(world, step, power, back_s)
            world.watcher = crash
            if back_s == 20.0:
                primary.paused_until = world.now + 15.0  # a ghost
            else:
                primary.kill(power)
            world.run(60.0)
            world.heal()
            before = world.judge.writes
            world.run(120.0)
            assert world.judge.writes > before
            happened = happened or crash.happened
        if not happened:
            assert step > 12
            return
    raise AssertionError("a takeover does not end")


def test_a_primary_that_is_killed_is_followed_within_the_lease_and_a_little() -> None:
    for seed in range(20):
        world = build(random.Random(f"quick/{seed}"), 3, Mode.MIRROR, Chances())
        world.healthy = True
        for node in world.nodes.values():
            node.rate = 1.0
        world.run(20.0)
        (primary,) = (node for node in world.nodes.values() if node.primary is not None)
        primary.kill(False)
        before = len(world.judge.served)
        world.run(20.0 + LEASE_S + 1.0)
        assert len(world.judge.served) == before + 1


# -- rules that are broken


def _promises_and_goes_on(node: Node, epoch: int, by: Node) -> tuple[int, Chain, float]:
    primary, node.primary = node.primary, None
    try:
        return SEAL(node, epoch, by)
    finally:
        node.primary = primary


SEAL = Node.seal


def cut_off(seed: int) -> World:
    """A primary with a slow clock loses the others, whose clocks are fast, but not its clients."""
    world = build(random.Random(seed), 3, Mode.MIRROR, Chances())
    world.healthy = True
    world.run(20.0)
    (primary,) = (node for node in world.nodes.values() if node.primary is not None)
    for node in world.nodes.values():
        node.offset += world.now * node.rate
        node.rate = 1 - MAX_DRIFT if node is primary else 1 + MAX_DRIFT
        node.offset -= world.now * node.rate
        if node is not primary:
            world.cut |= {(node.id, primary.id), (primary.id, node.id)}
    world.run(60.0)
    return world


def test_a_primary_that_is_cut_off_from_all_but_its_clients_is_followed() -> None:
    for seed in range(20):
        world = cut_off(seed)
        assert len(world.judge.served) == 2


def restless() -> Iterator[World]:
    for seed in range(300):
        yield cut_off(seed)
        chances = Chances(accident_every_s=5.0)
        yield life_of(f"broken/{seed}", 3, Mode.MIRROR, chances, 150.0)


BROKEN: dict[str, tuple[Any, str, Any]] = {
    "nobody waits for the old lease": (Takeover, "free_at", property(lambda self: 0.0)),
    "an old primary does not look at its lease": (Lease, "may_read", lambda self, now: True),
    "members forget when they answered": (Quiet, "seconds", lambda self, now: 60.0),
    "a primary that promises goes on reading": (Node, "seal", _promises_and_goes_on),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_noticed(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, instead = BROKEN[rule]
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises((AssertionError, BadChain)):
        for _ in restless():
            pass
