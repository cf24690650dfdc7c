"""`blockd cluster ...`: make a node of a data directory, and see how nodes stand with each other.

`init` and `join` work on a data directory and its configuration, with or without a daemon; `token`
and `show` ask the daemon of a node.
"""

import importlib.metadata
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockd.api.types import ClusterInfo, PeerInfo
from blockd.cli import cluster_devices, cluster_stripe_orders
from blockd.cli.cluster_members import drain
from blockd.cli.cluster_volumes import create, status
from blockd.cli.options import ControlOption, JsonOption, UsageError, connect
from blockd.cli.output import print_fields, print_json, print_table
from blockd.cli.times import duration, seconds_time
from blockd.config import DEFAULT_PEER_PORT, ServeConfig, check, load_config
from blockd.toml_decode import ConfigError
from volume.retention import parse_duration

if TYPE_CHECKING:
    from transport.keys import Identity
    from volume.metastore import ClusterRecords

MAX_TOKEN_BYTES = 8192
STDIN = "-"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as volume.metastore_records has it

app = typer.Typer(
    no_args_is_help=True, help="The cluster that this node is in: how it got there, who else is."
)

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Data directory. [./blockd-data]")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Settings. [DIR/blockd.toml if there]"),
]


app.command()(status)
app.command()(create)
app.command()(cluster_devices.devices)
app.add_typer(cluster_devices.app, name="device")
app.add_typer(cluster_stripe_orders.app, name="stripes")
app.command()(drain)


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What this node is to be called.")],
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Begin a cluster: this data directory becomes its first node.

    [cluster] of the configuration says where etcd is, and where other nodes reach this one. After
    a crash or an error the same command goes on where it was.
    """
    from transport import join as joining
    from transport.errors import CannotJoin
    from transport.keys import new_identity, read_identity, write_identity

    settings = _settings(data, config)
    _check_name(name)
    _make_directory(settings.data)
    identity = read_identity(settings.data)
    if identity is not None and identity.name != name:
        raise CannotJoin(f"{settings.data} is node {identity.name} already")
    if identity is None:
        identity = new_identity(os.urandom(16).hex(), name)
        write_identity(settings.data, identity)
    with _records(settings) as records:
        joining.found(records, identity, settings.cluster.addresses)
    write_identity(settings.data, replace(identity, joined=True))
    _print_node(settings, identity, as_json=as_json)
    if not as_json:
        print("\nstart it:         blockd serve" + _where(data, config))
        print("add other nodes:  blockd cluster token, then there: blockd cluster join TOKEN")


@app.command()
def join(
    token: Annotated[
        str,
        typer.Argument(
            metavar="TOKEN",
            help="What `blockd cluster token` printed; - reads it from standard input, where "
            "nobody sees it in a list of processes.",
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this node. [the name of this machine]")
    ] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have this data directory become a node of the cluster that a token is of.

    Its keys are made here and stay here. After a crash or an error the same command goes on where
    it was: a token is used up only when the node is in the cluster.
    """
    from transport import join as joining
    from transport.errors import CannotJoin
    from transport.keys import identity_path, read_identity, write_identity

    settings = _settings(data, config)
    if token == STDIN:
        token = sys.stdin.buffer.read(MAX_TOKEN_BYTES).decode(errors="replace")
    shown = joining.parse_token(token)
    identity = read_identity(settings.data)
    if identity is not None and identity.cluster_id != shown.cluster.hex():
        raise CannotJoin(
            f"{settings.data} is node {identity.name} of another cluster, {identity.cluster_id}; "
            f"if it never joined that one, remove {identity_path(settings.data)}"
        )
    if identity is None or not identity.joined:
        identity = _begun(identity, shown.cluster.hex(), name)
        _make_directory(settings.data)
        write_identity(settings.data, identity)
        program = "blockd " + importlib.metadata.version("blockd")
        record = joining.join(shown, identity, settings.cluster.addresses, program)
        identity = replace(identity, name=record.name, joined=True)
        write_identity(settings.data, identity)
    _print_node(settings, identity, as_json=as_json)
    if not as_json:
        print("\nstart it:  blockd serve" + _where(data, config))


