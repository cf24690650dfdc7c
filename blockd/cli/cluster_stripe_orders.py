"""`blockd cluster stripes ...`: what is lost, giving it up, rows that are made again."""

from dataclasses import asdict
from typing import Annotated

import typer

from blockd.api.cluster_types import LostRange, LostStripe, LostStripes
from blockd.cli.exits import DAMAGED, FAILED
from blockd.cli.options import ControlOption, JsonOption, UsageError, connect
from blockd.cli.output import ID_DIGITS, counted, print_fields, print_json, print_table
from blockd.sizes import format_size

TIMEOUT_S = 3600.0  # every node is asked for all of its shards, and lost stripes are read
STRIPE_COLUMNS = ("PACK", "SIZE", "STATE", "CHUNKS LOST HERE", "NEEDED BY")
RANGE_COLUMNS = ("VOLUME", "OFFSET", "LENGTH", "PACK")

app = typer.Typer(no_args_is_help=True, help="Stripes that are lost, or whose rows are.")


@app.command()
def lost(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show stripes with fewer shards left than it takes, and what volumes here need of them.

    Reads what can be read of them. Each node knows its own volumes: ask every node that needs one.
    Exit code 7 when there is any.
    """
    with connect(control, TIMEOUT_S) as client:
        found = client.lost_stripes()
    _print(found, as_json=as_json)
    if found.stripes:
        raise typer.Exit(DAMAGED)


@app.command("give-up")
def give_up(
    packs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PACK]...", help="Ids, or beginnings of them, as `lost` has them."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All stripes that are lost.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do it. Without it, what would be is only shown.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait no more for the shards of lost stripes: what cannot be read of them is an I/O error.

    Never zeros. Logs that were kept for them go on; pages of 4 KiB that were not written as a whole
    since are lost. The loss is shown by `blockd cluster status` until it is overwritten, trimmed or
    deleted. A stripe that may come back, since a node is away, is not given up.
    """
    if bool(packs) == everything:
        raise UsageError("name packs, or --all")
    with connect(control, TIMEOUT_S) as client:
        found = client.give_up_stripes(None if everything else packs, dry_run=not force)
    _print(found, as_json=as_json)
    if not found.stripes:
        return
    if not force:
        raise UsageError("nothing was given up: say --force if these shards do not come back")
    if not as_json:
        print(f"gave up {counted(len(found.stripes), 'stripe')}")


@app.command("rebuild-rows")
def rebuild_rows(
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Although nodes are away: their shards count as gone, and are computed anew.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be made.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make rows of stripes that etcd has lost again, from what the shards of all nodes say.

    A row that is there is never changed. Exit code 1 when there are too few shards for some.
    """
    with connect(control, TIMEOUT_S) as client:
        done = client.rebuild_stripe_rows(force=force, dry_run=dry_run)
    if as_json:
        print_json(asdict(done))
    else:
        fields = [
            ("would make" if dry_run else "made", counted(done.made, "row")),
            ("kept", f"{counted(done.kept, 'row')}, as they are"),
        ]
        if done.unused:
            fields.append(("not needed", counted(done.unused, "stripe")))
        if done.damaged:
            fields.append(("damaged", f"{counted(done.damaged, 'file')} of shards"))
        if done.too_few_count:
            fields.append(("too few shards", counted(done.too_few_count, "stripe")))
        fields += [("pack", pack) for pack in done.too_few]
        print_fields([*fields, *(("away", node) for node in done.away)])
    if done.too_few_count:
        raise typer.Exit(FAILED)


def _print(found: LostStripes, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    if not found.stripes:
        print("no stripe is lost")
        return
    print_table(STRIPE_COLUMNS, map(_stripe_row, found.stripes), right=("SIZE", "CHUNKS LOST HERE"))
    if found.ranges:
        print()
        print_table(RANGE_COLUMNS, map(_range_row, found.ranges), right=("OFFSET", "LENGTH"))
    if found.more:
        print("... and more ranges")


def _stripe_row(each: LostStripe) -> tuple[str, ...]:
    state = f"{each.state}, given up" if each.given_up else each.state
    needed = ", ".join(each.users) or "-"
    return each.pack[:ID_DIGITS], format_size(each.bytes), state, str(each.chunks), needed


def _range_row(each: LostRange) -> tuple[str, ...]:
    return each.name, str(each.offset), format_size(each.length), each.pack[:ID_DIGITS]
