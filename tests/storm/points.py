"""Which scene reaches which fail point."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.storm.life import Life, Scene

START, STOP, REPAIR = "start", "stop", "repair"


@dataclass(frozen=True, slots=True)
class Way:
    """How a fail point is reached."""

    scene: Scene | str
    """What clients do; or a start, a stop, or a repair of the index, which need no client."""
    nth: int = 1
    """In the suite: at which time. More than once where the first time is at the start."""
    prepare: str | None = None
    """What is done before, with no daemon there: a method of `Storm`."""
    settings: str = ""
    """More lines of [store]."""


def _ways(scene: Scene | str, *names: str) -> dict[str, Way]:
    return {name: Way(scene) for name in names}


WAYS: Mapping[str, Way] = {
    "segment.prepare.zeroed": Way(START, prepare="begin_anew"),
    "segment.prepare.synced": Way(START, prepare="begin_anew"),
    "journal.append.before": Way(Life.writes, nth=40),
    "journal.append.after": Way(Life.writes, nth=40),
    "journal.sync.before": Way(Life.writes, nth=6),
    "journal.sync.after": Way(Life.writes, nth=6),
    "journal.rotate.before": Way(Life.writes, nth=2),
    "journal.rotate.after": Way(Life.writes, nth=2),
    **_ways(
        Life.writes,
        "journal.release.after",
        "journal.recycle.after",
        "segment.forgotten",
        "destage.frozen",
        "destage.chunks-appended",
        "destage.manifest-written",
        "destage.built",
        "destage.heads-appended",
        "destage.heads-synced",
        "destage.moved",
        "destage.done",
        "head.transaction.before",
        "head.transaction.after",
        "pack.begun",
        "pack.written",
        "pack.synced",
        "chunks.indexed",
    ),
    "segment.removed": Way(Life.waits, prepare="fill_window", settings='reserve = "1T"\n'),
    "pack.footer-written": Way(STOP, prepare="live_shortly"),
    "chunks.stored-anew": Way(Life.heals, prepare="damage"),
    **_ways(Life.names, "snapshot.recorded", "names.synced", "names.stored", "snapshot.dropped"),
    **_ways(
        Life.versions,
        "volume.create.before",
        "volume.create.after",
        "clone.made",
        "volume.delete.before",
        "volume.delete.after",
        "restore.retired",
        "restore.synced",
        "restore.replaced",
        "resize.unmapped",
        "resize.stored",
    ),
    **_ways(Life.copies, "range.kept", "range.recorded"),
    **_ways(
        Life.garbage,
        "gc.marked",
        "gc.condemned",
        "gc.copied",
        "gc.indexed",
        "gc.unindexed",
        "gc.removed",
    ),
    **_ways(Life.streams, "receive.begun", "receive.stored", "receive.saved", "receive.landed"),
    "scrub.noted": Way(Life.scrubs),
    **_ways(REPAIR, "repair.distrusted", "repair.deleted", "repair.filled", "repair.synced"),
    **_ways(
        Life.targets,
        "kept.write.before",
        "kept.write.after",
        "kept.delete.before",
        "kept.delete.after",
    ),
    "open.epoch": Way(START),
    "open.index-rebuilt": Way(START, prepare="distrust_index"),
    "open.pack-adopted": Way(START, prepare="die_with_unsealed_pack"),
    "open.replayed": Way(START),
    "close.index-synced": Way(STOP),
}
