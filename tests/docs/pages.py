"""The pages of the documentation, and what is in them that a test can check.

Blocks of code are what a reader pastes, so each has to be of a kind that says what is done to it:

    ```sh, or indented    commands for bash; run as they are
    ```console            lines behind `$ ` are commands and run; those below are what they print,
                          with `...` for anything
    ```toml               a blockd.toml; loaded by `blockd serve --check-config`
    ```json  ```python    parsed; run
    ```text and others of DATA    what is only read
    any other             commands of other systems; never run, so they need a comment

In front of a block a comment may say

    <!-- not run: WHY; what checks it instead -->
    <!-- given: COMMANDS -->      what is there before the page's reader begins with this block

Paths of ours in such a comment have to exist.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
COMMANDS = frozenset({"sh", "console"})
CHECKED = COMMANDS | {"toml", "json", "python"}
DATA = frozenset({"text", "ini", "conf", "yaml", "promql", "diff"})

_COMMENT = re.compile(r"<!--\s*(not run|given):\s*(.*?)\s*-->", re.DOTALL)
_OUR_PATH = re.compile(r"\b(?:tests|scripts|docs|packaging)/[\w./-]*\w|\.ci/\w+")
_LINK = re.compile(r"^(?![a-z][a-z0-9+.-]*:)")
_NOT_IN_ANCHORS = re.compile(r"[^\w\- ]")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code; `line` is where it begins in its page, from 1."""

    page: Path
    line: int
    kind: str
    text: str
    not_run: str = ""
    given: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.kind in CHECKED and not self.not_run


@dataclass(frozen=True, slots=True)
class Link:
    page: Path
    line: int
    target: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.target}"


def pages() -> list[Path]:
    """README.md and everything below docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    return list(blocks_of(page, page.read_text()))


def blocks_of(page: Path, text: str) -> Iterator[Block]:
    before: list[Token] = []
    for token in MarkdownIt("commonmark").parse(text):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            comments = dict(
                match
                for each in before
                for match in _COMMENT.findall(each.content)  # (what, text)
            )
            kind = "sh" if token.type == "code_block" else (token.info.split() or [""])[0]
            line = token.map[0] + (2 if token.type == "fence" else 1)
            said = {name.replace(" ", "_"): text for name, text in comments.items()}
            yield Block(page, line, kind, token.content, **said)
        before = [*before, token] if token.type == "html_block" else []


def our_paths(text: str) -> list[str]:
    """Paths in this repository that `text` names."""
    return _OUR_PATH.findall(text)


def links(page: Path) -> list[Link]:
    """Links and images of a page that do not leave the repository."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        line = token.map[0] + 1 if token.map else 0
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if isinstance(target, str) and _LINK.match(target):
                found.append(Link(page, line, target))
    return found


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page ends with, as GitHub makes it."""
    tokens = MarkdownIt("commonmark").parse(page.read_text())
    found: set[str] = set()
    for opening, inline in itertools.pairwise(tokens):
        if opening.type == "heading_open":
            anchor = _anchor(inline)
            number = 0
            while (unique := f"{anchor}-{number}" if number else anchor) in found:
                number += 1
            found.add(unique)
    return found


def _anchor(heading: Token) -> str:
    text = "".join(child.content for child in heading.children or ())
    return _NOT_IN_ANCHORS.sub("", text.lower()).replace(" ", "-")
