"""Worlds on several processes: seeds go out one by one, reports come back.

A process that dies over a seed, or sits on one for too long, is a failure of that seed: it is
ended, the stacks of its threads are shown, and another takes its place.
"""

import faulthandler
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.sim.cluster import plan as cluster_plans
from tests.sim.cluster.world import ClusterWorld
from tests.sim.world import plan as plans
from tests.sim.world.plan import Plan
from tests.sim.world.shrink import shrunk
from tests.sim.world.world import Report, World

SEED_LIMIT_S = 600.0  # of real time for one seed, shrinking not counted; runs yield to others


@dataclass(frozen=True, slots=True)
class Settings:
    """What all seeds of a run have in common."""

    acts: int
    profile: str | None = None
    broken: str | None = None
    shrink_s: float = 30.0
    cluster: bool = False
    """Worlds of several nodes (tests.sim.cluster), not of one."""

    @property
    def told(self) -> str:
        """What a seed means beside the commit."""
        kind = "worlds of a cluster" if self.cluster else "worlds"
        profile = f", profile {self.profile}" if self.profile else ""
        broken = f", broken: {self.broken}" if self.broken else ""
        return f"{kind} of {self.acts} acts{profile}{broken}"

    def plan(self, seed: int) -> Plan:
        """ValueError: there is no such profile."""
        if self.cluster:
            return cluster_plans.drawn(seed, self.acts, cluster_plans.named(self.profile))
        return plans.drawn(seed, self.acts, plans.named(self.profile))

    def world(self, plan: Plan, tell: Callable[[str], None] | None = None) -> World | ClusterWorld:
        kind = ClusterWorld if self.cluster else World
        return kind(plan, tell, broken=self.broken)


@dataclass(frozen=True, slots=True)
class Result:
    report: Report
    steps: str
    """The acts that the failure needs."""


def lived(seed: int, settings: Settings) -> Result:
    """Run one world; shrink it if it fails."""
    plan = settings.plan(seed)
    report = settings.world(plan).live()
    indices = [act.index for act in plan.acts]
    if report.error and settings.shrink_s > 0:
        faulthandler.cancel_dump_traceback_later()
        indices, report = shrunk(
            report,
            indices,
            lambda kept: settings.world(plan.keep(kept)).live(),
            limit_s=settings.shrink_s,
        )
    return Result(report, plans.spans(indices))


def _serve(pipe: Any, settings: Settings) -> None:
    while (seed := pipe.recv()) is not None:
        faulthandler.dump_traceback_later(SEED_LIMIT_S, exit=True)
        result = lived(seed, settings)
        faulthandler.cancel_dump_traceback_later()
        pipe.send(result)


class _Worker:
    def __init__(self, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, settings), daemon=True)
        self.process.start()
        theirs.close()
        self.seed: int | None = None

    def give(self, seed: int | None) -> None:
        self.seed = seed
        self.pipe.send(seed)

    def take(self, settings: Settings) -> Result:
        assert self.seed is not None
        try:
            result: Result = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            error = f"died or hung, exit code {self.process.exitcode}; its stacks are above"
            every = plans.spans(range(settings.acts))
            return Result(Report(self.seed, "", "", settings.acts, error), every)
        return result


def run(seeds: Iterable[int], settings: Settings, jobs: int) -> Iterator[Result]:
    """Results as they come."""
    left = iter(seeds)
    workers = [_Worker(settings) for _ in range(jobs)]
    busy: list[_Worker] = []
    for worker in workers:
        if (seed := next(left, None)) is not None:
            worker.give(seed)
            busy.append(worker)
    while busy:
        ready = multiprocessing.connection.wait([worker.pipe for worker in busy])
        for worker in [each for each in busy if each.pipe in ready]:
            busy.remove(worker)
            yield worker.take(settings)
            if (seed := next(left, None)) is None:
                continue
            if not worker.process.is_alive():
                workers.remove(worker)
                worker = _Worker(settings)
                workers.append(worker)
            worker.give(seed)
            busy.append(worker)
    for worker in workers:
        if worker.process.is_alive():
            worker.give(None)
        worker.process.join()
