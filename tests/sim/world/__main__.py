"""Live worlds from seeds: see scripts/sim."""

import itertools
import resource
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.sim.world import plan as plans
from tests.sim.world import workers
from tests.sim.world.record import Record
from tests.sim.world.workers import Result, Settings

ROOT = Path(__file__).parents[3]
LINES_EVERY_S = 10.0

console = Console(highlight=False, soft_wrap=True)


def commit() -> str:
    """The commit that is tested: a seed means the same for one of them only."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


def replay(seed: int, settings: Settings, steps: str) -> str:
    """The command that runs just that world again."""
    profile = f" --profile {settings.profile}" if settings.profile else ""
    broken = f" --break {shlex.quote(settings.broken)}" if settings.broken else ""
    kind = " --cluster" if settings.cluster else ""
    what = f"--acts {settings.acts}{profile}{broken} --steps {steps}"
    return f"scripts/sim{kind} --seed {seed} {what}"


def main(
    seeds: Annotated[int, typer.Option(help="How many worlds.")] = 100,
    first: Annotated[int, typer.Option("--from", help="Seed of the first one.")] = 1,
    minutes: Annotated[
        float | None, typer.Option(help="As many worlds as begin in that time, instead.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Processes to run them on.")] = 1,
    acts: Annotated[int, typer.Option(help="Acts in a world's plan.")] = 60,
    profile: Annotated[str | None, typer.Option(help="What goes wrong, instead of drawn.")] = None,
    broken: Annotated[
        str | None, typer.Option("--break", help="A safety rule that the store shall break.")
    ] = None,
    shrink_s: Annotated[float, typer.Option(help="Seconds to shrink a failure for.")] = 30.0,
    seed: Annotated[int | None, typer.Option(help="Run just this world.")] = None,
    steps: Annotated[str | None, typer.Option(help="Acts of it to keep, as 0-7,12.")] = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Worlds of several nodes that keep one volume.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            help="A file to which each range of seeds that is done is added, and those in "
            "it are left out: a run that is stopped goes on there."
        ),
    ] = None,
    range_: Annotated[int, typer.Option("--range", min=1, help="Seeds of a range.")] = 1000,
    trace: Annotated[bool, typer.Option(help="Print every event of it.")] = False,
) -> None:
    """Live worlds from seeds; exit status 1 when a promise was broken."""
    settings = Settings(acts, profile, broken, shrink_s, cluster)
    if seed is not None:
        _one(seed, steps, settings, trace)
        return
    if record is not None:
        _recorded(
            Record(record, commit(), settings.told),
            range(first, first + seeds),
            range_,
            settings,
            jobs,
        )
        return
    began = time.monotonic()
    ends = None if minutes is None else began + 60 * minutes
    wanted: Iterable[int] = range(first, first + seeds)
    if ends is not None:
        wanted = itertools.takewhile(lambda _: time.monotonic() < ends, itertools.count(first))
    console.print(f"commit {commit()}, seeds from {first} on, {acts} acts each")
    done, failures, counts = 0, 0, Counter[str]()
    total = seeds if ends is None else None
    for result in _shown(workers.run(wanted, settings, jobs), total):
        done += 1
        counts.update(result.report.counts)
        counts[f"profile: {result.report.profile}"] += 1
        if result.report.error:
            failures += 1
            _tell(result, settings)
    took_s = time.monotonic() - began
    console.print(f"{done} worlds in {took_s:.1f} s, {done / took_s:.2f} a second")
    console.print(", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    console.print(f"{failures} failed" if failures else "every promise was kept")
    raise typer.Exit(1 if failures else 0)


def _recorded(record: Record, seeds: range, length: int, settings: Settings, jobs: int) -> None:
    """Live what is left, range by range."""
    for each in record.left(seeds.start, len(seeds), length):
        before = _cpu_s()
        failures: list[dict[str, object]] = []
        counts: Counter[str] = Counter()
        for result in workers.run(each, settings, jobs):
            counts.update(result.report.counts)
            if result.report.error:
                _tell(result, settings)
                command = replay(result.report.seed, settings, result.steps)
                failures.append(
                    {"seed": result.report.seed, "error": result.report.error, "command": command}
                )
        record.add(each, _cpu_s() - before, failures, counts)
        console.print(record.summary().splitlines()[0], markup=False)
    console.print(record.summary(), markup=False)
    failed = any(each.failures for each in record.ranges())
    raise typer.Exit(1 if failed else 0)


def _cpu_s() -> float:
    """Of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _one(seed: int, steps: str | None, settings: Settings, trace: bool) -> None:
    plan = settings.plan(seed)
    if steps is not None:
        plan = plan.keep(plans.parse_spans(steps))
    world = settings.world(plan, print if trace else None)
    report = world.live()
    print(f"commit {commit()}, seed {seed}, profile {report.profile}, {report.acts} acts")
    print(", ".join(f"{what} {count}" for what, count in sorted(report.counts.items())))
    print(f"digest {report.digest}, {report.time_s:.3f} s of simulated time")
    if report.error:
        print(report.details)
        print("\n".join(world.notes))
        print(report.error)
        sys.exit(1)


def _tell(result: Result, settings: Settings) -> None:
    report = result.report
    console.print(f"seed {report.seed} ({report.profile}): {report.error}", markup=False)
    console.print(f"  {replay(report.seed, settings, result.steps)}", markup=False)


def _shown(results: Iterator[Result], total: int | None) -> Iterator[Result]:
    """The same, with a bar on a terminal and a line now and then elsewhere."""
    if not console.is_terminal:
        shown_at = time.monotonic()
        for count, result in enumerate(results, start=1):
            yield result
            if time.monotonic() - shown_at >= LINES_EVERY_S:
                shown_at = time.monotonic()
                console.print(f"{count} worlds" if total is None else f"{count} of {total} worlds")
        return
    columns = (TextColumn("worlds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("worlds", total=total)
        for result in results:
            progress.advance(task)
            yield result


if __name__ == "__main__":
    typer.run(main)
