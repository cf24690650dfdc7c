"""The command tree, and the one place where a failure becomes a message and an exit code.

Errors that we raise on purpose carry a string `code`; `blockd.cli.exits` maps it. Anything else is
a bug of ours and shows its traceback.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Annotated, Any, NoReturn

import typer
import typer.main
from typer.core import TyperGroup

from blockd.cli import exits
from blockd.cli.output import print_error
from blockd.cli.quick import quickened

COMMANDS = {
    "serve": ("serve", "serve"),
    "volume": ("volume", "app"),
    "snapshot": ("snapshot", "app"),
    "target": ("target", "app"),
    "space": ("space", "space"),
    "import": ("transfer", "import_image"),
    "export": ("transfer", "export_image"),
    "send": ("transfer", "send"),
    "receive": ("transfer", "receive"),
    "backup-meta": ("backup", "backup_meta"),
    "cluster": ("cluster", "app"),
    "gc": ("gc", "app"),
    "scrub": ("scrub", "app"),
    "status": ("status", "status"),
    "top": ("top", "top"),
    "client": ("client", "app"),
    "doctor": ("doctor", "doctor"),
    "version": ("version", "version"),
}
"""Name -> module and what it has of that name, in the order of the help: what people need first.
Only the module of the command that is run is loaded; `--help` needs them all."""


COMPLETION = "_BLOCKD_COMPLETE"  # set by the script that `blockd --install-completion` writes


class _Tree(TyperGroup):
    """Has a command when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.commands[cmd_name] = _loaded(cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS:
            for name in COMMANDS:  # the message may suggest any
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)


def _loaded(name: str) -> Any:
    module, attribute = COMMANDS[name]
    found = getattr(importlib.import_module(f"blockd.cli.{module}"), attribute)
    tree = typer.Typer(pretty_exceptions_enable=False)
    if isinstance(found, typer.Typer):
        tree.add_typer(found, name=name)
    else:
        tree.command(name)(found)
    return quickened(typer.main.get_group(tree).commands[name])


app = typer.Typer(
    cls=_Tree,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=exits.epilog(),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from blockd.cli.version import version

        version()
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
    if COMPLETION in os.environ and (completion := _bash_completion()):
        completion.complete_for_bash(lambda: run(arguments), os.environ)
        sys.exit(exits.OK)
    code = run(arguments)
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `blockd volume list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exits.FAILED
    sys.exit(code)


def _bash_completion() -> ModuleType | None:
    from blockd.cli import completion

    return completion if completion.in_bash(os.environ) else None


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code and has printed whatever there was to say."""
    as_json = "--json" in arguments
    try:
        command = quickened(typer.main.get_command(app))
        result = command(args=list(arguments), prog_name="blockd", standalone_mode=False)
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
