"""`blockd cluster devices` and `blockd cluster device ...`: disks that shards of packs are on."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from blockd.api.cluster_types import DeviceInfo, DeviceList
from blockd.cli.exits import FAILED
from blockd.cli.options import ControlOption, JsonOption, connect
from blockd.cli.output import print_fields, print_json, print_table
from blockd.cli.progress import following
from blockd.sizes import format_size

COLUMNS = ("DEVICE", "NODE", "PLACE", "WEIGHT", "STATE", "SHARDS", "BYTES", "LEAVING")
POLL_S = 1.0
DEVICE_DIGITS = 12

app = typer.Typer(no_args_is_help=True, help="What a device of the cluster is used for.")

DeviceArgument = Annotated[
    str,
    typer.Argument(metavar="DEVICE", help="Its id, or the beginning of it; or its node's name."),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Until what has to move has moved, with a bar.")
]


def devices(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show the devices of the cluster: where they stand, what they are used for, what is on them.

    Exit code 1 when a stripe has too few good shards, or something is in the way of moves.
    """
    with connect(control) as client:
        found = client.cluster_devices()
    _print(found, as_json=as_json)
    if found.problem or found.unreadable:
        raise typer.Exit(FAILED)


@app.command()
def drain(
    device: DeviceArgument,
    wait: WaitOption = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have all shards of a device moved away; it is read from until they are, and then is out."""
    _act("drain", device, control, as_json=as_json, wait=wait)


@app.command("return")
def give_back(
    device: DeviceArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Use a device again that was drained, or that is being drained."""
    _act("return", device, control, as_json=as_json)


@app.command()
def fail(
    device: DeviceArgument,
    wait: WaitOption = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count all that a device has as lost: it is computed again elsewhere.

    For a disk that is gone or makes errors. The device never comes back under this id.
    """
    _act("fail", device, control, as_json=as_json, wait=wait)


@app.command()
def remove(
    device: DeviceArgument, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Forget a device that is out, or one that has failed and has been made good for."""
    _act("remove", device, control, as_json=as_json)


@app.command()
def replace(
    device: DeviceArgument,
    other: Annotated[
        str, typer.Argument(metavar="NEW", help="The device that takes its place, likewise.")
    ],
    wait: WaitOption = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a new, empty device get what an old one has, and nothing else move."""
    _act("replace", device, control, other=other, as_json=as_json, wait=wait)


def _act(
    action: str,
    device: str,
    control: Path | None,
    *,
    other: str | None = None,
    as_json: bool,
    wait: bool = False,
) -> None:
    with connect(control) as client:
        found = client.change_device(action, device, other)
        if wait:
            found = _wait(client.cluster_devices, device)
    _print(found, as_json=as_json)


def _wait(look: Callable[[], DeviceList], device: str) -> DeviceList:
    """Until nothing is left of it on the device."""
    left = most = 0

    def until_gone() -> DeviceList:
        nonlocal left, most
        while True:
            found = look()
            there = [each for each in found.devices if _is(each, device)]
            left = sum(each.shard_bytes for each in there)
            most = max(left, most)
            if not left and all(each.state != "draining" for each in there):
                return found
            time.sleep(POLL_S)

    def progress() -> tuple[str, float]:
        return f"{format_size(left)} left", 1.0 - left / most if most else 0.0

    return following(f"device {device}", until_gone, progress)


def _is(each: DeviceInfo, text: str) -> bool:
    return each.device.startswith(text) or each.node == text


def _print(found: DeviceList, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(found))
        return
    moving = f"{found.moves} shards, {format_size(found.move_bytes)}" if found.moves else "nothing"
    fields = [("map", str(found.epoch)), ("stripes", str(found.stripes)), ("to move", moving)]
    if found.unreadable:
        fields.append(("unreadable", f"{found.unreadable} stripes have too few good shards"))
    if found.problem:
        fields.append(("problem", found.problem))
    print_fields([*fields, *(("in the way", text) for text in found.problems)])
    print()
    print_table(COLUMNS, map(_row, found.devices), right=("WEIGHT", "SHARDS", "BYTES", "LEAVING"))


def _row(each: DeviceInfo) -> tuple[str, ...]:
    leaving = f"{each.leaving} ({format_size(each.leaving_bytes)})" if each.leaving else "-"
    return (
        *(each.device[:DEVICE_DIGITS], each.node, f"{each.site}/{each.rack}/{each.host}"),
        *(format_size(each.weight), each.state, str(each.shards), format_size(each.shard_bytes)),
        leaving,
    )
