"""Memory that a round of destaging has freed goes back to the system when nothing is hot."""

import os
from pathlib import Path

import pytest

from tests.sim.store_rig import KIB, StoreRig
from volume import memory, upkeep

MIB = 1024 * KIB


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


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


def test_a_buffer_takes_memory_only_where_it_was_written_to() -> None:
    before = _resident_bytes()
    buffer = memory.zeros(512 * MIB)
    buffer[100 * MIB] |= 4
    assert buffer[100 * MIB - 1 : 100 * MIB + 2] == b"\0\4\0"
    assert buffer[-1] == 0
    assert _resident_bytes() - before < 256 * MIB
