"""A past version that is looked up while a round comes to its end."""

import errno
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import KIB, StoreRig
from tests.unit.volume.rig import chunk
from volume.errors import OutOfSpace

CHUNK = 4 * KIB


@pytest.mark.parametrize("after", ["base", "round_before"])
@pytest.mark.parametrize("by", ["seq", "time"])
def test_a_round_that_ends_in_between_takes_nothing_away(
    monkeypatch: pytest.MonkeyPatch, after: str, by: str
) -> None:
    """Base and start of the replay are two lookups: records between them must not be left out."""
    rig = StoreRig()
    rig.store.create_volume("v", 8 * CHUNK, block_size=512, chunk_size=CHUNK)
    rig.tend()
    assert rig.write("v", 0, chunk(1)) == 0
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=None))
    with pytest.raises(OutOfSpace):
        rig.store.destage()  # it stands, with its cut before the next write
    rig.disk.faults.clear()
    rig.tend()
    rig.clock.advance(10.0)
    assert rig.write("v", CHUNK, chunk(2)) == 0
    seq = rig.store.info("v").seq
    expected = rig.read("v")
    rig.clock.advance(10.0)
    ref = f"seq:{seq}"
    if by == "time":
        now_s = rig.clock.now_ns() / 1e9
        ref = datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds")
    rig.clock.advance(10.0)
    assert rig.write("v", 0, chunk(3)) == 0
    done: list[bool] = []
    history = rig.store._history
    lookup: Callable[..., Any] = getattr(history, after)

    def then_a_round(*arguments: Any) -> Any:
        found = lookup(*arguments)
        if not done:
            done.append(True)
            assert rig.store.destage()
        return found

    monkeypatch.setattr(history, after, then_a_round)
    shown = rig.read_version(f"v@{ref}")
    assert done
    assert shown == expected
