"""`blockd target lun add|remove|list`: the units of a target. Initiators see changes at once."""

from collections.abc import Sequence
from typing import Annotated

import typer

from blockd.api.iscsi_types import LunInfo
from blockd.cli.completion import complete_version
from blockd.cli.options import ControlOption, JsonOption, connect
from blockd.cli.output import print_json, print_table
from blockd.cli.target_options import NameArgument, full_name, short_name
from blockd.sizes import format_size

app = typer.Typer(
    no_args_is_help=True,
    help="Volumes, and past versions of them, as units of a target. Initiators that are logged in "
    "are told at once.",
)


@app.command()
def add(
    name: NameArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="VOL[@VERSION]",
            help="A volume, or a version of one, which is read-only.",
            autocompletion=complete_version,
        ),
    ],
    lun: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Its number. [one that no unit had before]"),
    ] = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a unit."""
    with connect(control) as client:
        made = client.add_lun(full_name(name), source, lun)
    if as_json:
        print_json(made)
    else:
        print(f"target {short_name(full_name(name))}: LUN {made.lun} is {made.source}")


@app.command()
def remove(
    name: NameArgument,
    lun: Annotated[int, typer.Argument(metavar="LUN", min=0, help="Its number.")],
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a unit away. The volume stays, and its number is not given to another by itself."""
    with connect(control) as client:
        client.remove_lun(full_name(name), lun)
    if as_json:
        print_json({"removed": lun})
    else:
        print(f"target {short_name(full_name(name))}: LUN {lun} removed")


@app.command("list")
def list_luns(
    name: NameArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """List the units."""
    with connect(control) as client:
        target = client.target(full_name(name))
    if as_json:
        print_json(target.luns)
    else:
        print_luns(target.luns)


def print_luns(luns: Sequence[LunInfo]) -> None:
    print_table(
        ("LUN", "SOURCE", "SIZE", "BLOCK", "ACCESS", "WWN"),
        (
            (
                str(each.lun),
                each.source,
                format_size(each.size) if each.present else "-",
                str(each.block_size) if each.present else "-",
                "gone" if not each.present else "read-only" if each.read_only else "read-write",
                f"0x{each.naa}" if each.naa else "-",
            )
            for each in luns
        ),
        right=("LUN", "SIZE", "BLOCK"),
    )
