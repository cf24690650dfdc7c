"""scripts/kill-storm: rounds at fail points, in a random order, at random times.

Each round is told before it begins, so the last line names what failed; the same seed has the same
rounds. The data directory of a failure is kept. With --rare all rare sites are armed as well, at
their usual chances, and at the end a report says which of them did not fire.
"""

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.storm.points import WAYS
from tests.storm.rounds import NotReached, Storm
from volume.sites import RARE_SITES

MAX_NTH = 8


def main() -> int:
    """0: all rounds held; 1: one did not, or a point or a rare site was never reached."""
    parser = argparse.ArgumentParser(prog="scripts/kill-storm", description=__doc__)
    parser.add_argument("--rounds", type=int, default=len(WAYS), help="how many kills [all points]")
    parser.add_argument("--point", choices=list(WAYS), metavar="NAME", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rare", action="store_true", help="with rare events all the time")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="storm-"))
    storm = Storm(folder / "data", given.seed, rare=str(given.seed) if given.rare else None)
    print(f"data directory {storm.data}", flush=True)
    names: list[str] = []
    for number in range(given.rounds):
        names = names or rng.sample(list(WAYS), len(WAYS))
        point = given.point or names.pop()
        nth = max(WAYS[point].nth, rng.randrange(1, MAX_NTH)) if number % 2 else None
        print(f"{number + 1}/{given.rounds} {point}", flush=True)
        try:
            storm.round(point, nth if callable(WAYS[point].scene) else None)
        except NotReached:
            if nth is None:
                raise
            storm.round(point)  # not that often
    storm.verify()
    shutil.rmtree(folder)
    print(f"{storm.kills} kills, {storm.life.writer.acknowledged} commands acknowledged, none lost")
    return _missing(storm) if given.rare else 0


def _missing(storm: Storm) -> int:
    """Tell which rare sites did not fire."""
    silent = [name for name in RARE_SITES if name not in storm.rare_fired]
    print(f"{len(storm.rare_fired)} of {len(RARE_SITES)} rare sites have fired")
    for name in silent:
        how = "reached, but did not fire" if name in storm.rare_reached else "never reached"
        print(f"  {name}: {how}")
    return int(bool(silent))


if __name__ == "__main__":
    sys.exit(main())
