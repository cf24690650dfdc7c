"""`blockd volume limit`: how much the clients of a volume get per second."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from blockd.api.limit_types import RATES, LimitsStatus, VolumeLimits
from blockd.cli.options import (
    ControlOption,
    JsonOption,
    UsageError,
    complete_volume,
    connect,
    size_argument,
)
from blockd.cli.output import print_fields, print_json
from blockd.sizes import format_size


def _rate(text: str) -> Any:
    return typer.Option(metavar="N", help=text, show_default=False)


def _bandwidth(text: str) -> Any:
    return typer.Option(metavar="SIZE", help=text, show_default=False)


def limit(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The volume.", autocompletion=complete_volume)
    ],
    iops: Annotated[int | None, _rate("Reads and writes a second; 0: no limit.")] = None,
    bandwidth: Annotated[str | None, _bandwidth("Bytes a second, as 100MiB; 0: no limit.")] = None,
    read_iops: Annotated[int | None, _rate("Reads a second.")] = None,
    write_iops: Annotated[int | None, _rate("Writes a second.")] = None,
    read_bandwidth: Annotated[str | None, _bandwidth("Bytes read a second.")] = None,
    write_bandwidth: Annotated[str | None, _bandwidth("Bytes written a second.")] = None,
    burst_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="After a pause, as much as is due in this time may come at once, 0.01 to 3600. "
            "[0.1]",
            show_default=False,
        ),
    ] = None,
    none: Annotated[bool, typer.Option("--none", help="Take all limits away.")] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Limit what all clients of a volume get together, from now on; show it without options.

    What is not named stays as it is. Requests beyond a limit wait, they are never failed.
    """
    rates: dict[str, int | float | None] = {
        "iops": iops,
        "read_iops": read_iops,
        "write_iops": write_iops,
        "bandwidth": _size(bandwidth),
        "read_bandwidth": _size(read_bandwidth),
        "write_bandwidth": _size(write_bandwidth),
        "burst_s": burst_seconds,
    }
    given: dict[str, Any] = {key: value for key, value in rates.items() if value is not None}
    if none and given:
        raise UsageError("--none takes all limits away: it goes with no other limit")
    with connect(control) as client:
        if none:
            status = client.set_limits(name, VolumeLimits())
        elif given:
            status = client.set_limits(name, _changed(client.limits(name).limits, given))
        else:
            status = client.limits(name)
    if as_json:
        print_json(status)
    else:
        print_fields(limit_fields(status))


def limit_fields(status: LimitsStatus) -> list[tuple[str, str]]:
    """For people."""
    shown = [("limits", describe(status))]
    if status.held_requests or status.waiting:
        held = f"{status.held_requests} requests, {status.held_s:.1f} s in all"
        shown.append(("held back", f"{held}; {status.waiting} wait now"))
    return shown


def describe(status: LimitsStatus) -> str:
    """On one line."""
    limits = status.limits
    if status.problem is not None:
        return f"unreadable, so none; set them again ({status.problem})"
    if not limits.any:
        return "none"
    parts = []
    for name in RATES:
        rate = getattr(limits, name)
        if rate:
            many = f"{format_size(rate)}/s" if name.endswith("bandwidth") else f"{rate}/s"
            parts.append(f"{name.replace('_', ' ')} {many}")
    return ", ".join([*parts, f"burst {limits.burst_s:g} s"])


def _changed(limits: VolumeLimits, given: dict[str, Any]) -> VolumeLimits:
    try:
        return replace(limits, **given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _size(text: str | None) -> int | None:
    return None if text is None else size_argument(text)
