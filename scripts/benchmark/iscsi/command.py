"""scripts/bench iscsi: jobs on every target once a round, the order rotating, into the page."""

import argparse
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import report
from servers import make_volume

from iscsi.clients import JOBS, Job, Outcome
from iscsi.peers import SERVERS, RunningTarget, usable

BEGIN = "<!-- scripts/bench iscsi: from here -->"
END = "<!-- scripts/bench iscsi: to here -->"

Outcomes = dict[tuple[str, str], list[Outcome]]


def main(arguments: Sequence[str], page: Path) -> None:
    parser = report.options("scripts/bench iscsi", __doc__, seconds=3, size_mib=1024)
    parser.add_argument("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    options = parser.parse_args(arguments)
    if not usable():
        raise SystemExit("tgtd has to be started by root; run this as root")
    options.folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="i-", dir=options.folder))
    try:
        make_volume(work, options.size_mib << 20)
        outcomes = run_rounds([JOBS[name] for name in options.jobs], options, work)
    finally:
        shutil.rmtree(work)
    lines = [facts(options), ""]
    for name in options.jobs:
        lines += table(JOBS[name], outcomes)
    if options.dry:
        print("\n".join(lines))
    else:
        report.write(page, lines, begin=BEGIN, end=END)


def run_rounds(jobs: Sequence[Job], options: argparse.Namespace, folder: Path) -> Outcomes:
    outcomes: Outcomes = defaultdict(list)
    for number in range(options.rounds):
        first = number % len(SERVERS)
        for server, lun, set_up in SERVERS[first:] + SERVERS[:first]:
            with RunningTarget(server, folder, lun, set_up) as running:
                for job in jobs:
                    outcome = job.run(job, running, options.seconds)
                    outcomes[server.name, job.name].append(outcome)
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr, flush=True)
    return outcomes


def facts(options: argparse.Namespace) -> str:
    versions = {server.program: report.version_of(server.version) for server, _, _ in SERVERS}
    return (
        f"{report.machine()}; {', '.join(versions.values())}. Unit of {options.size_mib} MiB, "
        f"{options.rounds} rounds, {options.seconds} s a job."
    )


def table(job: Job, outcomes: Outcomes) -> list[str]:
    """One job's table; ratios are medians of each round's ratio to the first server."""
    baseline = outcomes[SERVERS[0][0].name, job.name]
    lines = [
        f"### iSCSI: {job.title}",
        "",
        f"| target | IOPS | to {SERVERS[0][0].name} | server CPU us/request |",
        "| --- | ---: | ---: | ---: |",
    ]
    for server, _, _ in SERVERS:
        own = outcomes[server.name, job.name]
        ratio = median(a.iops / b.iops for a, b in zip(own, baseline, strict=True))
        lines.append(
            f"| {server.name} | {median(o.iops for o in own):,.0f} | {ratio:.2f} "
            f"| {median(o.cpu_us for o in own):.1f} |"
        )
    return [*lines, ""]
