"""`blockd volume log|history|restore|clone|diff`: past versions of volumes.

Registered by `blockd.cli.volume`, whose other commands are about volumes as they are.
"""

import shutil
import sys
from typing import Annotated

import typer

from blockd.api.types import VersionDiff
from blockd.cli.completion import complete_snapshot_name, complete_version
from blockd.cli.options import (
    ControlOption,
    JsonOption,
    complete_volume,
    connect,
)
from blockd.cli.output import counted, print_fields, print_json, print_table
from blockd.cli.progress import waiting
from blockd.cli.refs import version_of
from blockd.cli.timeline import draw, shows_unicode
from blockd.cli.times import age, format_time, now_ns
from blockd.sizes import exact_size, format_size
from volume.model import HistoryPolicy, VersionInfo, VersionLog
from volume.retention import format_duration, parse_duration

DEFAULT_LIMIT = 50
MAX_EXTENTS = 40  # rows of a diff on a screen
MAX_NAMES = 5  # snapshots of one version in the log's last column
PIPE_WIDTH = 80  # of the timeline, where there is no terminal to ask

VolumeArgument = Annotated[
    str, typer.Argument(metavar="VOL", help="The volume.", autocompletion=complete_volume)
]


def log(
    volume: VolumeArgument,
    limit: Annotated[
        int, typer.Option("--limit", "-n", metavar="N", min=1, help="The newest N.")
    ] = DEFAULT_LIMIT,
    writes: Annotated[
        bool, typer.Option("--writes", help="Every single write that can be restored, too.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what states of a volume can be restored, newest first.

    TIME and SEQ name a version wherever one is asked for: vm1@seq:42, vm1@2026-11-22T10:31:05Z.
    """
    with connect(control) as client, waiting("reading the log"):
        found = client.version_log(volume, limit=limit, writes=writes)
    if as_json:
        print_json(found)
        return
    now = now_ns()
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH
    for line in draw(found, width, now, unicode=shows_unicode(sys.stdout)):
        print(line)
    print()
    _print_log(found, now)
    _print_hints(found)


def _print_log(found: VersionLog, now: int) -> None:
    columns: list[str] = ["TIME", "AGE", "SEQ", "KIND", "OFFSET", "CHANGED", "SNAPSHOTS"]
    rows = [_log_row(version, now) for version in found.versions]
    if all(version.offset is None for version in found.versions):
        for line in (columns, *rows):
            del line[4]
    print_table(columns, rows, right=("AGE", "SEQ", "OFFSET", "CHANGED"))


def _log_row(version: VersionInfo, now: int) -> list[str]:
    names = ", ".join(version.snapshots[:MAX_NAMES])
    more = len(version.snapshots) - MAX_NAMES
    return [
        format_time(version.time_ns),
        age(version.time_ns, now),
        str(version.seq),
        version.kind,
        "" if version.offset is None else exact_size(version.offset),
        format_size(version.bytes),
        names + (f" and {more} more" if more > 0 else ""),
    ]


def _print_hints(found: VersionLog) -> None:
    print()
    if found.more:
        print(f"older versions: blockd volume log {found.volume} --limit {4 * len(found.versions)}")
    if found.window_start_ns is None:
        print("single writes cannot be restored: the volume has no window (blockd volume history)")
    print(f"go back: blockd volume restore {found.volume} --to seq:N, a time, -10m or a snapshot")


def history(
    volume: VolumeArgument,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Every single write of so long stays restorable; 0: none."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="POLICY", help='What stays after it, as 60m,24h,7d; "" is nothing.'),
    ] = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or set how long versions without a name stay. Snapshots stay until they are deleted."""
    window_s = None if window is None else 0 if window == "0" else parse_duration(window)
    with connect(control) as client:
        if window_s is None and keep is None:
            policy = client.history(volume)
        else:
            policy = client.set_history(volume, window_s=window_s, keep=keep)
    if as_json:
        print_json(policy)
    else:
        print_fields([("volume", volume), *history_fields(policy)])


def history_fields(policy: HistoryPolicy) -> list[tuple[str, str]]:
    window = "none"
    if policy.window_s:
        window = f"every write of {format_duration(policy.window_s)}, while there is room"
    return [
        ("window", window),
        ("keep", policy.keep or "nothing older that has no name"),
    ]


def restore(
    volume: VolumeArgument,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="REF",
            help="A snapshot, seq:N, commit:HEX, a time (2026-11-22T10:31:05Z) or an age (-10m).",
            autocompletion=complete_snapshot_name,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even while it is attached.")] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a volume back to an earlier state. Nothing is lost: the state of now is kept.

    Asks first on a terminal. Unmount its file systems first: clients do not expect old contents.
    """
    ref = version_of(volume, to)
    with connect(control) as client:
        if not (yes or force or as_json) and not _confirmed(volume, ref):
            raise typer.Abort
        with waiting(f"restoring {volume}"):
            done = client.restore_volume(volume, ref, force=force)
    if as_json:
        print_json(done)
        return
    kept = done.kept.removeprefix(f"{volume}@")
    print(f"volume {volume} is as it was at {ref} (seq {done.restored_seq})")
    keeps = "has a name already," if done.had_name else "is kept as"
    print(f"the state before {keeps} {volume}@{kept}; undo: ", end="")
    print(f"blockd volume restore {volume} --to {kept}")


def _confirmed(volume: str, ref: str) -> bool:
    """Scripts are not asked: they mean what they say."""
    if not sys.stdin.isatty():
        return True
    return typer.confirm(
        f"Take volume {volume} back to {ref}? What it has now is kept as a snapshot."
    )


def clone(
    source: Annotated[
        str,
        typer.Argument(
            metavar="VOL[@REF]",
            help="The version it starts as; without REF, what the volume has now.",
            autocompletion=complete_version,
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new volume.")],
    alone: Annotated[
        bool, typer.Option("--alone", help="Of this node alone, where several have VOL.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new, writable volume of any version. Nothing is copied.

    Neither needs the other afterwards: either may be deleted. In a cluster it is on the nodes that
    have VOL, and served here; when one of them cannot be reached, the same command goes on later.
    `blockd volume replace-member` takes it to other nodes.
    """
    with connect(control) as client:
        info = client.clone_volume(source, name, alone=alone)
    if as_json:
        print_json(info)
    else:
        print(f"created volume {info.name} from {source}, {format_size(info.size)}")


def diff(
    old: Annotated[
        str,
        typer.Argument(metavar="A[@REF]", help="From.", autocompletion=complete_version),
    ],
    new: Annotated[
        str,
        typer.Argument(metavar="B[@REF]", help="To.", autocompletion=complete_version),
    ],
    every: Annotated[
        bool, typer.Option("--all", help=f"Every extent, not the first {MAX_EXTENTS}.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where two versions differ, in whole chunks. Takes as long as the difference is large.

    With --json all extents are there: [offset, length] in bytes.
    """
    limit = None if every or as_json else MAX_EXTENTS
    with connect(control) as client, waiting("comparing"):
        found = client.diff(old, new, limit=limit)
    if as_json:
        print_json(found)
    else:
        _print_diff(found)


def _print_diff(found: VersionDiff) -> None:
    if found.extents:
        print_table(
            ("OFFSET", "LENGTH"),
            ((exact_size(offset), exact_size(length)) for offset, length in found.extents),
            right=("OFFSET", "LENGTH"),
        )
    more = found.extent_count - len(found.extents)
    if more:
        print(f"... and {more} more (--all shows them)")
    if found.old_size != found.new_size:
        print(f"size {format_size(found.old_size)} -> {format_size(found.new_size)}")
    if not found.extent_count:
        print(f"{found.old} and {found.new} have the same contents")
        return
    changed = f"{format_size(found.changed_bytes)} ({found.changed_bytes} bytes)"
    size = format_size(max(found.old_size, found.new_size))
    print(f"{counted(found.extent_count, 'extent')}, {changed} of {size} differ")
