"""Completion of versions (`vol@snapshot`), and of what bash makes of them.

bash splits words at '@' and ':' (COMP_WORDBREAKS): `blockd snapshot show vm1@da` arrives here as
the words `vm1`, `@` and `da`, and what is answered replaces the `da` only. So words are put
together before typer sees them, and what comes before the last break is cut off its answers. The
other shells do neither.
"""

import contextlib
import io
from collections.abc import Callable, MutableMapping

import typer

from blockd.cli.entry import COMPLETION
from blockd.cli.options import COMPLETION_TIMEOUT_S, complete_volume, connect

MAX_COMPLETIONS = 1000  # snapshots: more than that nobody reads, and shells get slow

_BREAKS = frozenset("@:")  # of those of bash, what a version has


def complete_version(context: typer.Context, incomplete: str) -> list[str]:
    """`vol` and `vol@snapshot` for the shell; nothing when the daemon does not answer."""
    volume, at, prefix = incomplete.partition("@")
    if not at:
        return complete_volume(context, incomplete)
    try:
        with connect(context.params.get("control"), COMPLETION_TIMEOUT_S) as client:
            found = client.snapshots(volume, prefix=prefix, limit=MAX_COMPLETIONS)
    except Exception:  # a completion that fails must not print
        return []
    return [f"{volume}@{snapshot.name}" for snapshot in found]


def complete_snapshot(context: typer.Context, incomplete: str) -> list[str]:
    """`vol@snapshot` for the shell; `vol@` as long as the volume is being typed."""
    found = complete_version(context, incomplete)
    return found if "@" in incomplete else [f"{volume}@" for volume in found]


def complete_snapshot_name(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the snapshots of the volume that was given before, for `--to`."""
    # typer leaves arguments where they are while the option at the end lacks its value.
    volume = context.params.get("volume") or next(iter(context.args), "")
    prefix = f"{volume}@"
    return [each.removeprefix(prefix) for each in complete_version(context, prefix + incomplete)]


def in_bash(environ: MutableMapping[str, str]) -> bool:
    return environ.get(COMPLETION) == "complete_bash" and "COMP_WORDS" in environ


def complete_for_bash(run: Callable[[], object], environ: MutableMapping[str, str]) -> None:
    """Let `run` (typer) print completions, with bash's words mended; see the module's text."""
    text = environ["COMP_WORDS"]
    separator = "\n" if "\n" in text else " "
    words, current = join_words(text.split(separator), int(environ["COMP_CWORD"]))
    environ["COMP_WORDS"] = separator.join(words)
    environ["COMP_CWORD"] = str(current)
    word = words[current] if current < len(words) else ""
    cut = max(word.rfind(mark) for mark in _BREAKS) + 1
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run()
    finally:
        for line in printed.getvalue().splitlines():
            print(line[cut:])


def join_words(words: list[str], current: int) -> tuple[list[str], int]:
    """`words` without the breaks, and where the word with index `current` went."""
    joined: list[str] = []
    moved = current
    for index, word in enumerate(words):
        if joined and (word[:1] in _BREAKS or joined[-1][-1:] in _BREAKS):
            joined[-1] += word
            moved -= index <= current
        else:
            joined.append(word)
    return joined, moved
