"""`blockd space`: where the disk's bytes are."""

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from blockd.cli.options import ControlOption, JsonOption, complete_volume, connect
from blockd.cli.output import print_fields, print_json, print_table
from blockd.cli.progress import waiting
from blockd.sizes import format_size
from volume.model import SpaceReport, SpaceRow

COLUMNS = (
    "VOLUME",
    "VERSION",
    "LOGICAL",
    "STORED",
    "RATIO",
    "SHARED",
    "FREED IF DELETED",
    "PINNED BY",
)
_ORDER = {"head": 0, "snapshot": 1, "history": 2}


def space(
    volume: Annotated[
        str | None,
        typer.Argument(metavar="VOL", help="Only one volume.", autocompletion=complete_volume),
    ] = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each volume and snapshot takes of the disk, exactly.

    STORED is what a version reaches, compressed and each chunk once; SHARED of it is reached by
    others as well, the rest is FREED IF DELETED. "history" is all versions that have no name,
    "all" is the volume with everything of it. Freed bytes come back with the next gc.
    """
    with connect(control) as client, waiting("counting every chunk"):
        report = client.space(volume)
    if as_json:
        print_json(report)
        return
    print_table(COLUMNS, _rows(report), right=COLUMNS[2:7])
    print()
    print_fields(_sums(report))


def _rows(report: SpaceReport) -> Iterator[Sequence[str]]:
    by_volume: dict[str, list[SpaceRow]] = {name: [] for name, _ in report.volumes}
    for row in report.rows:
        by_volume.setdefault(row.volume, []).append(row)
    freed = dict(report.volumes)
    for volume, rows in sorted(by_volume.items()):
        for row in sorted(rows, key=lambda row: _ORDER.get(row.kind, len(_ORDER))):
            yield _row(row)
        if volume in freed:
            yield volume, "all", "", "", "", "", format_size(freed[volume]), ""


def _row(row: SpaceRow) -> Sequence[str]:
    return (
        row.volume,
        f"@{row.name}" if row.name is not None else row.kind,
        format_size(row.logical_bytes),
        format_size(row.stored_bytes),
        f"{row.raw_bytes / row.stored_bytes:.2f}x" if row.stored_bytes else "",
        format_size(row.shared_bytes),
        format_size(row.exclusive_bytes),
        ", ".join(row.pinned_by),
    )


def _sums(report: SpaceReport) -> list[tuple[str, str]]:
    return [
        ("in use", format_size(report.live_bytes)),
        ("garbage", f"{format_size(report.garbage_bytes)}, which gc removes"),
        ("packs", f"{format_size(report.pack_bytes)}, with headers and footers"),
        (
            "journal",
            f"{format_size(report.journal_bytes)}, {format_size(report.window_bytes)} of it only "
            "for restoring single writes",
        ),
    ]
