"""Options that several commands share, and how the CLI finds the daemon."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockd.places import CONTROL_NAME, DEFAULT_DATA
from blockd.sizes import parse_size

if TYPE_CHECKING:
    from blockd.api.client import Client

ENVIRONMENT = "BLOCKD_CONTROL"
SERVICE_CONTROL = Path("/run/blockd/control.sock")  # of packaging/systemd, and of the container
SERVICE_DATA = Path("/var/lib/blockd")  # where packaging/systemd keeps its data directory
COMPLETION_TIMEOUT_S = 1.0  # a shell that waits longer for a Tab feels broken

ControlOption = Annotated[
    Path | None,
    typer.Option(
        "--control",
        metavar="PATH",
        help=f"Control socket of the daemon. [default: ${ENVIRONMENT}, "
        f"{DEFAULT_DATA}/{CONTROL_NAME}, {SERVICE_CONTROL}, {SERVICE_DATA}/{CONTROL_NAME}]",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, errors as well.")]


class UsageError(Exception):
    """The command line makes no sense; the message says what does."""

    code = "usage"


def candidates(environ: Mapping[str, str]) -> list[Path]:
    """Where a daemon's control socket may be when nobody says, best first."""
    if given := environ.get(ENVIRONMENT):
        return [Path(given)]
    return [DEFAULT_DATA / CONTROL_NAME, SERVICE_CONTROL, SERVICE_DATA / CONTROL_NAME]


def connect(control: Path | None, timeout_s: float | None = None) -> "Client":
    """A client of the daemon at `control`, or where one is found. Raises NoDaemon."""
    from blockd.api.client import Client, NoDaemon

    places = [control] if control else candidates(os.environ)
    for place in places:
        if len(places) == 1 or os.path.lexists(place):
            return Client(place, timeout_s) if timeout_s else Client(place)
    tried = ", ".join(map(str, places))
    raise NoDaemon(
        f"no daemon runs: there is no control socket at {tried}; start one with `blockd serve`, "
        f"or name its socket with --control or {ENVIRONMENT}"
    )


def size_argument(text: str) -> int:
    """Bytes. Raises UsageError."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise UsageError(str(error)) from error


def complete_volume(context: typer.Context, incomplete: str) -> list[str]:
    """Names of volumes for the shell; none when the daemon does not answer."""
    try:
        with connect(context.params.get("control"), COMPLETION_TIMEOUT_S) as client:
            names = [volume.name for volume in client.volumes()]
    except Exception:  # a completion that fails must not print
        return []
    return [name for name in names if name.startswith(incomplete)]
