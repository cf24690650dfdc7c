"""Lists of snapshots: which are in them, and what must be read for that."""

import pytest

from tests.sim.store_rig import KIB, StoreRig
from volume import snapshots
from volume.errors import NoSuchVolume
from volume.historyrows import VersionRow
from volume.model import SnapshotInfo


@pytest.fixture
def rig() -> StoreRig:
    """Two volumes, with snapshots that took turns; the last ones are in the journal only."""
    rig = StoreRig()
    for volume in ("v", "w"):
        rig.store.create_volume(volume, 64 * KIB)
    rig.tend()
    for number in range(6):
        volume = "vw"[number % 2]
        rig.write(volume, 0, bytes([number]) * 512)
        rig.clock.advance(1.0)
        rig.store.snapshots.create(f"{'ab'[number // 2 % 2]}-{number}", [volume])
        if number == 3:
            rig.store.destage()
            rig.tend()
    return rig


def named(found: list[SnapshotInfo]) -> list[str]:
    return [f"{info.volume}@{info.name}" for info in found]


def test_all_are_told_by_volume_oldest_first(rig: StoreRig) -> None:
    listed = named(rig.store.snapshots.all())
    assert listed == ["v@a-0", "v@b-2", "v@a-4", "w@a-1", "w@b-3", "w@a-5"]
    assert named(rig.store.snapshots.all("w")) == listed[3:]
    with pytest.raises(NoSuchVolume):
        rig.store.snapshots.all("x", limit=1)


def test_the_newest_of_all_volumes_are_told_in_the_same_order(rig: StoreRig) -> None:
    assert named(rig.store.snapshots.all(limit=3)) == ["v@a-4", "w@b-3", "w@a-5"]
    assert named(rig.store.snapshots.all("v", limit=1)) == ["v@a-4"]
    assert rig.store.snapshots.all(limit=100) == rig.store.snapshots.all()


def test_a_prefix_chooses_by_name(rig: StoreRig) -> None:
    assert named(rig.store.snapshots.all(prefix="a-")) == ["v@a-0", "v@a-4", "w@a-1", "w@a-5"]
    assert named(rig.store.snapshots.all(prefix="b", limit=1)) == ["w@b-3"]
    assert rig.store.snapshots.all(prefix="c") == []
    assert rig.store.version_names("v", 2) == ["v@a-4", "v@b-2"]
    assert rig.store.version_names(None, 4) == ["v@a-4", "v@b-2", "v@a-0", "w@a-5"]


def test_many_and_few_are_told_alike(rig: StoreRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions are looked at one by one, or all are read."""
    few = rig.store.snapshots.all(limit=5)
    monkeypatch.setattr(snapshots, "MAX_LOOKS", 0)
    assert rig.store.snapshots.all(limit=5) == few
    assert [info.commit is not None for info in few] == [True, False, True, True, False]


def test_a_limit_looks_at_so_many_versions_only(
    rig: StoreRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    history = rig.store._history
    real = history.version

    def look(number: int, seq: int) -> VersionRow | None:
        looks.append(seq)
        return real(number, seq)

    monkeypatch.setattr(history, "version", look)
    monkeypatch.delattr(type(history), "versions")
    rig.store.snapshots.all(prefix="b", limit=2)
    assert len(looks) == 2
