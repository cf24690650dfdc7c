"""`blockd gc ...`: what happens to chunks that no version needs any more."""

from typing import TYPE_CHECKING, Annotated

import typer

from blockd.cli.exits import DAMAGED
from blockd.cli.options import ControlOption, JsonOption, connect
from blockd.cli.output import print_fields, print_json
from blockd.cli.progress import following
from blockd.cli.times import age
from blockd.sizes import format_size

if TYPE_CHECKING:
    from volume.gc import GcReport, GcStatus

app = typer.Typer(
    no_args_is_help=True,
    short_help="Free what no version needs any more; runs by itself.",
    help="Free what no version needs any more. Runs by itself, at a pace that clients do not "
    "notice; these commands are for the curious and the impatient.",
)


@app.command()
def status(control: ControlOption = None, as_json: JsonOption = False) -> None:
    """Show what gc is doing, what it did last, and when it runs again."""
    with connect(control) as client:
        found = client.gc_status()
    if as_json:
        print_json(found)
    else:
        print_fields(_status_fields(found))


@app.command()
def run(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what a run would do now.")
    ] = False,
    control: ControlOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run gc now, to its end.

    What died only lately is condemned first, and goes with a later run: it may be written again.
    """
    with connect(control) as client, connect(control) as watcher:

        def progress() -> tuple[str, float]:
            now = watcher.gc_status()
            return (now.phase, now.progress) if now.running else ("waiting", 0.0)

        report = following(
            "looking" if dry_run else "collecting",
            lambda: client.collect(dry_run=dry_run),
            None if dry_run else progress,
        )
    if as_json:
        print_json(report)
    else:
        print_fields(_report_fields(report))
    if report.error is not None:
        raise typer.Exit(DAMAGED)


def _status_fields(found: "GcStatus") -> list[tuple[str, str]]:
    state = f"{found.phase}, {found.progress:.0%}" if found.running else "idle"
    fields = [("state", state), ("next run", _next_run(found))]
    if found.last is None or found.ended_s is None:
        return [*fields, ("last run", "none since the start")]
    ended = age(0, int(found.ended_s * 1e9))
    return [*fields, ("last run", f"{ended} ago"), *_report_fields(found.last)]


def _next_run(found: "GcStatus") -> str:
    if found.running:
        return "goes on now"
    if found.next_run_s is None:
        return "when something was deleted or overwritten"
    return "now" if found.next_run_s < 1 else f"in {found.next_run_s:.0f} s"


def _report_fields(report: "GcReport") -> list[tuple[str, str]]:
    removed = f"{_count(report.chunks_removed, 'chunk')}, {_count(report.packs_removed, 'pack')}"
    copied = f"{format_size(report.copied_bytes)} out of {_count(report.packs_copied, 'pack')}"
    condemned = f"{_count(report.condemned_chunks, 'chunk')}, {format_size(report.condemned_bytes)}"
    needed = f"{_count(report.chunks_live, 'chunk')}, by {_count(report.roots, 'version')}"
    fields = [
        ("would remove" if report.dry else "removed", removed),
        ("would copy" if report.dry else "copied", copied),
        ("condemned", f"{condemned}, for a later run"),
        ("needed", needed),
    ]
    if report.history_dropped:
        count = _count(report.history_dropped, "version")
        dropped = f"{count} without a name, for lack of room"
        fields.append(("forgotten", dropped))
    before, after = format_size(report.bytes_before), format_size(report.bytes_after)
    if not report.dry:
        fields.append(("packs", f"{before} -> {after}, in {report.duration_s:.1f} s"))
    fields += [("attention", each) for each in _attention(report)]
    return fields


def _attention(report: "GcReport") -> list[str]:
    found = []
    if report.error is not None:
        found.append(f"ended early, having removed nothing that is needed: {report.error}")
    if report.packs_damaged:
        packs = _count(report.packs_damaged, "damaged pack")
        found.append(f"{packs} left alone; see blockd scrub")
    if report.out_of_space:
        found.append("there was no room to copy what is needed out of half-empty packs")
    if report.stopped:
        found.append("was stopped; the rest is for the next run")
    return found


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
