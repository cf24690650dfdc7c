"""`blockd doctor --rebuild-meta`: what is found, and what is made of it, as text or JSON."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from blockd.cli.exits import DAMAGED
from blockd.cli.options import UsageError
from blockd.cli.output import print_json, print_table
from blockd.sizes import format_size

if TYPE_CHECKING:
    from volume.rebuild import RebuildReport

SHOWN_SNAPSHOTS = 20


def rebuild(data: Path | None, copy: Path | None, as_json: bool, *, write: bool) -> None:
    """Exit code 7 when something is missing of what there was."""
    if data is None:
        raise UsageError("doctor --rebuild-meta: name the data directory with --data DIR")
    from blockd.cli.doctor import long_progress
    from volume.rebuild import rebuild_meta

    with long_progress() as shown:
        report = rebuild_meta(data, copy, write=write, progress=shown)
    if as_json:
        print_json(_plain(report))
    else:
        _print(data, report)
    if not report.whole:
        raise typer.Exit(DAMAGED)


def _plain(report: "RebuildReport") -> dict[str, object]:
    plan = report.plan
    return {
        "store": report.store_uuid,
        "written": report.written,
        "whole": report.whole,
        "packs": report.packs,
        "chunks": report.chunks,
        "segments": report.segments,
        "unreadable": list(report.unreadable),
        "volumes": [asdict(volume) for volume in plan.volumes],
        "deleted": list(plan.deleted),
        "lost_snapshots": list(plan.lost_snapshots),
        "left_out": list(plan.left_out),
    }


def _print(data: Path, report: "RebuildReport") -> None:
    plan = report.plan
    print(
        f"{data}: {report.chunks} chunks in {report.packs} packs, {report.segments} segments of "
        "the journal"
    )
    if plan.volumes:
        print_table(
            ("VOLUME", "SIZE", "VERSIONS", "SNAPSHOTS", "KNOWN BY", "STATE"),
            (
                (
                    *(volume.name, format_size(volume.size), str(volume.versions)),
                    *(str(volume.snapshots), volume.known_by),
                    "not whole" if volume.lacks else "whole",
                )
                for volume in plan.volumes
            ),
            right=("SIZE", "VERSIONS", "SNAPSHOTS"),
        )
    for volume in plan.volumes:
        for why in volume.lacks:
            print(f"lacks: {volume.name}: {why}")
    for why in report.unreadable:
        print(f"unreadable: {why}")
    for name in plan.deleted:
        print(f"deleted since the copy was made: {name}")
    for name in plan.left_out:
        print(f"left out, only remains are there, of a volume that was perhaps deleted: {name}")
    for name in plan.lost_snapshots[:SHOWN_SNAPSHOTS]:
        print(f"lost: snapshot {name}")
    if (more := len(plan.lost_snapshots) - SHOWN_SNAPSHOTS) > 0:
        print(f"lost: {more} more snapshots (--json shows them)")
    if report.written:
        print(f"{data}/meta is made; look at it: blockd serve --data {data}")
    else:
        print("nothing was made: this was a dry run")
