"""What commands print: JSON, tables, key-value lists; errors on stderr.

Results go to stdout. With --json that is one JSON document a command, and errors are
`{"error": {"code", "message"}}` on stderr. Tables are as wide as they need in a pipe, so that a
line is a record there; on a terminal they fit it.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

MAX_FITTED_ROWS = 1000  # on a terminal; longer tables are printed as into a pipe
ID_DIGITS = 16  # of the 64 of a chunk or a pack: enough to find it in the log
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


def counted(count: int, noun: str) -> str:
    """ "1 volume", "2 volumes": for nouns that take an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_table(columns: Sequence[str], rows: Iterable[Row], *, right: Sequence[str] = ()) -> None:
    """`rows` under the names `columns`; those in `right` are right-aligned.

    Cells have only what can be shown: names that clients gave cannot move the cursor."""
    cells = [[_printable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty() and len(cells) <= MAX_FITTED_ROWS:
        _print_fitted(columns, cells, right)
    else:
        _print_lines(columns, cells, right)


def _printable(cell: str) -> str:
    if cell.isprintable():
        return cell
    return "".join(each if each.isprintable() else "?" for each in cell)


def _print_fitted(columns: Sequence[str], rows: Sequence[Row], right: Sequence[str]) -> None:
    from rich.console import Console

    Console(highlight=False).print(table(columns, rows, right=right))


def table(columns: Sequence[str], rows: Iterable[Row], *, right: Sequence[str] = ()) -> "Table":
    """As `print_table`, for rich to show no wider than the terminal: long cells are folded."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        justify: Any = "right" if column in right else "left"
        made.add_column(column, justify=justify, overflow="fold")
    for row in rows:
        # Text: no markup in what clients named
        made.add_row(*(Text(_printable(cell)) for cell in row))
    return made


def _print_lines(columns: Sequence[str], rows: Sequence[Row], right: Sequence[str]) -> None:
    """A row a line, whatever its length. rich would take minutes for 100,000 snapshots."""
    lines = [columns, *rows]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        shown = []
        for name, cell, width in zip(columns, line, widths, strict=True):
            space = " " * (width - _width(cell))
            shown.append(space + cell if name in right else cell + space)
        print("  ".join(shown).rstrip())


def _width(cell: str) -> int:
    """Columns of a terminal that `cell` takes."""
    if cell.isascii():
        return len(cell)
    from rich.cells import cell_len

    return cell_len(cell)


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
