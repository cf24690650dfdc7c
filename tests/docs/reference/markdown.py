"""Pieces of Markdown, and what the source says of a class."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Sequence

GENERATED = "<!-- scripts/reference writes this page from {source}; edit that instead -->"


def page(title: str, source: str, *parts: str) -> str:
    """A whole page: title, where it comes from, then `parts` with a blank line between them."""
    return "\n\n".join([f"# {title}", GENERATED.format(source=source), *parts]) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(text: str) -> str:
    """`text` on one line, with the bars that would end the cell escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`"


def prose(text: str) -> str:
    """A docstring's paragraphs, each on one line, without what Markdown takes for HTML."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(each.split()) for each in paragraphs).replace("<", "&lt;")


def attribute_texts(cls: type) -> dict[str, str]:
    """The strings that stand behind attributes in the source of `cls`."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef), cls
    texts = {}
    for attribute, text in itertools.pairwise(tree.body):
        if not isinstance(attribute, ast.AnnAssign) or not isinstance(text, ast.Expr):
            continue
        if isinstance(attribute.target, ast.Name) and isinstance(text.value, ast.Constant):
            texts[attribute.target.id] = prose(str(text.value.value))
    return texts
