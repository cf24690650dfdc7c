"""Names that come while gc runs: a version that the run is about to give up gets a new holder."""

from collections.abc import Callable

import pytest

from native import OP_READ, Request
from tests.sim.store_rig import KIB, StoreRig
from tests.unit.volume.rig import chunk
from volume.thinning import Thinning
from volume.upkeep import Upkeep

CHUNK = 4 * KIB
SIZE = 64 * KIB


def block(letter: bytes) -> bytes:
    """Chunks of which no two are equal, and none can be compressed."""
    return b"".join(chunk(letter[0] * 100 + number, CHUNK) for number in range(8))


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> StoreRig:
    """Volume "v" with an old version that only a policy keeps, and no room at all for such."""
    monkeypatch.setattr(Thinning, "budget", lambda _self: 0)
    monkeypatch.setattr(Upkeep, "_busy", lambda _self: False)  # a slice at each step
    rig = StoreRig()
    rig.store.create_volume("v", SIZE, chunk_size=CHUNK)
    rig.store.versions.set_policy("v", window_s=0, keep="24h")
    for letter in (b"o", b"n", b"m"):
        for at in range(0, 8 * CHUNK, CHUNK):  # records must fit into the small segments
            rig.tend()
            assert rig.write("v", at, block(letter)[at : at + CHUNK]) == 0
        rig.store.destage()
        rig.clock.advance(2 * 3600.0)
    rig.tend()
    return rig


def old(rig: StoreRig) -> str:
    """Ref of the version that holds "o"."""
    volume = rig.volume("v")
    rows = list(rig.store.upkeep._parts.history.versions(volume.record.number))
    return f"seq:{rows[1].seq}"


def until(rig: StoreRig, phase: str) -> None:
    collector = rig.store.upkeep.collector
    collector.run_now()
    for _ in range(1000):
        assert collector.step(0.0)
        if collector.status().phase == phase:
            return
    raise AssertionError(phase)


def finish(rig: StoreRig) -> None:
    while rig.store.upkeep.collector.step(0.0):
        pass
    report = rig.store.last_gc
    assert report is not None
    assert report.error is None


def test_without_a_name_the_old_version_goes(rig: StoreRig) -> None:
    until(rig, "mark")
    finish(rig)
    report = rig.store.last_gc
    assert report is not None
    assert report.history_dropped >= 1
    assert report.chunks_removed >= 8


def cloned(rig: StoreRig) -> Callable[[], bytes]:
    rig.store.versions.clone(f"v@{old(rig)}", "copy")
    return lambda: rig.read("copy", 0, 8 * CHUNK)


def restored(rig: StoreRig) -> Callable[[], bytes]:
    rig.store.versions.restore("v", old(rig))
    return lambda: rig.read("v", 0, 8 * CHUNK)


def opened(rig: StoreRig) -> Callable[[], bytes]:
    device = rig.store.open_version(f"v@{old(rig)}")

    def read() -> bytes:
        request = Request(OP_READ, 0, 8 * CHUNK)
        device.submit([request], lambda _: None)
        assert request.error == 0, request.message
        assert isinstance(request.data, (bytes, bytearray))
        return bytes(request.data)

    return read


@pytest.mark.parametrize("name", [cloned, restored, opened])
def test_a_version_that_gets_a_holder_while_gc_marks_stays(
    rig: StoreRig, name: Callable[[StoreRig], Callable[[], bytes]]
) -> None:
    until(rig, "mark")
    read = name(rig)
    finish(rig)
    rig.store._manifests.cache._nodes.clear()
    assert read() == block(b"o")
    assert rig.store.last_gc is not None
    rig.store.collect()
    assert read() == block(b"o")
