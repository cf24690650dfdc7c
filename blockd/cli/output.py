"""What commands print: JSON, tables, key-value lists; errors on stderr.

Results go to stdout. With --json that is one JSON document a command, and errors are
`{"error": {"code", "message"}}` on stderr. Tables are as wide as they need in a pipe, so that a
line is a record there; on a terminal they fit it.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import IO, Any

PIPE_WIDTH = 100_000  # characters; rich would cut lines at 80 when stdout is no terminal
Row = Sequence[str]


def print_json(value: object) -> None:
    """One JSON document; dataclasses become objects."""
    print(json.dumps(_plain(value), indent=2))


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def print_table(columns: Sequence[str], rows: Iterable[Row], *, right: Sequence[str] = ()) -> None:
    """`rows` under the names `columns`; those in `right` are right-aligned."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if terminal else None, pad_edge=False, show_edge=False)
    for column in columns:
        justify: Any = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=not terminal, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: no markup in what clients named
    _print(table, sys.stdout)


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """`name  value` lines, values aligned."""
    fields = list(fields)
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        print(f"{name:<{width}}  {value}".rstrip())


def print_error(code: str, message: str, *, as_json: bool) -> None:
    """One line on stderr."""
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message}}), file=sys.stderr)
    else:
        print(f"blockd: {message}", file=sys.stderr)


def _print(renderable: object, stream: IO[str]) -> None:
    from rich.console import Console

    width = None if stream.isatty() else PIPE_WIDTH
    lines = Console(file=stream, width=width, highlight=False)
    if stream.isatty():
        lines.print(renderable)
        return
    with lines.capture() as capture:
        lines.print(renderable)
    for line in capture.get().splitlines():
        print(line.rstrip(), file=stream)
