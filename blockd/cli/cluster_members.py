"""`blockd cluster drain` and `blockd volume replace-member`: other members of volumes."""

import sys
import time
from dataclasses import asdict
from typing import Annotated

import typer

from blockd.api.client import Client
from blockd.api.cluster_types import Draining
from blockd.cli.options import ControlOption, JsonOption, complete_volume, connect
from blockd.cli.output import print_json
from blockd.cli.progress import following

POLL_S = 1.0
STUCK_POLLS = 10  # without a node that comes, until a person is told what it waits for


def drain(
    name: Annotated[str, typer.Argument(metavar="NODE", help="Name or id of the node.")],
    undo: Annotated[
        bool, typer.Option("--undo", help="Let it be a member of volumes again.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Wait until no volume has it; shows how far it is."),
    ] = True,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have other nodes take a node's place in all volumes; then it can be removed.

    Volumes go on being served and written to. Those that the node serves are handed over, as by
    `blockd volume move`. It goes on without this command: Ctrl-C ends only the waiting.
    """
    with connect(control) as client:
        if undo:
            left = client.undrain_node(name)
        else:
            left = client.drain_node(name)
            if wait:
                left = _waited(client, name, left)
    if as_json:
        print_json(asdict(left))
    elif undo:
        print(f"node {left.node} may be a member of volumes again")
    elif left.member_of or left.letting_go:
        count = len(left.member_of)
        print(f"node {left.node} is being drained: {count} volumes have it as a member still")
    else:
        print(f"node {left.node} is a member of no volume; blockd cluster remove {left.node}")


def _waited(client: Client, name: str, left: Draining) -> Draining:
    count = max(1, len({*left.member_of, *left.letting_go}))

    def wait() -> Draining:
        nonlocal left
        stuck = 0
        while left.draining and (left.member_of or left.letting_go):
            stuck = stuck + 1 if left.member_of and not left.under_way else 0
            if stuck == STUCK_POLLS:
                print(
                    f"no node comes to volume {left.member_of[0]} in the place of {left.node} "
                    "yet; it takes one that is connected, not drained, and no member: see "
                    "`blockd cluster show`, or have one join. Ctrl-C ends only the waiting, "
                    "--undo the drain",
                    file=sys.stderr,
                )
            time.sleep(POLL_S)
            left = client.draining(name)
        return left

    def progress() -> tuple[str, float]:
        first = next(iter((*left.under_way, *left.member_of, *left.letting_go)), "")
        waiting = len({*left.member_of, *left.letting_go})
        return f"{first} ({waiting} left)", max(0.0, 1 - waiting / count)

    return following(f"draining {name}", wait, progress)


def replace_member(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The volume.", autocompletion=complete_volume)
    ],
    old: Annotated[str, typer.Argument(metavar="OLD", help="The member that goes: name or id.")],
    new: Annotated[
        str | None,
        typer.Argument(
            metavar="[NEW]",
            help="The node that comes. [the one that has the fewest volumes]",
            show_default=False,
        ),
    ] = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have another node come in the place of a member of a volume, while it is served.

    It gets a copy first, and counts when it has all. Any node may be asked; `blockd cluster status`
    shows how it goes on.
    """
    with connect(control) as client:
        noted = client.replace_member(name, old, new)
    if as_json:
        print_json(asdict(noted))
    else:
        print(f"volume {noted.name}: node {noted.comes} comes in the place of {noted.goes}")
