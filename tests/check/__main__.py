"""python -m tests.check: judge histories, and devices against them."""

from pathlib import Path
from typing import Annotated

import typer

from tests.check.device import CannotRead, runs_of_device
from tests.check.events import BadHistory, read_history
from tests.check.judge import Judge, Report, judge_file

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

OK, BROKEN, UNREADABLE = 0, 1, 2


@app.command()
def history(files: Annotated[list[Path], typer.Argument(metavar="FILE...")]) -> None:
    """Decide whether a recorded history keeps the promises. Exit code 1 if one does not."""
    code = OK
    for path in files:
        try:
            report = judge_file(path)
        except (BadHistory, OSError) as error:
            typer.echo(f"{path}: {error}", err=True)
            raise typer.Exit(UNREADABLE) from None
        show(str(path), report)
        code = code if report.ok else BROKEN
    raise typer.Exit(code)


@app.command()
def scan(
    device: Annotated[str, typer.Argument(help="File, block device, nbd:// or iscsi:// URL.")],
    history: Annotated[Path, typer.Option(metavar="FILE", help="What was done to the volume.")],
    at: Annotated[
        str | None, typer.Option(metavar="NAME", help="It is this named state, not the end.")
    ] = None,
) -> None:
    """Decide whether what a device holds is a legal end of a history. Nobody may write to it."""
    try:
        header, lines = read_history(history)
        judge = Judge(header)
        judge.take(lines)
        judge.judge_end(runs_of_device(device, header.size, header.id), at)
    except (BadHistory, CannotRead, OSError) as error:
        typer.echo(f"{device}: {error}", err=True)
        raise typer.Exit(UNREADABLE) from None
    show(device, judge.report)
    raise typer.Exit(OK if judge.report.ok else BROKEN)


def show(what: str, report: Report) -> None:
    """One line, and one for each finding."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.operations.items() if count)
    verdict = "ok" if report.ok else f"{report.found} findings"
    typer.echo(
        f"{what}: {verdict}; {report.total} operations ({kinds or 'none'}), "
        f"{report.failed} failed, {report.crashes} crashes, {report.states} states, "
        f"{report.sectors_read} sectors read"
    )
    for finding in report.findings:
        typer.echo(f"  {finding}")
    if report.found > len(report.findings):
        typer.echo(f"  and {report.found - len(report.findings)} more")


app(prog_name="python -m tests.check")
