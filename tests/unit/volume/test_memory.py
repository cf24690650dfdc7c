"""Memory that a round of destaging has freed goes back to the system when nothing is hot."""

import pytest

from tests.sim.store_rig import KIB, StoreRig
from volume import memory, upkeep


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time; from 16 KiB on."""
    calls: list[int] = []
    monkeypatch.setattr(upkeep, "GIVE_BACK_BYTES", 16 * KIB)
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(1))
    return calls


def _destage(rig: StoreRig, length: int) -> None:
    assert rig.write("v", 0, b"x" * length) == 0
    rig.store.upkeep.destage_if_due()  # looks, and sees that something is hot
    rig.clock.advance(3600.0)
    rig.store.upkeep.destage_if_due()
    rig.tend()


def test_a_store_at_rest_gives_back_what_rounds_freed(given: list[int]) -> None:
    rig = StoreRig()
    rig.store.create_volume("v", 1 << 20)
    rig.tend()
    _destage(rig, 8 * KIB)
    assert given == []
    _destage(rig, 8 * KIB)
    assert given == [1]
    _destage(rig, 8 * KIB)
    assert given == [1]
    rig.closed()


def test_giving_back_is_harmless() -> None:
    memory.give_back()
