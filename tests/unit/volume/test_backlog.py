"""Back-pressure: a journal that fills faster than it is destaged slows writers, and fails none."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from native import FLAG_FUA, OP_FLUSH, OP_READ, OP_UNMAP, OP_WRITE, Request
from tests.sim.store_rig import KIB, SEGMENT_BYTES, SMALL, StoreRig
from volume.backlog import FILL_START, MAX_DELAY_S, delay_for
from volume.options import StoreOptions
from volume.store import Store


def filled() -> StoreRig:
    """A store whose journal has room for nothing but trims."""
    rig = StoreRig(options=SMALL)
    for name in ("v", "w"):
        rig.store.create_volume(name, 256 * KIB, block_size=512, chunk_size=4 * KIB)
    block = 0
    while True:
        rig.tend()
        data = bytes([block + 1]) * 4096
        done = rig.submit("v", Request(OP_WRITE, block * 4096, 4096, data))
        if not done:
            return rig
        block += 1


def test_delay_grows_from_nothing_to_its_bound() -> None:
    fills = [0.0, FILL_START, 0.7, 0.8, 0.9, 1.0, 1.5]
    delays = [delay_for(fill) for fill in fills]
    assert delays[:2] == [0.0, 0.0]
    assert delays == sorted(delays)
    assert delays[-2:] == [MAX_DELAY_S, MAX_DELAY_S]
    assert delay_for(0.8) < MAX_DELAY_S / 3


def test_write_to_a_full_journal_waits_and_is_done_after_a_round() -> None:
    rig = filled()
    done: list[Request] = []
    buffer = bytearray(b"w" * 4096)
    rig.volume("w").submit([Request(OP_WRITE, 0, 4096, buffer)], done.extend)
    buffer[:] = bytes(4096)  # it is the front end's again
    assert done == []
    assert rig.store._backlog.count == 2
    rig.settle()
    assert rig.store._backlog.count == 0
    assert [request.error for request in done] == [0]
    assert rig.read("w", 0, 4096) == b"w" * 4096
    assert rig.killed().read("w", 0, 4096) == b"w" * 4096


def test_trims_reads_and_flushes_go_on_while_writes_wait() -> None:
    rig = filled()
    assert rig.read("v", 0, 4096) == b"\x01" * 4096
    assert rig.zero("v", 0, 4096, unmap=True) == 0
    assert rig.flush("v") == 0
    assert rig.read("v", 0, 4096) == bytes(4096)


def test_fua_write_that_waited_is_durable_when_it_is_done() -> None:
    rig = filled()
    done: list[Request] = []
    rig.volume("w").submit([Request(OP_WRITE, 0, 4096, b"w" * 4096, FLAG_FUA)], done.extend)
    rig.settle()
    assert [request.error for request in done] == [0]
    _, synced, *_ = rig.store._journal.state()
    assert synced == rig.store.status().lsn


def test_write_longer_than_the_journal_is_done_in_the_end() -> None:
    rig = StoreRig(options=replace(SMALL, journal_limit=4 * SEGMENT_BYTES))
    rig.store.create_volume("v", 256 * KIB, block_size=512, chunk_size=4 * KIB)
    rig.tend()
    data = bytes(range(256)) * 800
    done: list[Request] = []
    rig.volume("v").submit([Request(OP_WRITE, 512, len(data), data)], done.extend)
    for _ in range(40):
        rig.settle()
    assert [request.error for request in done] == [0]
    assert rig.read("v", 512, len(data)) == data


def test_volume_deleted_while_its_write_waits_refuses_it() -> None:
    rig = filled()
    done: list[Request] = []
    rig.volume("w").submit([Request(OP_WRITE, 0, 4096, b"w" * 4096)], done.extend)
    rig.store.delete_volume("w")
    rig.settle()
    assert len(done) == 1
    assert done[0].error != 0


def test_closing_finishes_those_who_wait() -> None:
    rig = filled()
    done: list[Request] = []
    rig.volume("w").submit([Request(OP_WRITE, 0, 4096, b"w" * 4096)], done.extend)
    rig.store.close()
    assert len(done) == 1
    assert done[0].error != 0


@pytest.mark.parametrize("segments", [4, 7])
def test_journal_stays_within_its_limit_and_reuses_its_segments(segments: int) -> None:
    rig = StoreRig(options=replace(SMALL, journal_limit=segments * SEGMENT_BYTES))
    rig.store.create_volume("v", 64 * KIB, block_size=512)
    for number in range(100):
        rig.tend()
        if not rig.submit("v", Request(OP_WRITE, number % 16 * 4096, 4096, b"x" * 4096)):
            rig.settle()
    names = rig.disk.list("journal")
    assert len(names) <= segments
    assert sum(rig.disk.open(f"journal/{n}").size() for n in names) <= segments * SEGMENT_BYTES


# -- the same with threads and real files


class QueueScheduler:
    """Runs what is posted on the thread that calls `run_until`, as an event loop would."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.longest_delay_s = 0.0

    def post(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        self.longest_delay_s = max(self.longest_delay_s, delay_s)
        threading.Timer(delay_s, self._calls.put, [call]).start()

    def run_until(self, met: Callable[[], bool], timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not met():
            self._calls.get(timeout=max(0.001, deadline - time.monotonic()))()


def test_many_writers_on_a_small_journal_all_finish(tmp_path: Path) -> None:
    scheduler = QueueScheduler()
    options = StoreOptions(
        journal_limit=6 * 64 * KIB,
        segment_bytes=64 * KIB,
        reserve_bytes=0,
        pack_bytes=256 * KIB,
        window_bytes=0,
    )
    store = Store.open(tmp_path / "data", options, scheduler)
    try:
        store.create_volume("v", 4096 * KIB, block_size=4096, chunk_size=16 * KIB)
        volume = store.get("v")
        assert volume is not None
        done: list[Request] = []
        expected = bytearray(4096 * KIB)
        count = 400  # 16 KiB each: 17 times the journal
        for number in range(count):
            offset, data = number * 37 % 256 * 16 * KIB, bytes([number % 251 + 1]) * 16 * KIB
            volume.submit([Request(OP_WRITE, offset, len(data), data)], done.extend)
            expected[offset : offset + len(data)] = data
            scheduler.run_until(lambda number=number: number + 1 - len(done) < 8)  # type: ignore[misc]
        volume.submit([Request(OP_UNMAP, 0, 16 * KIB)], done.extend)
        expected[: 16 * KIB] = bytes(16 * KIB)
        scheduler.run_until(lambda: len(done) == count + 1)
        volume.submit([Request(OP_FLUSH), Request(OP_READ, 0, len(expected))], done.extend)
        scheduler.run_until(lambda: len(done) == count + 3)
        assert not any(request.error for request in done)
        assert bytes(next(r for r in done if r.op == OP_READ).data) == expected  # type: ignore[call-overload]
        journal = [entry.stat().st_size for entry in (tmp_path / "data" / "journal").iterdir()]
        assert sum(journal) <= 6 * 64 * KIB
    finally:
        store.close()
