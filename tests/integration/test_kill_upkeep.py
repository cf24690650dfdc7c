"""kill -9 at each fail point of gc, streams, scrub, repairs, targets, and opening and closing.

See tests/storm: clients are at work, the daemon dies at the point, and everything that was promised
is looked for when it is there again. A point that the clients do not reach is a failure.
"""

from typing import Any

import pytest

from tests.storm.points import WAYS
from tests.storm.rounds import Storm

PREFIXES = (
    "gc.",
    "receive.",
    "scrub.",
    "repair.",
    "kept.",
    "open.",
    "close.",
)
POINTS = [name for name in WAYS if name.startswith(PREFIXES)]


@pytest.fixture(scope="module")
def storm(tmp_path_factory: Any) -> Storm:
    """One data directory, on which all points have their turn."""
    return Storm(tmp_path_factory.mktemp("d") / "data", seed=11)


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_there_loses_nothing(storm: Storm, point: str) -> None:
    storm.round(point)


def test_all_is_sound_after_all_of_it(storm: Storm) -> None:
    storm.verify()
