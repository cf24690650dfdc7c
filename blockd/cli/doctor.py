"""`blockd doctor`: checks of this machine; ways out of a sealed directory and a damaged index."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockd.cli.exits import DAMAGED, FAILED
from blockd.cli.options import ControlOption, JsonOption, UsageError, candidates
from blockd.cli.output import print_json
from blockd.cli.progress import bar

if TYPE_CHECKING:
    from blockd.doctor import Finding

SHOWN_MISSING = 20
LINE_EVERY_S = 5.0

DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Data directory. [./blockd-data]")
]


def doctor(
    data: DataOption = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configuration to check.")
    ] = None,
    control: ControlOption = None,
    unseal: Annotated[
        bool,
        typer.Option(
            "--unseal", help="Take writes again after a failed sync. Check the disk first!"
        ),
    ] = False,
    repair_index: Annotated[
        bool,
        typer.Option(
            "--repair-index",
            help="Make the index anew from the packs, then look for what is missing from them.",
        ),
    ] = False,
    rebuild_meta: Annotated[
        bool,
        typer.Option(
            "--rebuild-meta", help="Make a lost meta/ anew from packs, journal and a copy of it."
        ),
    ] = False,
    copy: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="PATH", help="--rebuild-meta: a copy that backup-meta has made."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="--rebuild-meta: only show what would be made."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check the data directory, the configuration and what clients need here."""
    if (copy or dry_run) and not rebuild_meta:
        raise UsageError("doctor: --from and --dry-run belong to --rebuild-meta")
    if rebuild_meta and (unseal or repair_index):
        raise UsageError("doctor --rebuild-meta: the index is made anew with it; give it alone")
    if rebuild_meta:
        from blockd.cli.rebuild import rebuild

        rebuild(data, copy, as_json, write=not dry_run)
        return
    if unseal:
        _unseal(data, as_json)
    if repair_index:
        _repair_index(data, as_json)
    if unseal or repair_index:
        return
    from blockd.config import ServeConfig, load_config
    from blockd.doctor import FAIL, Finding, Machine, examine
    from blockd.places import DEFAULT_DATA
    from blockd.toml_decode import ConfigError

    settings: ServeConfig | ConfigError
    try:
        settings = load_config(config, data)
        directory = settings.data
    except ConfigError as error:
        settings, directory = error, data or DEFAULT_DATA
    if control:
        places = [control]
    elif isinstance(settings, ServeConfig) and (data or config):
        places = [settings.control_socket]
    else:
        places = candidates(os.environ)
    findings: list[Finding] = [_daemon(places), *examine(settings, directory, Machine())]
    if as_json:
        print_json(findings)
    else:
        _print(findings)
    if any(finding.level == FAIL for finding in findings):
        raise typer.Exit(FAILED)


def _daemon(places: list[Path]) -> "Finding":
    from blockd.api.client import ApiError, Client, NoDaemon
    from blockd.doctor import FAIL, OK, WARN, Finding

    here = [place for place in places if os.path.lexists(place)]
    if not here:
        tried = ", ".join(str(place) for place in dict.fromkeys(places))
        return Finding("daemon", WARN, f"none runs ({tried})", "start one with `blockd serve`")
    try:
        with Client(here[0]) as client:
            node = client.status()
    except NoDaemon as error:
        return Finding("daemon", WARN, str(error), "start one with `blockd serve`")
    except (ApiError, ValueError) as error:
        return Finding("daemon", FAIL, str(error), "look into the daemon's log")
    held_up = node.store.destage_held_up
    if node.store.state == "ok" and held_up is not None:
        fix = "put the pack back from a copy, or restore or delete the volume: docs/gc-and-scrub.md"
        return Finding("daemon", FAIL, f"{here[0]}: {held_up}", fix)
    if node.store.state == "ok":
        return Finding("daemon", OK, f"{here[0]}: process {node.pid}, version {node.version}")
    fix = "make room" if node.store.state == "full" else "check the disk, then doctor --unseal"
    return Finding("daemon", FAIL, f"{here[0]}: store {node.store.state}: {node.store.reason}", fix)


def _unseal(data: Path | None, as_json: bool) -> None:
    if data is None:
        raise UsageError("doctor --unseal: name the data directory with --data DIR")
    from volume.datadir import unseal

    unseal(data)
    if as_json:
        print_json({"unsealed": str(data)})
    else:
        print(
            f"{data}: takes writes again when it is served; run a file system check in its "
            "volumes, since writes after the failed sync may be lost"
        )


def _repair_index(data: Path | None, as_json: bool) -> None:
    if data is None:
        raise UsageError("doctor --repair-index: name the data directory with --data DIR")
    from volume import sites
    from volume.repair import rebuild_index

    sites.arm_from(os.environ)
    with long_progress() as shown:
        report = rebuild_index(data, shown)
    if as_json:
        print_json(
            {
                "packs": report.packs,
                "chunks": report.chunks,
                "unreadable": report.unreadable,
                "versions": report.versions,
                "missing_count": report.missing_count,
                "missing": [
                    {
                        "name": each.name,
                        "chunk": each.chunk_id.hex(),
                        "offset": each.offset,
                        "length": each.length,
                        "what": each.what,
                    }
                    for each in report.missing
                ],
            }
        )
    else:
        print(f"{data}: {report.chunks} chunks of {report.packs} packs are in the index")
        for why in report.unreadable:
            print(f"unreadable: {why}")
        for each in report.missing[:SHOWN_MISSING]:
            where = "commit" if each.offset is None else f"offset {each.offset} +{each.length}"
            print(f"missing: {each.name} {where}: chunk {each.chunk_id.hex()}: {each.what}")
        if report.missing_count > SHOWN_MISSING:
            print(f"missing: {report.missing_count - SHOWN_MISSING} more (--json shows them)")
        if not report.missing_count:
            print(f"all {report.versions} versions are whole")
        else:
            print("reads of these fail with an I/O error; restore the packs from a copy")
    if report.unreadable or report.missing_count:
        raise typer.Exit(DAMAGED)


@contextlib.contextmanager
def long_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, plain lines every few seconds elsewhere; both on stderr."""
    if sys.stderr.isatty():
        with bar() as shown:
            yield lambda what, done, total: shown(f"{what} {done}/{total}", done / total)
        return
    told_at = time.monotonic()

    def line(what: str, done: int, total: int) -> None:
        nonlocal told_at
        if done == total or time.monotonic() - told_at >= LINE_EVERY_S:
            told_at = time.monotonic()
            print(f"{what}: {done} of {total}", file=sys.stderr, flush=True)

    yield line


def _print(findings: "list[Finding]") -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{finding.level:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.fix:
            print(f"{'':<4}  {'':<{width}}  -> {finding.fix}")
