"""A few kills with rare events all the time: a short form of `scripts/kill-storm --rare`.

What is rare in production happens here at chances from a fixed seed. Each of `FIRES` must: a site
that nothing reaches any more would test nothing.
"""

from pathlib import Path

from tests.storm.life import Life
from tests.storm.rounds import Storm
from volume.sites import RARE_SITES

OFTEN = 0.6
SEED = 3
FIRES = (
    "ack.delayed",
    "backlog.delayed",
    "batch.conflict",
    "destage.due",
    "destage.fails",
    "disk.short-read",
    "disk.short-write",
    "file.short-read",
    "file.short-write",
    "gc.due",
    "gc.yields",
    "journal.no-segment",
    "journal.rotate-early",
    "kv.map-full",
    "kv.release",
    "nodes.forget",
    "pack.full-early",
    "receive.batch",
    "table.forget",
)
POINTS = ("receive.landed", "range.recorded", "gc.removed", "destage.done")


def test_rare_events_lose_nothing(data_dir: Path) -> None:
    chosen = ",".join(f"{name}={min(OFTEN, 4 * RARE_SITES[name].chance)}" for name in FIRES)
    storm = Storm(data_dir, SEED, rare=f"{SEED}:{chosen}")
    storm.live(*[Life.writes] * 8, *[Life.copies] * 10, *[Life.garbage] * 8)
    for point in POINTS:
        storm.round(point, nth=2)
    storm.verify()
    assert storm.rare_fired == set(FIRES)
