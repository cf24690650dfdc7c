"""Crashes and other trouble in a world, and what puts it right again.

The *nemesis* acts by its plan. The *medic* comes when the daemon needs somebody: a fail point has
ended its process, or a disk error has sealed its store. It waits a moment, as an operator would,
and has the daemon started again; what is left is judged as after any other crash.
"""

import random
from collections import Counter
from typing import Protocol

from tests.sim.world.judge import Judge
from tests.sim.world.judge import Surroundings as Judged
from tests.sim.world.ledger import Ledger
from tests.sim.world.machine import Machine
from tests.sim.world.mischief import TROUBLES
from tests.sim.world.plan import Act, Profile
from tests.sim.world.primitives import Event, Lock
from tests.sim.world.stamps import Violation
from tests.sim.world.threads import NS, Threads
from volume import sites
from volume.errors import CorruptData, VolumeError

SEEN_TO_S = 0.1  # before the medic does something


class Surroundings(Judged, Protocol):
    """What they need of a world."""

    run: Threads
    machine: Machine
    ledger: Ledger
    counts: Counter[str]
    open_gate: Event

    @property
    def profile(self) -> Profile: ...


class Gone(Exception):
    """The store refuses to open on what a damaged or lying disk has left: as it should."""


class Nemesis:
    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._called = Event()
        self._busy = Lock()
        self.mended = 0
        world.machine.on_strike = self._called.set

    # -- the nemesis

    def act(self, act: Act, rng: random.Random) -> None:
        world = self._world
        if act.kind in TROUBLES:
            with self._busy:
                disk = world.machine.disk
                what = "" if disk.is_off else TROUBLES[act.kind](disk, rng)
            if what:
                world.counts[f"fault: {what}"] += 1
            world.note(f"trouble: {what}")
        elif act.kind == "clock":
            world.machine.clock.step_ns += rng.choice((-3600, -1, 1, 3600)) * NS
        elif act.kind == "fail-point":
            name = rng.choice([each for each in sites.FAIL_POINTS if "journal." not in each])
            world.machine.fail_point = (name, rng.choice((1, 1, 2, 4)), rng.random() < 0.5)
        else:
            self.crash(act.kind)

    def crash(self, kind: str) -> None:
        """End the daemon in one of three ways, start it again, and judge what it has."""
        with self._busy:
            self._crash(kind)

    # -- the medic

    def call(self) -> None:
        """Something is wrong: see to it."""
        self._called.set()

    def attend(self) -> None:
        """The medic's life."""
        world = self._world
        while True:
            self._called.wait()
            world.run.sleep(SEEN_TO_S)
            self._called.clear()
            with self._busy:
                if world.machine.struck or world.machine.sealed or world.pending is not None:
                    self._crash("mend")
                self.mended += 1

    # -- what they share; one at a time

    def _crash(self, kind: str) -> None:
        world, machine, ledger = self._world, self._world.machine, self._world.ledger
        world.open_gate.clear()
        if machine.struck:
            kind = "power-cut" if machine.struck_power else "kill"
            world.counts["struck at a fail point"] += 1
        if kind == "restart":
            machine.stop()
        elif kind == "power-cut":
            machine.cut()
        else:
            machine.kill()
        at_least = ledger.flushed if machine.lost_power else ledger.acked
        world.note(f"crash: {kind}")
        ledger.crashed()
        judge = Judge(world)
        judge.before_start()
        at_least = self._boot(at_least)
        point, machine.fail_point = machine.fail_point, None  # not while it is judged
        judge.after_start(at_least)
        machine.fail_point = point
        world.open_gate.set()

    def _boot(self, at_least: int) -> int:
        """Start the daemon; again if a fail point hits it meanwhile. What it must have."""
        world, machine = self._world, self._world.machine
        while not machine.boot():
            if machine.struck:
                world.counts["struck while starting"] += 1
                machine.kill()
                if machine.lost_power:
                    at_least = min(at_least, world.ledger.flushed)
                continue
            failure = machine.failure
            damaged = isinstance(failure, (CorruptData, VolumeError, OSError))
            if world.profile.damage and damaged:
                raise Gone(str(failure)) from failure
            raise Violation(f"the daemon does not start: {failure!r}") from failure
        return at_least
