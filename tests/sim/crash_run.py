"""`scripts/crash-states`: the catalogue's crash states outside of pytest, for a night or for one.

Workloads are shared out to processes. A line tells what each came to; a broken promise prints the
one command that replays its state, the others go on, and the exit code is 1 in the end.
"""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.sim.catalogue import CATALOGUE
from tests.sim.crash_check import StateFailed, Tally, check_named, check_workload
from tests.sim.crash_window import StateName

POLL_S = 0.2  # how often the count of states is looked at for the bar


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one workload."""

    name: str
    tally: Tally
    seconds: float
    failure: str | None

    def line(self) -> str:
        verdict = "ok" if self.failure is None else "BROKEN"
        per_state_ms = 1000 * self.seconds / max(1, self.tally.states)
        return (
            f"{self.name:<44} {verdict:<6} {self.tally.states:>7} states {self.tally.disks:>7} "
            f"disks {self.seconds:8.1f} s {per_state_ms:6.2f} ms each"
        )


_count: "Synchronized[int]"


def _start(count: "Synchronized[int]") -> None:
    global _count
    _count = count
    logging.disable(logging.CRITICAL)  # stores tell of the damage that a crash is


def _one_more() -> None:
    with _count.get_lock():
        _count.value += 1


def _run(job: tuple[str, bool]) -> Outcome:
    name, everything = job
    workload = CATALOGUE[name]
    began, tally, failure = time.monotonic(), Tally(), None
    try:
        lived = workload.lived()
        limit = None if everything else workload.gate
        check_workload(lived, limit=limit, tally=tally, told=_one_more)
    except StateFailed as error:
        failure = str(error)
    except Exception as error:
        failure = f"{name} cannot be lived: {error!r}"
    return Outcome(name, tally, time.monotonic() - began, failure)


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; yields what moves it: (workloads done, states so far)."""
    columns = (
        *(TextColumn("workloads"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[states]:,} states"), TimeElapsedColumn()),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total, states=0)

        yield lambda done, states: progress.update(task, completed=done, states=states)


def run_many(names: list[str], everything: bool, jobs: int) -> int:
    """Check these workloads; the exit code."""
    console = Console(stderr=True, soft_wrap=True)
    context = multiprocessing.get_context("spawn")  # a fork would share the core's random state
    count = context.Value("q", 0)
    began = time.monotonic()
    outcomes: list[Outcome] = []
    with (
        context.Pool(jobs, _start, (count,)) as pool,
        _bar(console, len(names)) as draw,
    ):
        results = pool.imap_unordered(_run, [(name, everything) for name in names])
        while len(outcomes) < len(names):
            draw(len(outcomes), count.value)
            try:
                outcome = results.next(POLL_S)
            except multiprocessing.TimeoutError:
                continue
            outcomes.append(outcome)
            console.print(outcome.line(), highlight=False, markup=False)
            if outcome.failure is not None:
                console.print(outcome.failure, highlight=False, markup=False)
    states = sum(outcome.tally.states for outcome in outcomes)
    disks = sum(outcome.tally.disks for outcome in outcomes)
    broken = [outcome.name for outcome in outcomes if outcome.failure is not None]
    print(
        f"{len(outcomes)} workloads, {states} states, {disks} disks, {len(broken)} broken, "
        f"{time.monotonic() - began:.1f} s with {jobs} processes"
    )
    return 1 if broken else 0


def replay(name: str, state: str) -> int:
    """Check one state with all checks; a broken promise is raised, with where it was seen."""
    lived = CATALOGUE[name].lived()
    check_named(lived, StateName.parse(state))
    print(f"{name}, state {state}: keeps every promise")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/crash-states", description=__doc__)
    parser.add_argument("--all", action="store_true", help="every state, not the gate's sample")
    parser.add_argument("--workload", choices=CATALOGUE, metavar="NAME", action="append")
    parser.add_argument("--state", help="replay one state of the workload, such as 57.k.e3.half")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--list", action="store_true", help="the workloads and their gate")
    options = parser.parse_args()
    names = options.workload or list(CATALOGUE)
    if options.list:
        for name in names:
            workload = CATALOGUE[name]
            print(
                f"{name:<44} {'sample of' if workload.sampled else 'all, from'} {workload.states}"
            )
        return 0
    if options.state is not None:
        if len(names) != 1:
            parser.error("--state is of one --workload")
        return replay(names[0], options.state)
    return run_many(names, options.all, min(options.jobs, len(names)))


if __name__ == "__main__":
    sys.exit(main())
