"""A store that nobody asks for anything lets go of what it has cached, and of freed memory."""

import pytest

from tests.sim.store_rig import KIB, StoreRig
from volume import memory
from volume.idle import REST_S, WAKE_MISSES
from volume.upkeep import BUSY_S

CHUNK = 4 * KIB
COUNT = 2 * WAKE_MISSES


def content(index: int) -> bytes:
    return (index + 1).to_bytes(2, "little") * (CHUNK // 2)


class IdleRig:
    """A store with cached chunks, looked after as its upkeep thread would."""

    def __init__(self) -> None:
        self.rig = StoreRig()
        self.rig.store.create_volume("v", COUNT * CHUNK, chunk_size=CHUNK)
        self.upkeep = self.rig.store.upkeep
        for index in range(COUNT):
            self.rig.write("v", index * CHUNK, content(index))
            self.rig.tend()
            if index % 4 == 3:
                self.rig.settle()
        self.upkeep.give_back_memory()
        self.read(range(COUNT))

    @property
    def cached(self) -> int:
        """Chunks whose places are known."""
        return self.rig.store._table.stats()[0]

    @property
    def nodes(self) -> int:
        return self.rig.store._manifests.cache.size

    def read(self, indices: range) -> None:
        for index in indices:
            assert self.rig.read("v", index * CHUNK, CHUNK) == content(index)

    def pass_quietly(self, seconds: float) -> None:
        self.upkeep.give_back_memory()  # sees what was done until now
        self.rig.clock.advance(seconds)
        self.upkeep.give_back_memory()

    def warm(self) -> None:
        self.upkeep._warm_attached()


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time that freed memory went back."""
    calls: list[int] = []
    monkeypatch.setattr(memory, "give_back", lambda: calls.append(1))
    return calls


@pytest.fixture
def idle(trims: list[int]) -> IdleRig:
    return IdleRig()


def test_a_store_at_rest_holds_nothing_in_its_caches(idle: IdleRig, trims: list[int]) -> None:
    assert idle.cached == COUNT
    assert idle.nodes > 0
    idle.pass_quietly(BUSY_S + REST_S)
    assert (idle.cached, idle.nodes, trims) == (0, 0, [1])
    idle.read(range(COUNT))


def test_a_pause_is_no_rest(idle: IdleRig, trims: list[int]) -> None:
    idle.pass_quietly(REST_S - 0.1)
    idle.read(range(1))
    idle.pass_quietly(REST_S - 0.1)
    assert (idle.cached, trims) == (COUNT, [])


def test_memory_goes_back_once_for_each_rest(idle: IdleRig, trims: list[int]) -> None:
    for rests in (1, 2):
        idle.pass_quietly(BUSY_S + REST_S)
        idle.pass_quietly(REST_S)
        assert trims == [1] * rests
        idle.read(range(1))


def test_clients_that_come_back_find_places_looked_up_ahead(idle: IdleRig) -> None:
    idle.rig.volume("v").attach("test")
    idle.warm()
    idle.pass_quietly(BUSY_S + REST_S)
    idle.read(range(WAKE_MISSES // 4))
    idle.warm()
    assert idle.cached < COUNT, "a few reads do not have everything looked up"
    idle.read(range(COUNT // 2, COUNT // 2 + WAKE_MISSES // 2))
    idle.warm()
    assert idle.cached == COUNT


def test_the_first_client_after_a_rest_finds_them_at_once(idle: IdleRig) -> None:
    volume = idle.rig.volume("v")
    volume.attach("test")
    idle.warm()
    volume.detach("test")
    idle.pass_quietly(BUSY_S + REST_S)
    idle.warm()
    assert idle.cached == 0, "nobody is there who would ask"
    volume.attach("test")
    idle.warm()
    assert idle.cached == COUNT
