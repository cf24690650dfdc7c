"""The command tree, and the one place where a failure becomes a message and an exit code.

Errors that we raise on purpose carry a string `code`; `blockd.cli.exits` maps it. Anything else is
a bug of ours and shows its traceback.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from blockd.cli import (
    backup,
    client,
    cluster,
    completion,
    doctor,
    exits,
    gc,
    scrub,
    serve,
    snapshot,
    space,
    status,
    target,
    top,
    transfer,
    volume,
)
from blockd.cli.output import print_error

ORDER = (
    *("serve", "volume", "snapshot", "target", "space"),
    *("import", "export", "send", "receive", "backup-meta"),
    *("cluster", "gc", "scrub", "status", "top", "client", "doctor", "version"),
)


class _Ordered(TyperGroup):
    """Shows the commands that people need first before the others."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return [name for name in ORDER if name in names] + [
            name for name in names if name not in ORDER
        ]


app = typer.Typer(
    cls=_Ordered,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=exits.epilog(),
)
app.command()(serve.serve)
app.add_typer(volume.app, name="volume")
app.add_typer(snapshot.app, name="snapshot")
app.add_typer(target.app, name="target")
app.command()(transfer.send)
app.command()(transfer.receive)
app.command("export")(transfer.export_image)
app.command("import")(transfer.import_image)
app.command()(backup.backup_meta)
app.command()(space.space)
app.add_typer(gc.app, name="gc")
app.add_typer(scrub.app, name="scrub")
app.command()(status.status)
app.command()(top.top)
app.add_typer(client.app, name="client")
app.add_typer(cluster.app, name="cluster")
app.command()(doctor.doctor)
app.command()(status.version)


def _show_version(wanted: bool) -> None:
    if wanted:
        status.version()
        raise typer.Exit


@app.callback()
def blockd(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """A block device server: volumes over NBD and iSCSI, and every write of them as a version."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with a code of `blockd.cli.exits`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if completion.in_bash(os.environ):
        completion.complete_for_bash(lambda: run(arguments), os.environ)
        sys.exit(exits.OK)
    code = run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `blockd volume list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exits.FAILED
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and has printed whatever there was to say."""
    as_json = "--json" in arguments
    try:
        result = app(args=list(arguments), prog_name="blockd", standalone_mode=False)
        return result if isinstance(result, int) else exits.OK
    except (typer.Abort, KeyboardInterrupt):
        print_error("interrupted", "interrupted", as_json=as_json)
        return exits.INTERRUPTED
    except typer.TyperException as error:
        return _usage(error, as_json)
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        print_error(code, _message(error), as_json=as_json)
        return exits.EXIT_CODE.get(code, exits.FAILED)


def _usage(error: typer.TyperException, as_json: bool) -> int:
    """A command line that typer refuses; it has shown the help itself when nothing was given."""
    if text := error.format_message().strip():
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "blockd"
        print_error("usage", f"{text} (try: {command} --help)", as_json=as_json)
    return exits.USAGE


def _code(error: Exception) -> str | None:
    """The code of an error that was raised on purpose, None for a bug."""
    code = getattr(error, "code", None)
    if isinstance(code, str):
        return code
    return "io_error" if isinstance(error, OSError) else None


def _owner_hint(error: OSError) -> str:
    """What mends files that somebody else owns; "" when that is not what is wrong."""
    me = os.geteuid()
    if isinstance(error, PermissionError):
        with contextlib.suppress(OSError, TypeError, ValueError):
            path = os.fspath(error.filename)
            names = os.listdir(path) if os.path.isdir(path) else []  # LMDB says the folder only
            for each in (path, *(os.path.join(path, name) for name in names)):
                owner = os.lstat(each).st_uid
                if owner != me:
                    hint = f"{each} belongs to user {owner}, this is user {me}"
                    return f"; {hint}: chown -R {me} {path}"
    return ""


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}{_owner_hint(error)}"
    return str(error) or type(error).__name__
