"""`blockd scrub`: does everything that is stored still read as it was written?"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

import typer

from blockd.api.client import Client
from blockd.api.types import DamageInfo, DamageLocations, ScrubInfo
from blockd.cli.exits import DAMAGED
from blockd.cli.options import ControlOption, JsonOption, connect
from blockd.cli.output import ID_DIGITS, print_fields, print_json, print_table
from blockd.cli.progress import POLL_S, bar
from blockd.cli.times import age, now_ns, seconds_time
from blockd.sizes import exact_size, format_size

MAX_SHOWN = 40  # rows of each table; --json has all

app = typer.Typer(short_help="Check everything that is stored; runs by itself.")


@app.callback(invoke_without_command=True)
def scrub(
    context: typer.Context, control: ControlOption = None, as_json: JsonOption = False
) -> None:
    """Read everything that is stored, and check it now; exit code 7 when something is damaged.

    Runs by itself as well, all of it every 14 days, at a pace that clients do not notice.
    Without a command it waits for the end, with a progress bar; Ctrl-C leaves the daemon at work.
    """
    if context.invoked_subcommand is not None:
        return
    with connect(control) as client:
        started = client.start_scrub()
        try:
            found = _followed(client, started)
        except KeyboardInterrupt:
            print("the scrub goes on; see blockd scrub status, or stop", file=sys.stderr)
            raise
        _report(client, found, as_json)


@app.command()
def start(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Begin to check everything, and do not wait for the end."""
    with connect(control) as client:
        found = client.start_scrub()
    if as_json:
        print_json(found)
    else:
        print(f"scrub reads {format_size(found.total_bytes)}; see blockd scrub status")


@app.command()
def status(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show how far scrub is, and what is damaged; exit code 7 when something is."""
    with connect(control) as client:
        _report(client, client.scrub_status(), as_json)


@app.command()
def stop(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Let a scrub that was started go on in the background, at its usual pace."""
    with connect(control) as client:
        found = client.stop_scrub()
    if as_json:
        print_json(found)
    else:
        print("scrub is in no hurry any more")


def _followed(client: Client, started: ScrubInfo) -> ScrubInfo:
    """The status when the pass `started` has ended, or goes on without hurry."""
    found = started
    if not sys.stderr.isatty():
        while _hurries(found, started):
            time.sleep(POLL_S)
            found = client.scrub_status()
        return found
    with bar() as shown:
        while _hurries(found, started):
            shown(f"scrub, {format_size(found.total_bytes)}", found.progress)
            time.sleep(POLL_S)
            found = client.scrub_status()
    return found


def _hurries(found: ScrubInfo, started: ScrubInfo) -> bool:
    return found.running and found.requested and found.started_ns == started.started_ns


def _report(client: Client, found: ScrubInfo, as_json: bool) -> None:
    hit = client.damage_locations() if found.damage_count else DamageLocations((), False)
    if as_json:
        print_json({**asdict(found), "hit": asdict(hit)})
    else:
        print_fields(_fields(found))
        _print_damage(found)
        _print_hit(hit)
    if found.damage_count:
        raise typer.Exit(DAMAGED)


def _fields(found: ScrubInfo) -> list[tuple[str, str]]:
    now = now_ns()
    fields = [("state", _state(found))]
    if found.finished_ns is None:
        fields.append(("last pass", "none yet"))
    else:
        ended = f"{seconds_time(found.finished_ns)} ({age(found.finished_ns, now)} ago)"
        fields.append(("last pass", ended))
    if found.next_ns is not None:
        fields.append(
            ("next pass", f"{seconds_time(found.next_ns)} (in {age(now, found.next_ns)})")
        )
    fields.append(("damage", str(found.damage_count) if found.damage_count else "none known"))
    return fields


def _state(found: ScrubInfo) -> str:
    if not found.running:
        return "idle"
    how = "" if found.requested else ", without hurry"
    read = f"{format_size(found.scanned_bytes)} of {format_size(found.total_bytes)}"
    return f"reading{how}: {read}, {found.progress:.0%}"


def _print_damage(found: ScrubInfo) -> None:
    if not found.damages:
        return
    print()
    shown = found.damages[:MAX_SHOWN]
    print_table(
        ("PACK", "OFFSET", "CHUNK", "DAMAGE"),
        (
            (
                f"{damage.pack:08x}",
                str(damage.offset),
                damage.chunk[:ID_DIGITS] if damage.chunk is not None else "(the pack)",
                _reason(damage),
            )
            for damage in shown
        ),
        right=("OFFSET",),
    )
    _print_more(found.damage_count, shown)


def _reason(damage: DamageInfo) -> str:
    """What is wrong, without what the other columns say."""
    where = f"chunk {damage.chunk} at offset {damage.offset} of pack {damage.pack:08x}: "
    return damage.what.removeprefix(where)


def _print_hit(hit: DamageLocations) -> None:
    if not hit.locations:
        return
    print()
    shown = hit.locations[:MAX_SHOWN]
    print_table(
        ("HIT", "OFFSET", "LENGTH", "CHUNK"),
        (
            (
                location.name,
                "(its commit)" if location.offset is None else exact_size(location.offset),
                exact_size(location.length),
                location.chunk[:ID_DIGITS],
            )
            for location in shown
        ),
        right=("OFFSET", "LENGTH"),
    )
    _print_more(len(hit.locations), shown, "more than " if hit.more else "")


def _print_more(count: int, shown: Sequence[object], about: str = "") -> None:
    if count > len(shown):
        print(f"... and {about}{count - len(shown)} more (--json shows them)")
