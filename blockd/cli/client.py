"""`blockd client ...`: NBD connections and iSCSI sessions in one list, and how to end them."""

from dataclasses import asdict
from typing import Annotated

import typer

from blockd.api.client import Client
from blockd.api.iscsi_types import SessionInfo
from blockd.api.types import ConnectionInfo, Disconnected
from blockd.cli.options import (
    COMPLETION_TIMEOUT_S,
    ControlOption,
    JsonOption,
    UsageError,
    complete_volume,
    connect,
)
from blockd.cli.output import print_json, print_table
from blockd.cli.times import duration
from blockd.sizes import format_size

app = typer.Typer(
    no_args_is_help=True,
    short_help="Show and disconnect clients.",
    help="Show who has volumes open over NBD and iSCSI, and disconnect them.",
)


def complete_client(context: typer.Context, incomplete: str) -> list[str]:
    """Ids of clients for the shell; none when the daemon does not answer."""
    try:
        with connect(context.params.get("control"), COMPLETION_TIMEOUT_S) as client:
            ids = [each.id for each in client.connections()]
            ids += [each.id for each in client.sessions()]
    except Exception:  # a completion that fails must not print
        return []
    return [each for each in ids if each.startswith(incomplete)]


VolumeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Clients of that volume and its versions; NAME@VERSION: of one version.",
        autocompletion=complete_volume,
    ),
]


@app.command("list")
def list_clients(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show who is connected: NBD connections, then iSCSI sessions, in order of arrival."""
    with connect(control) as client:
        connections, sessions = client.connections(), client.sessions()
    if as_json:
        print_json(
            {
                "connections": [asdict(each) for each in connections],
                "sessions": [asdict(each) for each in sessions],
            }
        )
        return
    columns = (
        *("ID", "VOLUME", "ADDRESS", "NAME", "AGE"),
        *("IN FLIGHT", "REQUESTS", "READ", "WRITTEN", "ERRORS"),
    )
    rows = [*map(_connection, connections), *map(_session, sessions)]
    print_table(columns, rows, right=columns[4:])


@app.command()
def disconnect(
    client_id: Annotated[
        str | None,
        typer.Argument(
            metavar="ID",
            help="Of a connection or session, as `blockd client list` shows it.",
            autocompletion=complete_client,
            show_default=False,
        ),
    ] = None,
    volume: VolumeOption = None,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a client's connection, or those of all clients of a volume.

    What is in flight is finished and answered first; whoever takes longer than 10 s for that is
    cut. iSCSI initiators are asked to log out. Most clients connect again by themselves.
    """
    if (client_id is None) == (volume is None):
        raise UsageError("give either the ID of a client or --volume NAME")
    with connect(control) as client:
        done = _disconnect(client, client_id, volume)
    if as_json:
        print_json(done)
        return
    for each in done.ids:
        print(f"client {each} is " + ("cut" if each in done.cut else "disconnected"))
    if not done.ids:
        print(f"volume {volume} has no clients")


def _disconnect(client: Client, client_id: str | None, volume: str | None) -> Disconnected:
    if client_id is not None:
        return client.disconnect(client_id)
    assert volume is not None
    return client.disconnect_all(volume)


def _connection(each: ConnectionInfo) -> tuple[str, ...]:
    return (
        each.id,
        each.export or "(negotiating)",
        each.peer,
        ",".join(each.names) or ("tls" if each.tls else "-"),
        duration(each.age_s),
        str(each.in_flight),
        str(each.request_count),
        format_size(each.read_bytes),
        format_size(each.write_bytes),
        str(each.error_count),
    )


def _session(each: SessionInfo) -> tuple[str, ...]:
    return (
        each.id,
        "(discovery)" if each.target is None else ",".join(each.volumes) or "-",
        each.peer,
        each.initiator,
        duration(each.age_s),
        str(each.commands),
        str(each.read_count + each.write_count),
        format_size(each.read_bytes),
        format_size(each.write_bytes),
        str(each.error_count),
    )
