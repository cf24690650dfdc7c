"""`blockd cluster status|create` and `blockd volume move`: volumes that several nodes have."""

import enum
from dataclasses import asdict
from typing import Annotated

import typer

from blockd.api.cluster_types import ClusterNodeInfo, ClusterVolume, CopyInfo
from blockd.cli.cluster_stripes import UNKNOWN, left, show
from blockd.cli.exits import FAILED
from blockd.cli.options import ControlOption, JsonOption, complete_volume, connect, size_argument
from blockd.cli.output import print_fields, print_json, print_table
from blockd.cli.times import duration
from blockd.sizes import exact_size, format_size
from volume.model import DEFAULT_BLOCK_SIZE, DEFAULT_CHUNK_SIZE

MOVE_TIMEOUT_S = 90.0
CREATE_TIMEOUT_S = 120.0

NODE_COLUMNS = ("NODE", "ID", "STATE", "SINCE", "WHY")
VOLUME_COLUMNS = ("VOLUME", "STATE", "PRIMARY", "EPOCH", "COPIES", "WANTED", "HERE", "PROBLEM")
COPY_COLUMNS = (
    *("VOLUME", "NODE", "EPOCH", "NEWEST", "SYNCED", "BEHIND"),
    *("BYTES", "SINCE", "LEFT", "HEARD", "STATE"),
)


class Acks(enum.StrEnum):
    """As `volume.metastore_records.Mode` has them, which would load all of it here."""

    MIRROR = "mirror"
    STRICT = "strict"


def status(
    copies: Annotated[
        bool, typer.Option("--copies", help="Show each copy of each volume as well.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show nodes, volumes and stripes of the cluster as they are now: every node is asked.

    What nobody could say is shown as unknown. Exit code 1 when a volume has no primary, or fewer
    copies than it should have, or a stripe fewer shards.
    """
    with connect(control) as client:
        found = client.cluster_status()
    if as_json:
        print_json(asdict(found))
    else:
        if found.metastore:
            print_fields([("metastore", found.metastore)])
            print()
        print_table(NODE_COLUMNS, map(_node_row, found.nodes), right=("SINCE",))
        if found.volumes:
            print()
            print_table(VOLUME_COLUMNS, map(_volume_row, found.volumes), right=("EPOCH",))
        if copies:
            print()
            rows = (_copy_row(volume, copy) for volume in found.volumes for copy in volume.members)
            print_table(COPY_COLUMNS, rows, right=COPY_COLUMNS[2:10])
        if found.stripes is not None:
            show(found.stripes)
    ill = found.stripes is not None and not found.stripes.well
    if ill or found.metastore or any(volume.problem for volume in found.volumes):
        raise typer.Exit(FAILED)


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new volume.")],
    size: Annotated[str, typer.Argument(metavar="SIZE", help="As 10G, 512MiB or bytes.")],
    replicas: Annotated[
        int, typer.Option("--replicas", metavar="N", min=1, max=8, help="Nodes that have it.")
    ] = 3,
    quorum: Annotated[
        int | None,
        typer.Option(
            "--write-quorum",
            metavar="N",
            min=1,
            max=8,
            help="Nodes that have a write before it is acknowledged. [more than half]",
            show_default=False,
        ),
    ] = None,
    acks: Annotated[
        Acks,
        typer.Option(
            "--acks", help="mirror: in the journals of so many nodes. strict: on their disks."
        ),
    ] = Acks.MIRROR,
    block_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Smallest unit clients write: 512 or 4096.")
    ] = str(DEFAULT_BLOCK_SIZE),
    chunk_size: Annotated[
        str, typer.Option(metavar="SIZE", help="Unit of deduplication, 4K to 1M.")
    ] = exact_size(DEFAULT_CHUNK_SIZE),
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a volume on several nodes, this one among them, and open it here.

    If a node cannot be reached in the middle of it, the same command goes on later.
    """
    options: dict[str, int | str] = {
        "replicas": replicas,
        "mode": acks.value,
        "block_size": size_argument(block_size),
        "chunk_size": size_argument(chunk_size),
    }
    if quorum is not None:
        options["write_quorum"] = quorum
    length = size_argument(size)
    with connect(control, CREATE_TIMEOUT_S) as client:
        made = client.create_cluster_volume(name, length, **options)
    if as_json:
        print_json(asdict(made))
        return
    nodes = ", ".join(member.name for member in made.members)
    print(f"created volume {made.name}, {format_size(length)}, on {nodes}")


def move(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The volume.", autocompletion=complete_volume)
    ],
    node: Annotated[str, typer.Argument(metavar="NODE", help="Name or id of a member of it.")],
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have another node serve a volume, without losing a write.

    Asked of the node that serves it now. Its clients here are cut off, and find the volume at the
    other node's addresses.
    """
    with connect(control, MOVE_TIMEOUT_S) as client:
        moved = client.move_volume(name, node)
    if as_json:
        print_json(asdict(moved))
    else:
        print(f"volume {moved.name} is served by {moved.node}, after {moved.took_s * 1e3:.0f} ms")


def _node_row(each: ClusterNodeInfo) -> tuple[str, ...]:
    state = "connected" if each.connected else "not connected"
    return each.name, each.node[:8], state, duration(each.since_s), each.reason or "-"


def _volume_row(each: ClusterVolume) -> tuple[str, ...]:
    return (
        *(each.name, each.state, each.primary or UNKNOWN, _number(each.epoch)),
        *(_number(each.copies), _number(each.wanted), each.doing or "-"),
        "; ".join(filter(None, (each.problem, each.change))) or "-",
    )


def _copy_row(volume: ClusterVolume, copy: CopyInfo) -> tuple[str, ...]:
    role = "" if copy.role == "member" else f"{copy.role}, "
    lag = (
        *(
            _number(copy.behind),
            UNKNOWN if copy.behind_bytes is None else format_size(copy.behind_bytes),
        ),
        *(left(copy.behind_s), left(copy.left_s)),
    )
    if not copy.answered:
        state = f"not known: {copy.why}"
        return volume.name, copy.name, *(UNKNOWN,) * 3, *lag, UNKNOWN, role + state
    if copy.serving:
        state = "serving"
    elif copy.in_sync is None:
        state = UNKNOWN
    else:
        state = "in sync" if copy.in_sync else "behind"
    heard = UNKNOWN if copy.quiet_s is None else f"{copy.quiet_s:.1f}s ago"
    if copy.serving:
        heard = "-"  # it hears of no primary: it is the one
    numbers = map(_number, (copy.epoch, copy.received, copy.durable))
    return volume.name, copy.name, *numbers, *lag, heard, role + state


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)
