"""`scripts/fuzz`: coverage-guided runs of fuzz targets, one after the other, and their record.

Each run appends a line to build/fuzz/runs.jsonl; `--table` prints from it what
docs/reliability.md shows. scripts/fuzz sets up what this needs (clang, atheris, the programs).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from tests.fuzz import engine
from tests.fuzz.targets import TARGETS, Target, named

RUNS = engine.BUILD / "runs.jsonl"


def main() -> int:
    """0: nothing was found; 1: something was; 2: used wrongly, or the fuzzer did not run."""
    options = _options()
    if options.list:
        for target in TARGETS:
            print(f"{target.name:14} {'C     ' if target.in_c else 'Python'} {target.parses}")
        return 0
    if options.table:
        print(table(_runs()))
        return 0
    if options.replay:
        return _replay(named(options.targets[0]), options.replay)
    found = 0
    for target in _chosen(options.targets):
        try:
            outcome = _run(target, options.minutes * 60)
        except engine.EngineFailed as error:
            print(error, file=sys.stderr)
            return 2
        found += len(outcome.findings)
    return 1 if found else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help='names, or "all"')
    parser.add_argument("--minutes", type=float, default=5.0, help="for each target (5)")
    parser.add_argument("--list", action="store_true", help="show the targets")
    parser.add_argument("--table", action="store_true", help="show all runs, as Markdown")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one input of TARGET")
    options = parser.parse_args()
    known = {target.name for target in TARGETS} | {"all"}
    if unknown := set(options.targets) - known:
        parser.error(f"no target {', '.join(sorted(unknown))}; --list shows them")
    if not options.targets and not options.list and not options.table:
        parser.error("name a target, or all; --list shows them")
    if options.replay and (len(options.targets) != 1 or options.targets == ["all"]):
        parser.error("--replay takes one target and a file")
    return options


def _chosen(names: list[str]) -> list[Target]:
    return list(TARGETS) if "all" in names else [named(name) for name in names]


def _run(target: Target, seconds: float) -> engine.Outcome:
    with _bar(target, seconds) as show:
        outcome = engine.run(target, seconds, show)
    commands = []
    for path in outcome.findings:
        small = engine.shrink(target, path)
        commands.append(f"scripts/fuzz {target.name} --replay {small.relative_to(engine.ROOT)}")
    _record(outcome)
    for command in commands:
        print(f"{target.name}: FOUND, again by: {command}")
    print(
        f"{target.name}: {outcome.wall_s / 60:.1f} min, {outcome.executions} executions, "
        f"{outcome.corpus - outcome.corpus_before} new corpus entries of {outcome.corpus}, "
        f"coverage {outcome.coverage} edges, {outcome.features} features, "
        f"{len(outcome.findings)} findings"
        + (f", {outcome.dismissed} dismissed" if outcome.dismissed else ""),
        flush=True,
    )
    return outcome


class _bar:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(self, target: Target, seconds: float) -> None:
        self._seconds = seconds
        self._bar = Bar(
            TextColumn(target.name),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
            transient=True,
        )

    def __enter__(self) -> Callable[[engine.Progress, float], None]:
        self._bar.start()
        task = self._bar.add_task("", total=self._seconds, said="")

        def show(progress: engine.Progress, elapsed_s: float) -> None:
            said = f"{progress.executions} executions, {progress.coverage} edges"
            self._bar.update(task, completed=elapsed_s, said=said)

        return show

    def __exit__(self, *unused: object) -> None:
        self._bar.stop()


def _replay(target: Target, path: Path) -> int:
    ran = engine.replay(target, path.resolve())
    print(ran.stdout + ran.stderr, end="")
    print(f"{target.name}: {path}: {'fails' if ran.returncode else 'goes well'}")
    return 1 if ran.returncode else 0


# -- the record -----------------------------------------------------------------------------------


def _record(outcome: engine.Outcome) -> None:
    row = {
        "target": outcome.target,
        "commit": _commit(),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "minutes": round(outcome.wall_s / 60, 2),
        "cpu_minutes": round(outcome.cpu_s / 60, 2),
        "executions": outcome.executions,
        "corpus_new": outcome.corpus - outcome.corpus_before,
        "corpus": outcome.corpus,
        "coverage": outcome.coverage,
        "features": outcome.features,
        "findings": len(outcome.findings),
    }
    with RUNS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def _commit() -> str:
    command = ["git", "-C", str(engine.ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _runs() -> list[dict[str, Any]]:
    if not RUNS.exists():
        return []
    return [json.loads(line) for line in RUNS.read_text().splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """All runs of each target together, as Markdown."""
    lines = [
        "| target | bytes of | minutes | CPU minutes | executions | corpus | edges | found |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for target in TARGETS:
        own = [row for row in rows if row["target"] == target.name]
        total = {key: sum(row[key] for row in own) for key in ("minutes", "cpu_minutes")}
        lines.append(
            f"| `{target.name}` | {target.parses} | {total['minutes']:.0f} "
            f"| {total['cpu_minutes']:.0f} | {sum(row['executions'] for row in own):,} "
            f"| {max((row['corpus'] for row in own), default=0)} "
            f"| {max((row['coverage'] for row in own), default=0)} "
            f"| {sum(row['findings'] for row in own)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
