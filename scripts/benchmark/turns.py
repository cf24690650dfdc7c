"""scripts/bench turns CHECKOUT...: this checkout of blockd and others, in turns.

    cells      fio's jobs, each on a volume of its own that has the same bytes; all daemons run, and
               those that do not have their turn rest
    starts     a restart: from the last reply of the old process to the first of the new one, and
               the CPU time of the new one until then
    commands   CPU time of commands of the CLI against a daemon of their own checkout

It prints, and writes nothing: its figures belong to a change, and to the commit that makes it.
"""

import argparse
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import report
import restart
from cells import CELLS, DEFAULT_CELLS
from checkouts import Checkout, find
from cluster import Volume, run_rounds, table
from servers import RAW, VOLUME

PARTS = ("cells", "starts", "commands")
COMMANDS = (("--version",), ("volume", "list"), ("status",), ("status", "--json"))
COMMAND_ROUNDS = 5
"""Of one turn, of which the least counts."""


def main(arguments: Sequence[str]) -> None:
    parser = report.options("scripts/bench turns", __doc__, seconds=3, size_mib=512)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("others", nargs="+", type=Path, metavar="CHECKOUT")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--cells", nargs="+", choices=list(CELLS), default=list(DEFAULT_CELLS))
    options = parser.parse_args(arguments)
    checkouts = find(options.others)
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="t-", dir=options.folder))
    try:
        lines = [f"{report.machine()}. {options.rounds} rounds.", ""]
        if "cells" in options.parts:
            lines += of_cells(checkouts, options, work)
        if "starts" in options.parts:
            lines += of_starts(checkouts, options.rounds)
        if "commands" in options.parts:
            lines += of_commands(checkouts, options.rounds, work)
    finally:
        shutil.rmtree(work)
    print("\n".join(lines))


def of_cells(checkouts: Sequence[Checkout], options: argparse.Namespace, work: Path) -> list[str]:
    size = options.size_mib << 20
    raw = work / RAW
    with raw.open("wb") as file:
        for _ in range(options.size_mib):
            file.write(os.urandom(1 << 20))
    cells = [CELLS[name] for name in options.cells]
    with ExitStack() as running:
        volumes = []
        for number, checkout in enumerate(checkouts):
            daemon = checkout.daemon(work / f"data{number}", ("--volume", f"{VOLUME}={size}"))
            running.callback(daemon.discard)
            daemon.start()
            volumes.append(Volume(checkout.name, VOLUME, [daemon]))
            volumes[-1].fill(raw)
        samples = run_rounds(volumes, cells, options.rounds, options.seconds, work)
    names = [checkout.name for checkout in checkouts]
    return [line for cell in cells for line in table(cell, names, samples)]


def in_turns(
    checkouts: Sequence[Checkout], rounds: int, measure: Callable[[Checkout], Sequence[float]]
) -> dict[str, list[Sequence[float]]]:
    """What it gave for each of them, by name, once a round."""
    found: dict[str, list[Sequence[float]]] = defaultdict(list)
    for number in range(rounds):
        shift = number % len(checkouts)
        for checkout in (*checkouts[shift:], *checkouts[:shift]):
            found[checkout.name].append(measure(checkout))
        print(f"round {number + 1} of {rounds} done", file=sys.stderr, flush=True)
    return found


def of_starts(checkouts: Sequence[Checkout], rounds: int) -> list[str]:
    found = in_turns(
        checkouts, rounds, lambda each: restart.one(signal.SIGKILL, 0, each.program, each.environ)
    )
    lines = ["| checkout | s without service | to the last | CPU s of the start |"]
    lines.append("| --- | ---: | ---: | ---: |")
    last = found[checkouts[-1].name]
    for checkout in checkouts:
        mine = found[checkout.name]
        ratio = median(a[0] / b[0] for a, b in zip(mine, last, strict=True))
        lines.append(
            f"| {checkout.name} | {median(each[0] for each in mine):.2f} | {ratio:.2f} "
            f"| {median(each[1] for each in mine):.2f} |"
        )
    return [*lines, ""]


def of_commands(checkouts: Sequence[Checkout], rounds: int, work: Path) -> list[str]:
    with ExitStack() as running:
        controls = {}
        for number, checkout in enumerate(checkouts):
            daemon = checkout.daemon(work / f"cli{number}", ("--volume", f"{VOLUME}=1048576"))
            running.callback(daemon.discard)
            daemon.start()
            controls[checkout.name] = str(daemon.data / "control.sock")
        found = in_turns(
            checkouts,
            rounds,
            lambda each: [cpu_s_of(each, args, controls[each.name]) for args in COMMANDS],
        )
    heads = [" ".join(args) for args in COMMANDS]
    lines = [f"| checkout, CPU ms | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for checkout in checkouts:
        columns = zip(*found[checkout.name], strict=True)
        cells = " | ".join(f"{1e3 * median(column):.0f}" for column in columns)
        lines.append(f"| {checkout.name} | {cells} |")
    return [*lines, ""]


def cpu_s_of(checkout: Checkout, args: Sequence[str], control: str) -> float:
    """Of a command, the least of a few."""
    environ = {**os.environ, **checkout.environ, "BLOCKD_CONTROL": control}
    seconds = []
    for _ in range(COMMAND_ROUNDS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [*checkout.program, *args]
        subprocess.run(command, check=True, capture_output=True, env=environ)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
        seconds.append(user + system)
    return min(seconds)
