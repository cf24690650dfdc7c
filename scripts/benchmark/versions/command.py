"""scripts/bench versions: run parts of the measurement and put their tables into the page.

Every part has its own place in the page, between two markers, so that one can be done again alone.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import report

from versions import background, clones, dedup, large, rate, snapshots, space
from versions.common import Settings

PARTS = {
    "rate": rate.measure,
    "snapshots": snapshots.measure,
    "clones": clones.measure,
    "dedup": dedup.measure,
    "large": large.measure,
    "space": space.measure,
    "background": background.measure,
}
HELP = {
    "rate": "how many writes a second, each a version of its own",
    "snapshots": "creation under load, with 10 and 100,000 there, on 1 GiB and 10 TiB",
    "clones": "creation, and reads from the 1st and the 1,000th of a chain",
    "dedup": "what the same data takes the second time",
    "large": "1 TiB: memory of an idle daemon, and diff of two versions",
    "space": "an image, its clones and daily changes, beside qcow2 and borg",
    "background": "what gc and scrub cost clients",
}


def main(arguments: Sequence[str], page: Path, folder: Path) -> None:
    options = parsed(arguments, folder)
    options.folder.mkdir(parents=True, exist_ok=True)
    for part in options.parts or PARTS:
        began = time.monotonic()
        _say(f"==> {part}: {HELP[part]}")
        # Short, since unix sockets are below it.
        work = Path(tempfile.mkdtemp(prefix="v-", dir=options.folder))
        try:
            lines = PARTS[part](Settings(work, options.quick, _say))
        finally:
            shutil.rmtree(work)
        quick = "Small sizes (`--quick`), to try the script. " if options.quick else ""
        lines = [f"{quick}{report.machine()}.", "", *lines]
        if options.dry:
            print("\n".join(lines))
        else:
            report.write(page, lines, begin=_marker(part, "from"), end=_marker(part, "to"))
        _say(f"    {part}: done in {time.monotonic() - began:.0f} s")


def parsed(arguments: Sequence[str], folder: Path) -> argparse.Namespace:
    parts = "\n".join(f"  {name:12}{text}" for name, text in HELP.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench versions",
        description=f"Measure what versions cost.\n\nparts:\n{parts}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="default: all of them")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the script")
    parser.add_argument("--folder", type=Path, default=folder, help="where the files go")
    parser.add_argument("--dry", action="store_true", help="print, leave docs/benchmarks.md alone")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    return options


def _marker(part: str, edge: str) -> str:
    return f"<!-- scripts/bench versions {part}: {edge} here -->"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
