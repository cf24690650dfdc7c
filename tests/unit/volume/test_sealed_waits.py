"""A store that is sealed keeps nobody waiting: neither writes nor calls of operators."""

import errno
import threading

import pytest

from native import OP_WRITE, Request
from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import KIB, StoreRig
from volume.background import Worker
from volume.errors import StoreSealed

SIZE = 512 * KIB
TIMEOUT_S = 60.0  # only a hang reaches it


@pytest.fixture
def rig() -> StoreRig:
    made = StoreRig()
    made.store.create_volume("v", SIZE, block_size=512, chunk_size=4 * KIB)
    return made


def waiting_writes(rig: StoreRig) -> list[Request]:
    """Fill the journal until a write waits; where it will show up when it is finished."""
    finished: list[Request] = []
    for at in range(0, SIZE, 4096):
        before = len(finished)
        rig.volume("v").submit([Request(OP_WRITE, at, 4096, bytes(4096))], finished.extend)
        if len(finished) == before:
            finished.clear()
            return finished
    raise AssertionError("the journal has room for everything")


def seal(rig: StoreRig) -> None:
    rig.disk.faults.add(Fault("sync", Fail(errno.EIO), "journal/*"))
    assert rig.flush("v") == errno.EIO


def test_write_that_waits_for_journal_space_gets_an_error_when_the_store_is_sealed(
    rig: StoreRig,
) -> None:
    finished = waiting_writes(rig)
    assert finished == []
    seal(rig)
    assert [request.error for request in finished] == [errno.EIO]


def test_write_after_that_does_not_wait_either(rig: StoreRig) -> None:
    waiting_writes(rig)
    seal(rig)
    assert rig.write("v", 0, bytes(4096)) == errno.EIO


def test_call_for_the_destager_is_refused_when_its_thread_has_ended(rig: StoreRig) -> None:
    upkeep = rig.store.upkeep
    assert rig.write("v", 0, bytes(4096)) == 0  # so that there is something to sync
    upkeep.start()
    try:
        rig.disk.faults.add(Fault("sync", Fail(errno.EIO), "journal/*", count=None))
        seen = threading.Event()
        rig.store._seal.closed = seen.set
        with pytest.raises(StoreSealed):
            upkeep.submit(lambda: rig.store._seal.sync_journal())
        assert seen.wait(TIMEOUT_S)
        upkeep._destage_worker.wake()  # its next round finds out, and is its last
        assert upkeep._destage_worker._thread is not None
        upkeep._destage_worker._thread.join(TIMEOUT_S)
        with pytest.raises(StoreSealed):
            upkeep.submit(lambda: None)
        with upkeep.without_gc():
            pass
    finally:
        upkeep.stop()


def test_worker_says_that_it_ends_for_an_error() -> None:
    ended = threading.Event()

    def work() -> bool:
        raise StoreSealed("broken")

    worker = Worker("test", 60.0, work, lambda error: None, ended=ended.set)
    worker.start()
    assert ended.wait(TIMEOUT_S)
    worker.stop()
