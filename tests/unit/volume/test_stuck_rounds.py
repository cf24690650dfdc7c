"""A disk on which no destage round gets through any more is full, whatever else it says."""

import errno
from dataclasses import replace

import pytest

from native import OP_WRITE, Request
from tests.sim.faults import Fail, Fault
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig
from volume.errors import OutOfSpace

SIZE = 512 * KIB
JOURNAL = replace(SMALL, journal_limit=4 * SEGMENT_BYTES)


def full_disk() -> tuple[StoreRig, list[Request]]:
    """A store whose packs find no space, and whose journal is full; the write that waits."""
    rig = StoreRig(options=JOURNAL)
    rig.store.create_volume("v", SIZE, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), "packs/*", count=None))
    finished: list[Request] = []
    for at in range(0, SIZE, 4096):
        before = len(finished)
        rig.volume("v").submit([Request(OP_WRITE, at, 4096, bytes([1]) * 4096)], finished.extend)
        if len(finished) == before:
            finished.clear()
            return rig, finished
    raise AssertionError("the journal has room for everything")


def failing_rounds(rig: StoreRig, count: int) -> None:
    for _ in range(count):
        with pytest.raises(OutOfSpace):
            rig.store.destage()
        rig.tend()


def test_write_that_waits_gets_enospc_when_no_round_gets_through() -> None:
    rig, finished = full_disk()
    failing_rounds(rig, 2)
    assert [request.error for request in finished] == [errno.ENOSPC]


def test_upkeep_does_not_take_a_stuck_disk_for_one_with_space() -> None:
    rig, _ = full_disk()
    failing_rounds(rig, 2)
    assert rig.store.status().state == "full"
    assert rig.write("v", 0, bytes(512)) == errno.ENOSPC
    assert rig.read("v", 0, 4096) == bytes([1]) * 4096


def test_one_round_without_space_is_no_reason_to_refuse_writes_for_long() -> None:
    rig, _ = full_disk()
    failing_rounds(rig, 1)
    assert rig.store.status().state == "ok"


def test_writes_go_on_when_a_round_has_got_through() -> None:
    rig, _ = full_disk()
    failing_rounds(rig, 3)
    rig.disk.faults.clear()
    rig.settle()
    assert rig.store.status().state == "ok"
    assert rig.write("v", 0, bytes(512)) == 0
