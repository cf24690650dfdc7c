"""`blockd snapshot ...`: create, list, show, delete, pin, unpin, schedule."""

import shlex
import sys
from typing import Annotated

import typer

from blockd import attach
from blockd.api.client import Client
from blockd.cli.completion import complete_snapshot
from blockd.cli.options import (
    ControlOption,
    JsonOption,
    UsageError,
    complete_volume,
    connect,
)
from blockd.cli.output import print_fields, print_json, print_table
from blockd.cli.refs import snapshot_argument
from blockd.cli.times import age, format_time, now_ns, seconds_time
from blockd.sizes import format_size
from volume.model import ScheduleInfo, SnapshotInfo
from volume.retention import format_duration, parse_duration

DEFAULT_KEEP = "24h,7d,4w"

app = typer.Typer(
    no_args_is_help=True,
    short_help="Name the states of volumes, by hand or on a schedule.",
    help="Name the state of a volume, by hand or on a schedule. It takes milliseconds and no "
    "space: what is written later is what costs.",
)

SnapshotArgument = Annotated[
    str,
    typer.Argument(metavar="VOL@NAME", help="The snapshot.", autocompletion=complete_snapshot),
]
VolumeArgument = Annotated[
    str, typer.Argument(metavar="VOL", help="The volume.", autocompletion=complete_volume)
]


@app.command()
def create(
    snapshot: Annotated[
        str,
        typer.Argument(
            metavar="VOL@NAME",
            help="What to call it, as vm1@before-upgrade; NAME alone with --group.",
            autocompletion=complete_snapshot,
        ),
    ],
    group: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VOL,VOL",
            help="These volumes as well, all at the same instant. May be repeated.",
            autocompletion=complete_volume,
        ),
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Pin it: only --force deletes it.")] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name the state of a volume, with every write that was acknowledged until now."""
    name, volumes = _targets(snapshot, group or [])
    with connect(control) as client:
        made = client.create_snapshot(name, volumes, pinned=pin, sync=True)
    if as_json:
        print_json(made)
        return
    for info in made:
        print(f"created snapshot {_ref(info)}")


def _targets(snapshot: str, group: list[str]) -> tuple[str, list[str]]:
    """The name, and the volumes: each once, in the order they were given."""
    volume, at, name = snapshot.rpartition("@")
    volumes = [volume] if at else []
    volumes += [each for text in group for each in text.split(",") if each]
    if not name or not volumes or (at and not volume):
        raise UsageError(
            f"{snapshot!r}: write VOL@NAME, as vm1@before-upgrade, or NAME --group VOL,VOL"
        )
    return name, list(dict.fromkeys(volumes))


