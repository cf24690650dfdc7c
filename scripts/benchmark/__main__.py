"""blockd beside other NBD servers, in interleaved rounds on one machine.

In each round every server is started once, read for a cell's time that does not count, runs every
cell and is stopped; the order rotates. So what else goes on in the machine hits all alike, and
ratios are taken within a round. The CPU time of the server's processes is taken from /proc: on few
cores the client is the limit of IOPS, and CPU per request tells more.
"""

import argparse
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import charts
import report
import states
from cells import CELLS, DEFAULT_CELLS, Sample, measure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from servers import BLOCKD, LIMIT, SERVERS, Running, Server, make_volume, settle

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
CHART = PAGE.with_name("benchmarks.svg")


def arguments() -> argparse.Namespace:
    first = __doc__.splitlines()[0]
    parser = report.options("scripts/bench", first, seconds=3, size_mib=1024)
    names = [server.name for server in SERVERS]
    parser.add_argument(
        "--cells",
        nargs="+",
        choices=[*CELLS, "all"],
        default=list(DEFAULT_CELLS),
        help=f"default: {' '.join(DEFAULT_CELLS)}",
    )
    parser.add_argument(
        "--servers", nargs="+", choices=names, default=names, help="the first is the baseline"
    )
    parser.add_argument("--no-states", action="store_true", help="leave the states of data out")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    cells = list(CELLS) if "all" in options.cells else options.cells
    by_name = {server.name: server for server in SERVERS}
    servers = [by_name[name] for name in options.servers]
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=options.folder))
    try:
        make_volume(folder, options.size_mib << 20)
        samples = run_rounds(servers, cells, options.rounds, options.seconds, folder)
        of_states = [] if options.no_states else states.measure(folder, options)
    finally:
        shutil.rmtree(folder)
    lines = report.facts(servers, options.size_mib << 20, options.rounds, options.seconds)
    measured = [CELLS[cell] for cell in cells]
    if BLOCKD in servers:
        lines += report.verdicts(measured, servers, samples, BLOCKD.name, LIMIT)
    for cell in measured:
        lines += report.table(cell, servers, samples)
    lines += of_states
    if options.dry:
        print("\n".join(lines))
        return
    charts.draw(CHART, measured, servers, samples)
    report.write(PAGE, [f"![IOPS and CPU per request]({CHART.name})", "", *lines])
    print(f"written to {PAGE.relative_to(ROOT)}")


def run_rounds(
    servers: list[Server], cells: list[str], rounds: int, seconds: int, folder: Path
) -> report.Samples:
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=rounds * len(servers) * len(cells))
        for round_number in range(rounds):
            first = round_number % len(servers)
            for server in servers[first:] + servers[:first]:
                with Running(server, folder) as running:
                    # Or the first cell has what only the start of a server's life has: chunks whose
                    # places are looked up, pages that nobody has touched, threads that begin.
                    measure(CELLS["read-1m"], running, seconds, folder)
                    for cell in cells:
                        progress.update(task, description=f"{server.name}: {cell}")
                        settle(server, folder)
                        sample = measure(CELLS[cell], running, seconds, folder)
                        samples[server.name, cell].append(sample)
                        progress.advance(task)
            if not console.is_terminal:
                console.print(f"round {round_number + 1} of {rounds} done")
    return samples


if __name__ == "__main__":
    if sys.argv[1:2] == ["versions"]:
        from versions import command

        command.main(sys.argv[2:], PAGE, ROOT / "build")
    elif sys.argv[1:2] == ["iscsi"]:
        from iscsi import command as iscsi_command

        iscsi_command.main(sys.argv[2:], PAGE)
    elif sys.argv[1:2] == ["profile"]:
        import profiles

        profiles.main(sys.argv[2:], PAGE)
    elif sys.argv[1:2] == ["cluster"]:
        import cluster

        cluster.main(sys.argv[2:], PAGE)
    elif sys.argv[1:2] == ["cluster-turns"]:
        import clusterturns

        clusterturns.main(sys.argv[2:])
    elif sys.argv[1:2] == ["stripes"]:
        import stripes

        stripes.main(sys.argv[2:], PAGE)
    elif sys.argv[1:2] == ["upkeep"]:
        import upkeep

        upkeep.main(sys.argv[2:], PAGE)
    elif sys.argv[1:2] == ["turns"]:
        import turns

        turns.main(sys.argv[2:])
    elif sys.argv[1:2] == ["restart"]:
        import restart

        restart.main(sys.argv[2:], PAGE)
    elif sys.argv[1:2] == ["neighbours"]:
        import neighbours

        neighbours.main(sys.argv[2:], PAGE.with_name("qos.md"))
    elif sys.argv[1:2] == ["erasure"]:
        from erasure import command as erasure_command

        erasure_command.main(sys.argv[2:], PAGE)
    else:
        main()
