"""`blockd status`."""

from dataclasses import asdict

import typer

from blockd.api.types import ConnectionInfo, NodeStatus
from blockd.cli.exits import NO_WRITES
from blockd.cli.options import ControlOption, JsonOption, connect
from blockd.cli.output import counted, print_fields, print_json, print_table
from blockd.cli.target_options import print_sessions
from blockd.cli.times import duration
from blockd.sizes import format_size


def status(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show the daemon, its data directory and who is connected; exit code 6 when it is sealed."""
    with connect(control) as client:
        node = client.status()
        connections = client.connections()
        sessions = client.sessions()
    if as_json:
        clients = {
            "connections": [asdict(each) for each in connections],
            "sessions": [asdict(each) for each in sessions],
        }
        print_json({**asdict(node), **clients})
    else:
        print_fields(_fields(node))
        if connections:
            print()
            _print_connections(connections)
        if sessions:
            print()
            print_sessions(sessions)
    if node.store.state == "sealed":
        raise typer.Exit(NO_WRITES)


def _fields(node: NodeStatus) -> list[tuple[str, str]]:
    store = node.store
    state = store.state if store.reason is None else f"{store.state}: {store.reason}"
    held_up = store.destage_held_up
    sessions = counted(node.session_count, "iscsi session")
    return [
        ("state", state),
        *([] if held_up is None else [("destaging", f"held up: {held_up}")]),
        ("version", f"{node.version}, process {node.pid}, up {duration(node.uptime_s)}"),
        ("nbd", ", ".join(node.nbd) + f" (tls {node.tls})"),
        ("iscsi", _iscsi(node)),
        ("control", node.control),
        ("data", f"{store.path} ({store.uuid})"),
        ("volumes", str(store.volume_count)),
        ("connections", f"{node.connection_count} nbd, {sessions}"),
        ("space left", _of(store.space_left_bytes, store.disk_total_bytes)),
        ("disk free", _of(store.disk_free_bytes, store.disk_total_bytes)),
        ("journal", _of(store.journal_bytes, store.journal_limit)),
        (
            "not destaged",
            f"{format_size(store.hot_bytes)}, oldest {duration(store.oldest_hot_age_s)}",
        ),
        ("packs", f"{store.pack_count}, {format_size(store.pack_bytes)}"),
        ("cache", _of(store.cache_bytes, store.cache_limit)),
    ]


def _iscsi(node: NodeStatus) -> str:
    if not node.iscsi:
        return "off"
    shown = "every volume" if node.auto_targets else "created targets only"
    return f"{', '.join(node.iscsi)} ({shown})"


def _print_connections(connections: list[ConnectionInfo]) -> None:
    columns = ("CLIENT", "EXPORT", "TLS", "AGE", "IN FLIGHT", "READ", "WRITTEN", "ERRORS")
    print_table(
        columns,
        (
            (
                " ".join((connection.peer, *connection.names)),
                connection.export or "(negotiating)",
                "yes" if connection.tls else "no",
                duration(connection.age_s),
                str(connection.in_flight),
                format_size(connection.read_bytes),
                format_size(connection.write_bytes),
                str(connection.error_count),
            )
            for connection in connections
        ),
        right=columns[3:],
    )


def _of(part: int, whole: int) -> str:
    return f"{format_size(part)} of {format_size(whole)}"
