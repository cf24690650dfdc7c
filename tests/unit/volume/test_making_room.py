"""Who waits for journal space waits for it, and keeps no thread busy meanwhile."""

import errno
import threading
from collections.abc import Iterator

import pytest

from native import OP_WRITE, Request
from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import KIB, StoreRig
from volume.errors import StoreClosing, StoreSealed
from volume.upkeep import Upkeep

SIZE = 512 * KIB
TIMEOUT_S = 60.0  # only a hang reaches it


class Threads:
    """Stand-ins for the store's threads: they are woken, and do nothing by themselves."""

    def __init__(self) -> None:
        self.wakes = 0
        self.stopping = False
        self.woken = threading.Event()

    def wake(self) -> None:
        self.wakes += 1
        self.woken.set()

    def stop(self) -> None:
        pass


@pytest.fixture
def rig() -> StoreRig:
    """Its journal has no segment ready, and nothing is hot."""
    made = StoreRig()
    made.store.create_volume("v", SIZE, block_size=512, chunk_size=4 * KIB)
    finished: list[Request] = []
    for at in range(0, SIZE, 4096):
        before = len(finished)
        made.volume("v").submit([Request(OP_WRITE, at, 4096, bytes(4096))], finished.extend)
        if len(finished) == before:
            break
    return made


@pytest.fixture
def destager(rig: StoreRig) -> Iterator[Threads]:
    upkeep = rig.store.upkeep
    thread = Threads()
    upkeep._destage_worker = upkeep._upkeep_worker = thread  # type: ignore[assignment]
    upkeep._workers = [thread]  # type: ignore[list-item]
    yield thread
    upkeep._workers = []


def in_thread(upkeep: Upkeep) -> tuple[threading.Thread, list[Exception]]:
    raised: list[Exception] = []

    def work() -> None:
        try:
            upkeep.make_room()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, raised


def test_rounds_that_find_nothing_to_do_are_not_asked_for_again_at_once(
    rig: StoreRig, destager: Threads
) -> None:
    upkeep = rig.store.upkeep
    thread, _ = in_thread(upkeep)
    assert destager.woken.wait(TIMEOUT_S)
    for _ in range(1000):
        upkeep._tell(None)  # a round has ended, and did nothing
    assert destager.wakes < 100
    rig.tend()  # makes segments
    upkeep._tell(None)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_room_is_seen_though_no_round_has_freed_it(rig: StoreRig, destager: Threads) -> None:
    rig.tend()
    thread, raised = in_thread(rig.store.upkeep)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert raised == []


def test_point_that_is_not_in_chunks_when_the_store_closes_is_no_version_that_is_missing(
    rig: StoreRig, destager: Threads
) -> None:
    rig.tend()
    rig.store.snapshots.create("s", ["v"])
    ((number, seq),) = rig.store._history.points
    destager.stopping = True
    with pytest.raises(StoreClosing):
        rig.store.upkeep.settle(number, seq)


def test_store_that_is_sealed_will_have_no_room(rig: StoreRig, destager: Threads) -> None:
    rig.disk.faults.add(Fault("sync", Fail(errno.EIO), "journal/*"))
    assert rig.flush("v") == errno.EIO
    thread, raised = in_thread(rig.store.upkeep)
    thread.join(TIMEOUT_S)
    assert [type(error) for error in raised] == [StoreSealed]