@app.command("list")
def list_snapshots(
    volume: Annotated[
        str | None,
        typer.Argument(metavar="VOL", help="Those of one volume.", autocompletion=complete_volume),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the newest N.")
    ] = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List snapshots by volume, oldest first."""
    with connect(control) as client:
        snapshots = client.snapshots(volume, limit=limit)
    if as_json:
        print_json(snapshots)
        return
    now = now_ns()
    print_table(
        ("SNAPSHOT", "CREATED", "AGE", "SIZE", "SEQ", "KEPT BY"),
        (
            (
                _ref(info),
                seconds_time(info.created_ns),
                age(info.created_ns, now),
                format_size(info.size),
                str(info.seq),
                _kept_by(info),
            )
            for info in snapshots
        ),
        right=("AGE", "SIZE", "SEQ"),
    )


@app.command()
def show(
    snapshot: SnapshotArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Show one snapshot, and what can be done with it."""
    volume, name = snapshot_argument(snapshot)
    with connect(control) as client:
        info = client.snapshot(volume, name)
        if as_json:
            print_json(info)
            return
        node = client.status()
    print_fields(_fields(info))
    ref = _ref(info)
    print("\nread it, while the volume goes on")
    for address in node.nbd[:1]:
        uri = attach.uri(address, ref, tls=node.tls == "require")
        print("  " + shlex.join(["nbdcopy", "--progress", uri, f"{volume}-{name}.img"]))
    print("make a new volume of it")
    print(f"  blockd volume clone {ref} NAME")
    print("go back to it")
    print(f"  blockd volume restore {volume} --to {name}")


@app.command()
def delete(
    snapshots: Annotated[
        list[str],
        typer.Argument(
            metavar="VOL@NAME...", help="The snapshots.", autocompletion=complete_snapshot
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even those that are pinned.")] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete snapshots; the volume stays. Asks first on a terminal.

    Stops at the first that cannot be deleted, having said which were.
    """
    targets = [(each, *snapshot_argument(each)) for each in dict.fromkeys(snapshots)]
    with connect(control) as client:
        if not (yes or force or as_json) and not _confirmed([text for text, *_ in targets]):
            raise typer.Abort
        deleted: list[str] = []
        try:
            for text, volume, name in targets:
                client.delete_snapshot(volume, name, force=force)
                deleted.append(text)
                if not as_json:
                    print(f"deleted snapshot {text}")
        finally:
            if as_json:
                print_json({"deleted": deleted})


def _confirmed(snapshots: list[str]) -> bool:
    """Scripts are not asked: they mean what they say."""
    if not sys.stdin.isatty():
        return True
    shown = ", ".join(snapshots[:3]) + (", ..." if len(snapshots) > 3 else "")
    what = "snapshot" if len(snapshots) == 1 else f"{len(snapshots)} snapshots:"
    return typer.confirm(f"Delete {what} {shown}?")


@app.command()
def pin(
    snapshot: SnapshotArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Keep a snapshot from schedules and from careless hands."""
    _pin(snapshot, True, control, as_json)


@app.command()
def unpin(
    snapshot: SnapshotArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Let schedules and `delete` have a snapshot again that was pinned."""
    _pin(snapshot, False, control, as_json)


def _pin(snapshot: str, pinned: bool, control: ControlOption, as_json: bool) -> None:
    volume, name = snapshot_argument(snapshot)
    with connect(control) as client:
        info = client.pin_snapshot(volume, name, pinned)
    if as_json:
        print_json(info)
    else:
        print(f"snapshot {_ref(info)} is {'' if info.pinned else 'no longer '}pinned")


@app.command()
def schedule(
    volume: VolumeArgument,
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="How often, as 15m, 1h or 1d.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY",
            help="What stays: 24h,7d,4w is one an hour for 24 hours, one a day for 7 days, one a "
            f"week for 4 weeks. [{DEFAULT_KEEP}]",
        ),
    ] = None,
    off: Annotated[
        bool, typer.Option("--off", help="No more; the snapshots it made stay.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let the daemon make snapshots of a volume, and remove old ones. Shows what is set."""
    if off and (every or keep):
        raise UsageError("--off goes without --every and --keep")
    with connect(control) as client:
        if off:
            client.clear_schedule(volume)
            current = None
        elif every or keep:
            current = _set_schedule(client, volume, every, keep)
        else:
            current = client.schedule(volume)
    if as_json:
        print_json(current)
    elif off:
        print(f"volume {volume} makes no more snapshots by itself; those that it made stay")
    else:
        _print_schedule(volume, current)


def _set_schedule(client: Client, volume: str, every: str | None, keep: str | None) -> ScheduleInfo:
    """What is not given stays as it was."""
    every_s = parse_duration(every) if every else None
    before = client.schedule(volume) if every_s is None or keep is None else None
    if every_s is None:
        if before is None:
            raise UsageError(f"volume {volume} has no schedule yet: say --every as well, as 15m")
        every_s = before.every_s
    if keep is None:
        keep = before.keep if before else DEFAULT_KEEP
    return client.set_schedule(volume, every_s, keep)


def _print_schedule(volume: str, current: ScheduleInfo | None) -> None:
    if current is None:
        print(f"volume {volume} has no schedule; make one:")
        print(f"  blockd snapshot schedule {volume} --every 15m --keep {DEFAULT_KEEP}")
        return
    until = age(now_ns(), current.next_ns)
    print_fields(
        [
            ("volume", current.volume),
            ("every", format_duration(current.every_s)),
            ("keep", current.keep or "the newest only"),
            ("next", f"{seconds_time(current.next_ns)} (in {until})"),
        ]
    )


def _ref(info: SnapshotInfo) -> str:
    return f"{info.volume}@{info.name}"


def _kept_by(info: SnapshotInfo) -> str:
    reasons = [("pin", info.pinned), ("schedule", info.scheduled)]
    return ", ".join(reason for reason, holds in reasons if holds)


def _fields(info: SnapshotInfo) -> list[tuple[str, str]]:
    return [
        ("volume", info.volume),
        ("name", info.name),
        ("created", f"{format_time(info.created_ns)} ({age(info.created_ns, now_ns())} ago)"),
        ("size", f"{format_size(info.size)} ({info.size} bytes)"),
        ("version", f"{info.epoch}:{info.seq}"),
        ("commit", info.commit or "none yet: the newest writes are in the journal only"),
        ("pinned", "yes" if info.pinned else "no"),
        ("scheduled", "yes" if info.scheduled else "no"),
    ]
