"""An old copy of meta/ that somebody has put back is refused, whatever happened since."""

from collections.abc import Callable

import pytest

from tests.sim.store_rig import KIB, StoreRig
from volume.errors import MetaLost, OldMeta


def opened() -> StoreRig:
    """A store with a volume, of which something is in chunks, and whose log is as long as it is."""
    rig = StoreRig()
    rig.tend()
    rig.store.create_volume("v", 64 * KIB, chunk_size=4 * KIB)
    rig.write("v", 0, b"1" * 4096, fua=True)
    rig.settle()
    return rig


def with_old_meta(change: Callable[[StoreRig], object]) -> StoreRig:
    """The store killed after `change`, and opened with meta/ as it was before."""
    rig = opened()
    old = rig.meta.snapshot()
    change(rig)
    rig.flush("v")
    return StoreRig(rig.disk.image(), old, rig.index.snapshot(), clock=rig.clock)


def restore(rig: StoreRig) -> None:
    rig.write("v", 0, b"2" * 4096)
    rig.store.snapshots.create("s", ["v"])
    rig.store.destage()
    rig.store.versions.restore("v", "s")


def two_rounds(rig: StoreRig) -> None:
    for data in (b"2", b"3"):
        rig.write("v", 4096, data * 4096)
        rig.store.destage()


def clone(rig: StoreRig) -> None:
    rig.store.versions.clone("v", "w")


def create(rig: StoreRig) -> None:
    rig.store.create_volume("w", 64 * KIB)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (restore, "is of epoch 2 of volume v"),
        (two_rounds, "volume v in chunks up to seq 3, after 2"),
        (clone, "is of volume number 2"),
        (create, "is of volume number 2"),
    ],
)
def test_what_happened_since_is_not_forgotten(
    change: Callable[[StoreRig], object], says: str
) -> None:
    with pytest.raises(OldMeta, match=says) as refused:
        with_old_meta(change)
    assert "--rebuild-meta --from" in str(refused.value)


def test_a_run_since_then_is_enough() -> None:
    rig = opened()
    old = rig.meta.snapshot()
    again = rig.killed()
    again.write("v", 0, b"2" * 4096, fua=True)
    with pytest.raises(OldMeta, match="by run 2 of the store, and meta/ knows of 1"):
        StoreRig(again.disk.image(), old, again.index.snapshot(), clock=rig.clock)


def test_one_round_more_is_what_a_crash_leaves_too() -> None:
    """Between HEAD records and their transaction; the log has all that the round had."""

    def change(rig: StoreRig) -> None:
        rig.write("v", 4096, b"2" * 4096)
        rig.store.destage()

    assert with_old_meta(change).read("v", 0, 8192) == b"1" * 4096 + b"2" * 4096


def test_changes_that_meta_knows_are_not_held_against_it() -> None:
    rig = opened()
    restore(rig)
    clone(rig)
    two_rounds(rig)
    rig.store.rename_volume("w", "x")
    rig.store.delete_volume("x")
    rig.flush("v")
    assert rig.killed().read("v", 4096, 4096) == b"3" * 4096


def test_a_store_without_meta_is_not_made_anew() -> None:
    rig = opened()
    with pytest.raises(MetaLost, match="--rebuild-meta --data"):
        StoreRig(rig.disk.image(), {}, rig.index.snapshot())


def test_an_index_that_is_gone_is_made_anew_whatever_meta_says_of_it() -> None:
    rig = opened()
    rig.store.close()
    again = StoreRig(rig.disk.image(), rig.meta.snapshot(), {}, clock=rig.clock, boot=rig.boot)
    assert again.read("v", 0, 4096) == b"1" * 4096
