"""`blockd doctor`: checks of this machine, and the way out of a sealed data directory."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockd.cli.exits import FAILED
from blockd.cli.options import ControlOption, JsonOption, UsageError, candidates
from blockd.cli.output import print_json

if TYPE_CHECKING:
    from blockd.doctor import Finding

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
    as_json: JsonOption = False,
) -> None:
    """Check the data directory, the configuration and what clients need here."""
    if unseal:
        _unseal(data, as_json)
        return
    from blockd.config import DEFAULT_DATA, ServeConfig, load_config
    from blockd.doctor import FAIL, Finding, Machine, examine
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
    if node.store.state == "ok":
        return Finding("daemon", OK, f"{here[0]}: process {node.pid}, version {node.version}")
    fix = "make room" if node.store.state == "full" else "check the disk, then doctor --unseal"
    return Finding("daemon", FAIL, f"{here[0]}: store {node.store.state}: {node.store.reason}", fix)


def _unseal(data: Path | None, as_json: bool) -> None:
    if data is None:
        raise UsageError("doctor --unseal: name the data directory with --data DIR")
    from volume.store import unseal

    unseal(data)
    if as_json:
        print_json({"unsealed": str(data)})
    else:
        print(
            f"{data}: takes writes again when it is served; run a file system check in its "
            "volumes, since writes after the failed sync may be lost"
        )


def _print(findings: "list[Finding]") -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{finding.level:<4}  {finding.check:<{width}}  {finding.message}")
        if finding.fix:
            print(f"{'':<4}  {'':<{width}}  -> {finding.fix}")
