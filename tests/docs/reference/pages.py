"""The pages of docs/reference/, each with what writes it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.docs.reference import api, cli, configuration, metrics

FOLDER = Path(__file__).parents[3] / "docs" / "reference"
PAGES: Mapping[str, Callable[[], str]] = {
    "cli.md": cli.page_text,
    "configuration.md": configuration.page_text,
    "api.md": api.page_text,
    "metrics.md": metrics.page_text,
}


def differing() -> list[str]:
    """Names of the pages that are not what the code says."""
    return [name for name, text in PAGES.items() if _read(name) != text()]


def write() -> list[str]:
    """Brings the pages up to date; the names of those that were not."""
    stale = differing()
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(PAGES[name]())
    return stale


def _read(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text() if path.exists() else None
