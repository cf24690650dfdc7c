"""`blockd volume ...`: create, list, show, resize, rename, delete.

Past versions (log, history, restore, clone, diff) are in `blockd.cli.versions`, `limit` is in
`blockd.cli.limit`, access lists in `blockd.cli.access`.
"""

import enum
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from blockd import attach, iscsi_attach
from blockd.api.client import Client
from blockd.api.iscsi_types import TargetInfo
from blockd.api.types import NodeStatus
from blockd.cli import access
from blockd.cli.cluster_members import replace_member
from blockd.cli.cluster_volumes import move
from blockd.cli.limit import limit, limit_fields
from blockd.cli.options import (
    ControlOption,
    JsonOption,
    complete_volume,
    connect,
    size_argument,
)
from blockd.cli.output import print_fields, print_json, print_table
from blockd.cli.times import seconds_time
from blockd.cli.versions import clone, diff, history, history_fields, log, restore
from blockd.sizes import exact_size, format_size
from volume.model import DEFAULT_BLOCK_SIZE, DEFAULT_CHUNK_SIZE, ScheduleInfo, VolumeInfo
from volume.retention import format_duration

app = typer.Typer(
    no_args_is_help=True,
    help="Create, list, resize, rename and delete volumes; go back to their past versions.",
)
app.add_typer(access.app, name="access")


class Codec(enum.StrEnum):
    """As `volume.codecs` has them, which would load all of them here."""

    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    IGZIP = "igzip"


ATTACH_COLUMNS = ("NODE", "STATE", "ADDRESS")
COLUMNS = ("NAME", "SIZE", "BLOCK", "CHUNK", "NOT DESTAGED", "SNAPSHOTS", "CLIENTS")

NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", help="The volume.", autocompletion=complete_volume)
]
SizeArgument = Annotated[str, typer.Argument(metavar="SIZE", help="As 10G, 512MiB or bytes.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new volume.")],
    size: SizeArgument,
    block_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Smallest unit clients write: 512 or 4096.")
    ] = str(DEFAULT_BLOCK_SIZE),
    chunk_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Unit of deduplication, 4K to 1M.")
    ] = exact_size(DEFAULT_CHUNK_SIZE),
    compression: Annotated[
        Codec | None,
        typer.Option(help="How its data is packed. [the store's default]", show_default=False),
    ] = None,
    closed: Annotated[
        bool,
        typer.Option("--closed", help="Nobody may attach it until `access allow` says who."),
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a volume. It is thin: it takes space as it is written."""
    options: dict[str, int | str | bool] = {
        "block_size": size_argument(block_size),
        "chunk_size": size_argument(chunk_size),
    }
    if compression is not None:
        options["compression"] = compression.value
    if closed:
        options["closed"] = True
    length = size_argument(size)
    with connect(control) as client:
        info = client.create_volume(name, length, **options)
    _report(info, f"created volume {info.name}, {format_size(info.size)}", as_json)


@app.command("list")
def list_volumes(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """List the volumes."""
    with connect(control) as client:
        volumes = client.volumes()
    if as_json:
        print_json(volumes)
        return
    print_table(
        COLUMNS,
        (
            (
                volume.name,
                format_size(volume.size),
                str(volume.block_size),
                format_size(volume.chunk_size),
                format_size(volume.hot_bytes),
                str(volume.snapshot_count),
                str(len(volume.clients)),
            )
            for volume in volumes
        ),
        right=COLUMNS[1:],
    )


@app.command()
def show(name: NameArgument, control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show one volume, and the commands that attach it."""
    with connect(control) as client:
        info = client.volume(name)
        policy = client.history(name)
        schedule = client.schedule(name)
        limits = client.limits(name)
        who = client.access(name)
        if as_json:
            plans = {
                "history": asdict(policy),
                "schedule": schedule and asdict(schedule),
                "limits": asdict(limits.limits),
            }
            print_json({**asdict(info), **plans})
            return
        node = client.status()
        target = _own_target(client, info.name, node)
    plan = [*limit_fields(limits), *history_fields(policy), _schedule_field(schedule)]
    print_fields([*_fields(info), *plan, ("access", access.in_short(who))])
    print()
    for line in _attach_lines(info.name, node):
        print(line)
    for line in _iscsi_lines(target, node):
        print(line)


@app.command("attach-info")
def attach_info(
    name: NameArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Show where clients attach a volume: all nodes that have it, and which one serves it now.

    For scripts that follow a failover: after an error they ask again, or try one address after
    the other. iSCSI initiators with multipath need all of them from the beginning.
    """
    with connect(control) as client:
        found = client.ways(name)
    if as_json:
        print_json(asdict(found))
        return
    rows = []
    for way in found.ways:
        node = way.node or "this node"
        uris = [attach.uri(address, found.volume, tls=found.tls) for address in way.nbd]
        if found.target:
            portals = [each.partition(",")[0] for each in way.iscsi]
            uris += [iscsi_attach.url(address, found.target) for address in portals]
        rows += [(node, way.state, uri) for uri in uris or ("no address",)]
    print_table(ATTACH_COLUMNS, rows)


@app.command()
def resize(
    name: NameArgument,
    size: SizeArgument,
    force: Annotated[bool, typer.Option("--force", help="Shrink, cutting off data.")] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a volume's size. Growing works while it is attached."""
    length = size_argument(size)
    with connect(control) as client:
        info = client.resize_volume(name, length, force=force)
    _report(info, f"volume {info.name} is now {format_size(info.size)}", as_json)


@app.command()
def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW_NAME", help="Its new name.")],
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a volume another name."""
    with connect(control) as client:
        info = client.rename_volume(name, new_name)
    _report(info, f"volume {name} is now {info.name}", as_json)


@app.command()
def delete(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even while attached, with its snapshots, and as a LUN.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a volume with all its data and versions. Asks first on a terminal."""
    with connect(control) as client:
        if not (yes or force or as_json) and not _confirmed(client.volume(name)):
            raise typer.Abort
        client.delete_volume(name, force=force)
    if as_json:
        print_json({"deleted": name})
    else:
        print(f"deleted volume {name}")


for command in (limit, log, restore, clone, diff, history, move, replace_member):
    app.command()(command)


def _confirmed(info: VolumeInfo) -> bool:
    """Scripts are not asked: they mean what they say."""
    if not sys.stdin.isatty():
        return True
    return typer.confirm(
        f"Delete volume {info.name} ({format_size(info.size)}), its data and all its versions?"
    )


def _report(info: VolumeInfo, text: str, as_json: bool) -> None:
    if as_json:
        print_json(info)
    else:
        print(text)


def _fields(info: VolumeInfo) -> list[tuple[str, str]]:
    return [
        ("name", info.name),
        ("uuid", info.uuid),
        ("size", f"{format_size(info.size)} ({info.size} bytes)"),
        ("block size", format_size(info.block_size)),
        ("chunk size", format_size(info.chunk_size)),
        ("compression", info.compression),
        ("created", seconds_time(info.created_ns)),
        ("version", f"{info.epoch}:{info.seq}"),
        ("commit", f"{info.commit} (up to {info.commit_seq})" if info.commit else "none yet"),
        ("not destaged", format_size(info.hot_bytes)),
        ("clients", ", ".join(info.clients) or "none"),
        ("snapshots", str(info.snapshot_count)),
    ]


def _schedule_field(schedule: ScheduleInfo | None) -> tuple[str, str]:
    if schedule is None:
        return "schedule", "none"
    every = format_duration(schedule.every_s)
    return "schedule", f"a snapshot every {every}, kept {schedule.keep or 'until the next'}"


def _own_target(client: Client, name: str, node: NodeStatus) -> TargetInfo | None:
    """The iSCSI target that the volume has by itself, or the created one that hides it."""
    if not node.iscsi or not node.auto_targets:
        return None
    return client.target(iscsi_attach.target_of(name))


def _iscsi_lines(target: TargetInfo | None, node: NodeStatus) -> list[str]:
    if target is None or not target.luns:
        return []
    chap, lun = bool(target.chap_users), target.luns[0].lun
    lines = []
    for address in node.iscsi:
        lines.append(f"attach by {iscsi_attach.url(address, target.name, lun, chap=chap)}")
        commands = iscsi_attach.commands(address, target.name, lun, chap=chap)
        lines += ["  " + command for command in commands]
    return lines


def _attach_lines(name: str, node: NodeStatus) -> list[str]:
    tls = node.tls == "require"
    lines = []
    for address in node.nbd:
        lines.append(f"attach by {attach.uri(address, name, tls=tls)}")
        lines += ["  " + command for command in attach.commands(address, name, tls=tls)]
    return lines
