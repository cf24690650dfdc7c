"""`blockd target ...`: create, list, show, change, delete, sessions. Units, access lists and CHAP
are in `blockd.cli.target_luns` and `blockd.cli.target_access`.

A target is called by its iSCSI name, or by what follows our own prefix in it: `db` is
`iqn.2026-11.io.blockd:db`.
"""

import socket
from dataclasses import asdict
from typing import Annotated

import typer

from blockd import attach, iscsi_attach
from blockd.api.iscsi_types import LunInfo, TargetInfo
from blockd.cli import target_access, target_luns
from blockd.cli.completion import complete_version
from blockd.cli.options import ControlOption, JsonOption, connect
from blockd.cli.output import counted, print_fields, print_json, print_table
from blockd.cli.target_options import NameArgument, full_name, print_sessions
from blockd.sizes import format_size

app = typer.Typer(
    no_args_is_help=True,
    short_help="iSCSI targets: what initiators log in to, and who may.",
    help="iSCSI targets with units, access lists and CHAP of their own. Without any, every volume "
    "is a target by itself, while only this machine can reach the portals.",
)
app.add_typer(target_luns.app, name="lun")
app.add_typer(target_access.acl, name="acl")
app.add_typer(target_access.chap, name="chap")

COLUMNS = ("TARGET", "LUNS", "UNITS", "ACCESS", "SESSIONS")
MAX_SHOWN_UNITS = 4  # in a line of the list

RedirectOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Send initiators there. '' for nowhere."),
]
AliasOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="What people read beside the name.")
]


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="An iSCSI name, or what follows our prefix.")
    ],
    lun: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VOL[@VERSION]",
            help="Its units, from LUN 0 on; versions are read-only. May be repeated.",
            autocompletion=complete_version,
        ),
    ] = None,
    alias: AliasOption = None,
    redirect: RedirectOption = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Create a target. Who may log in is set with `acl` and `chap`."""
    with connect(control) as client:
        made = client.create_target(
            full_name(name), alias=alias or "", redirect=redirect or None, luns=lun or ()
        )
    _report(made, f"created target {made.name}, {counted(len(made.luns), 'LUN')}", as_json)


@app.command("list")
def list_targets(
    all_targets: Annotated[
        bool, typer.Option("--all", help="Those that volumes have by themselves, too.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the targets that were created."""
    with connect(control) as client:
        found = client.targets(automatic=all_targets)
    if as_json:
        print_json(found)
        return
    print_table(
        COLUMNS,
        (
            (
                target.name,
                str(len(target.luns)),
                _units(target.luns),
                _access(target),
                str(target.session_count),
            )
            for target in found
        ),
        right=("LUNS", "SESSIONS"),
    )


@app.command()
def show(name: NameArgument, control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show one target, its units, and the commands that attach it."""
    with connect(control) as client:
        target = client.target(full_name(name))
        if as_json:
            print_json(target)
            return
        portals = client.status().iscsi
    print_fields(_fields(target))
    if target.luns:
        print()
        target_luns.print_luns(target.luns)
    for address in portals[: 1 if target.luns else 0]:
        reachable = attach.reachable(address, socket.gethostname())
        chap = bool(target.chap_users)
        print()
        lun = target.luns[0].lun
        for command in iscsi_attach.commands(reachable, target.name, lun, chap=chap):
            print(command)


@app.command()
def change(
    name: NameArgument,
    alias: AliasOption = None,
    redirect: RedirectOption = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give a target another alias, or send its initiators elsewhere."""
    with connect(control) as client:
        target = client.change_target(full_name(name), alias=alias, redirect=redirect)
    _report(target, f"changed target {target.name}", as_json)


@app.command()
def delete(
    name: NameArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Even while initiators are logged in: end them.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a target. Its volumes stay."""
    whole = full_name(name)
    with connect(control) as client:
        client.delete_target(whole, force=force)
    if as_json:
        print_json({"deleted": whole})
    else:
        print(f"deleted target {whole}")


@app.command()
def sessions(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """List the initiators that are logged in."""
    with connect(control) as client:
        found = client.sessions()
    if as_json:
        print_json(found)
        return
    print_sessions(found)


def _report(target: TargetInfo, text: str, as_json: bool) -> None:
    if as_json:
        print_json(asdict(target))
    else:
        print(text)


def _units(luns: tuple[LunInfo, ...]) -> str:
    shown = [each.source if each.present else "(gone)" for each in luns[:MAX_SHOWN_UNITS]]
    return ", ".join(shown) + (", ..." if len(luns) > MAX_SHOWN_UNITS else "")


def _access(target: TargetInfo) -> str:
    """In a word each: what an initiator has to be, come from, and know."""
    parts = []
    if target.initiators:
        parts.append(counted(len(target.initiators), "initiator"))
    if target.addresses:
        parts.append(counted(len(target.addresses), "network"))
    if target.chap_users:
        parts.append("mutual CHAP" if target.mutual_user else "CHAP")
    return ", ".join(parts) or "all"


def _fields(target: TargetInfo) -> list[tuple[str, str]]:
    size = sum(lun.size for lun in target.luns)
    return [
        ("target", target.name),
        ("alias", target.alias or "none"),
        ("there", "by itself, for the volume" if target.automatic else "since it was created"),
        ("redirect", target.redirect or "none"),
        ("initiators", ", ".join(target.initiators) or "all"),
        ("addresses", ", ".join(target.addresses) or "all"),
        ("chap", ", ".join(target.chap_users) or "not asked for"),
        ("mutual chap", target.mutual_user or "none"),
        ("sessions", str(target.session_count)),
        ("luns", f"{len(target.luns)}, {format_size(size)}"),
    ]
