"""docs/reference/cli.md: every command of the typer application, with its help texts.

What a terminal shows depends on its width and on typer's release; this is made from the parameters
themselves, so that only a change of ours changes the page.
"""

import enum
import itertools
from collections.abc import Iterator
from typing import Any, get_args, get_type_hints

import typer.main

from blockd.cli import exits
from blockd.cli.entry import app
from tests.docs.reference.markdown import code, page, prose, table

INTRODUCTION = """\
`blockd COMMAND --help` says the same on a terminal. Sizes are 1024-based: `4096`, `512M`,
`10GiB`; `10GB` is refused as ambiguous. Versions are named `vol@snapshot`, `vol@seq:N`,
`vol@TIME` or `vol@-10m`, see [versions](../versions.md#refs)."""
COMMON = ("--control", "--json")

Row = tuple[str, str]


def page_text() -> str:
    commands = list(_commands(typer.main.get_command(app), "blockd"))
    shared = _shared(commands)
    return page(
        "Commands",
        "blockd/cli",
        prose(INTRODUCTION),
        "## Options of all commands",
        "Most commands have these; where they mean what stands here, they are only named below.",
        table(("option", "meaning"), shared),
        "`--help` shows a command's help; `blockd --version` prints the version, and "
        "`blockd --install-completion` sets up completion for the shell.",
        "## Exit codes",
        table(("code", "meaning"), ((str(each), text) for each, text in exits.MEANING.items())),
        *(_command(command, path, shared) for command, path in commands),
    )


def _commands(group: Any, path: str) -> Iterator[tuple[Any, str]]:
    """Every command of `group`, in the order in which the help has them, with what one types."""
    context = typer.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield command, f"{path} {name}"
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")


def _shared(commands: list[tuple[Any, str]]) -> list[Row]:
    """What most commands say of the options in COMMON."""
    rows = list(itertools.chain.from_iterable(_options(command) for command, _ in commands))
    wanted = ([each for each in rows if _first(each) == name] for name in COMMON)
    return [max(given, key=given.count) for given in wanted]


def _first(option: Row) -> str:
    """The name by which an option is known."""
    return option[0].strip("`").split()[0]


def _command(command: Any, path: str, shared: list[Row]) -> str:
    parts = [f"{'##' if path.count(' ') == 1 else '###'} {path}", prose(command.help)]
    if hasattr(command, "commands"):
        return "\n\n".join(parts)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    options = _options(command)
    words = [path, *(_wanted(each) for each in command.params), *map(_place, arguments)]
    parts.append(code(" ".join(filter(None, words))))
    if rows := [(code(_metavar(each)), prose(each.help or "")) for each in arguments]:
        parts.append(table(("argument", "meaning"), rows))
    if own := [each for each in options if each not in shared]:
        parts.append(table(("option", "meaning"), own))
    if also := [code(_first(each)) for each in options if each in shared]:
        parts.append("Also: " + ", ".join(also) + ".")
    return "\n\n".join(parts)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _place(argument: Any) -> str:
    """An argument in the line that shows how a command is used."""
    return _metavar(argument) if argument.required else f"[{_metavar(argument)}]"


def _wanted(parameter: Any) -> str:
    """An option without which the command makes no sense, in that line."""
    if parameter.param_type_name == "option" and parameter.required:
        return f"{parameter.opts[0]} {_metavar(parameter)}"
    return ""


def _options(command: Any) -> list[Row]:
    """Names with values, and meaning, of each option."""
    hints = get_type_hints(command.callback) if command.callback else {}
    rows = []
    for each in command.params:
        if each.param_type_name != "option" or each.hidden or "--help" in each.opts:
            continue
        value = "" if each.is_flag else each.metavar or _choices(hints.get(each.name))
        names = ", ".join(sorted(each.opts, key=len))
        rows.append((code(f"{names} {value}".strip()), prose(each.help or "") + _default(each)))
    return rows


def _choices(hint: Any) -> str:
    for kind in (hint, *get_args(hint)):
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return "|".join(str(member.value) for member in kind)
    raise ValueError(f"{hint}: say metavar=..., so that the help tells what goes there")


def _default(option: Any) -> str:
    if option.required or option.is_flag or option.default is None or not option.show_default:
        return ""
    return f" [{option.default}]"