@app.command()
def token(
    ttl: Annotated[
        str, typer.Option(metavar="TIME", help="How long it can be used: 10m, 1h, 7d.")
    ] = "1h",
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a token with which one other node can join the cluster, once.

    Whoever has it may become a node, and read every volume: give it to that machine only.
    """
    ttl_s = parse_duration(ttl)
    with connect(control) as client:
        made = client.make_token(ttl_s)
    if as_json:
        print_json(made)
    else:
        print(made.token)
        until = seconds_time(made.expires_ns)
        print(f"good for one node, until {until}; there: blockd cluster join -", file=sys.stderr)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the node, as `show` has it.")],
    lost: Annotated[
        bool,
        typer.Option(
            "--lost",
            help="Also while volumes have it as a member: it never comes back, and each of them "
            "gets another node in its place.",
        ),
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a node out of the cluster: the others cut it off within seconds.

    It need not run. Refused while volumes have it as a member: `blockd cluster drain` first; and
    while it has shards, or finds chunks of its own volumes in stripes: these go without it. Its
    data directory stays as it is; to use it anew as a node, remove node.json there and join again.
    """
    with connect(control) as client:
        client.remove_node(name, lost=lost)
    if as_json:
        print_json({"removed": name})
    else:
        print(f"node {name} is removed")


@app.command()
def show(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show the nodes of the cluster, and which of them this node is connected to."""
    with connect(control) as client:
        info = client.cluster()
    if as_json:
        print_json(asdict(info))
        return
    print_fields(_fields(info))
    print()
    columns = ("NAME", "NODE", "ADDRESS", "STATE", "SINCE", "WHY")
    print_table(columns, map(_row, info.nodes), right=("SINCE",))


def _fields(info: ClusterInfo) -> list[tuple[str, str]]:
    problem = [("problem", info.problem)] if info.problem else []
    return [
        ("cluster", info.cluster),
        ("node", f"{info.name} ({info.node})"),
        ("listens", ", ".join(info.listen)),
        *problem,
        ("refused", f"{info.refused} connections"),
    ]


def _row(each: PeerInfo) -> tuple[str, ...]:
    if each.me:
        state = "this node"
    elif each.connected:
        state = "slow" if each.slow else "connected"
    else:
        state = "not connected"
    if not each.me and not each.asks_us:
        state += ", does not ask us"
    since = duration(each.since_s)
    return each.name, each.node[:8], ",".join(each.addresses), state, since, each.reason or "-"


def _settings(data: Path | None, config: Path | None) -> ServeConfig:
    settings = load_config(config, data)
    check(settings)
    if not settings.cluster.etcd:
        file = settings.file or settings.data / "blockd.toml"
        raise ConfigError(
            f"{file}: cluster: a node of a cluster needs [cluster] with etcd = "
            f'["http://host:2379"] and listen = ["192.0.2.1:{DEFAULT_PEER_PORT}"]'
        )
    return settings


def _begun(identity: "Identity | None", cluster_id: str, name: str | None) -> "Identity":
    """The node that is to join: the one that has begun to, under another name if one is given."""
    from transport.keys import new_identity

    if identity is None:
        name = name or socket.gethostname().partition(".")[0]
        _check_name(name)
        return new_identity(cluster_id, name)
    if name is not None:
        _check_name(name)
    return replace(identity, name=name or identity.name)


def _check_name(name: str) -> None:
    if _LABEL.fullmatch(name) is None:
        raise UsageError(
            f"node name {name!r}: use up to 64 letters, digits, '.', '_' and '-', beginning with a "
            "letter or digit"
        )


def _make_directory(data: Path) -> None:
    data.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextmanager
def _records(settings: ServeConfig) -> "Iterator[ClusterRecords]":
    from blockd.doctor_etcd import etcd_settings
    from transport.etcd.client import EtcdMetaStore
    from volume.metastore import ClusterRecords

    store = EtcdMetaStore(etcd_settings(settings.cluster))
    try:
        yield ClusterRecords(store, lambda: os.urandom(16).hex())
    finally:
        store.close()


def _where(data: Path | None, config: Path | None) -> str:
    """The options that name the same directory again."""
    text = f" --data {data}" if data else ""
    return text + (f" --config {config}" if config else "")


def _print_node(settings: ServeConfig, identity: "Identity", *, as_json: bool) -> None:
    node = {
        "cluster": identity.cluster_id,
        "node": identity.node_id,
        "name": identity.name,
        "addresses": list(settings.cluster.addresses),
        "data": str(settings.data),
    }
    if as_json:
        print_json(node)
        return
    print(f"{settings.data} is node {identity.name} of cluster {identity.cluster_id}")
