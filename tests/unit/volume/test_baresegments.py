import errno
from collections.abc import Iterator
from dataclasses import replace

import pytest

from native import Journal
from tests.sim.faults import Fail, Fault, Stall
from tests.sim.simclock import SimClock
from tests.sim.simdisk import SimDisk
from tests.sim.store_rig import SMALL, StoreRig
from volume import baresegments, segments
from volume.baresegments import QUIET_S
from volume.options import JournalGeometry
from volume.segments import FOLDER, SegmentPool, segment_path

STORE_UUID = bytes(range(16))
SEGMENT_BYTES = 16 * 1024
PAUSE_S = QUIET_S + 0.1


class Rig:
    """A pool whose disk allocates, and a stream that uses segments up quickly."""

    def __init__(self) -> None:
        self.disk = SimDisk()
        self.disk.mkdir(FOLDER)
        self.journal = Journal(STORE_UUID, SEGMENT_BYTES, 1)
        self.clock = SimClock()
        geometry = JournalGeometry(SEGMENT_BYTES, 16 * SEGMENT_BYTES)
        self.pool = SegmentPool(self.disk, self.journal, geometry, STORE_UUID, self.clock)

    def tend(self) -> None:
        while self.pool.tend():
            pass

    def begin_segment(self) -> None:
        self.clock.advance(0.01)
        sequence = self.sequence
        while self.sequence == sequence:
            self.journal.append_mark(0)
        self.tend()

    @property
    def sequence(self) -> int:
        """Of the segment that is written."""
        return self.journal.cut()[1]

    def written_bytes(self, slot: int) -> int:
        return self.disk.open(segment_path(slot)).size()

    def bare(self) -> list[int]:
        """Ready segments that were not written as a whole."""
        ready = self.journal.queue()[1]
        return [slot for slot in ready if self.written_bytes(slot) < SEGMENT_BYTES]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """After a stream: the segment that is written, and those that are ready, were allocated."""
    monkeypatch.setattr(segments, "_allocate", lambda *_: True)
    made = Rig()
    made.tend()
    for _ in range(8):
        made.begin_segment()
    assert made.bare() == made.journal.queue()[1]
    yield made
    made.pool.close()


def test_what_a_stream_has_left_allocated_is_written_when_it_is_over(rig: Rig) -> None:
    ready = len(rig.bare())
    rig.clock.advance(PAUSE_S)
    rig.tend()
    assert rig.bare() == []
    assert len(rig.journal.queue()[1]) == ready


def test_nothing_is_written_ahead_while_there_are_records(rig: Rig) -> None:
    before = rig.bare()
    for _ in range(3):
        rig.clock.advance(QUIET_S - 0.1)
        rig.journal.append_mark(0)
        rig.tend()
    assert rig.bare() == before


def test_a_record_ends_the_writing_and_the_next_pause_goes_on_with_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baresegments, "SYNCED_BYTES", SEGMENT_BYTES // 4)
    slot, *others = rig.bare()
    ready_meanwhile = []

    def append() -> None:
        ready_meanwhile.append(rig.journal.queue()[1])
        rig.journal.append_mark(0)

    rig.disk.faults.add(Fault("pwrite", Stall(append), segment_path(slot)))
    rig.clock.advance(PAUSE_S)
    rig.tend()
    assert ready_meanwhile == [others]  # no record begins a segment under the hands of the writer
    assert rig.written_bytes(slot) == SEGMENT_BYTES // 4
    assert rig.bare() == [*others, slot]
    rig.tend()
    rig.clock.advance(PAUSE_S)
    rig.tend()
    assert rig.bare() == []


def test_the_log_leaves_a_segment_that_was_only_allocated_once(rig: Rig) -> None:
    before = rig.sequence
    rig.clock.advance(PAUSE_S)
    rig.tend()
    assert rig.sequence == before
    for _ in range(3):
        rig.journal.append_mark(0)
        rig.clock.advance(PAUSE_S)
        rig.tend()
        assert rig.sequence == before + 1


def test_the_last_segment_is_not_taken_from_writers(rig: Rig) -> None:
    ready = len(rig.bare())
    rig.journal.set_limits(1 << 40, ready - 1)
    rig.clock.advance(PAUSE_S)
    rig.tend()
    assert len(rig.bare()) == ready
    rig.journal.set_limits(1 << 40, ready - 2)
    rig.clock.advance(PAUSE_S)
    rig.tend()
    assert rig.bare() == []


def test_a_segment_whose_writing_fails_is_ready_again(rig: Rig) -> None:
    ready = set(rig.bare())
    rig.disk.faults.add(Fault("pwrite", Fail(errno.ENOSPC), segment_path(rig.bare()[0])))
    rig.clock.advance(PAUSE_S)
    with pytest.raises(OSError, match="No space"):
        rig.tend()
    assert set(rig.journal.queue()[1]) == ready
    rig.tend()
    assert rig.bare() == []


@pytest.mark.parametrize(("length", "read_first"), [(4096, True), (256 * 1024, False)])
def test_a_segment_is_read_before_parts_of_its_pages_are_written_or_zeroed_after_a_stream(
    monkeypatch: pytest.MonkeyPatch, length: int, read_first: bool
) -> None:
    warmed: list[object] = []
    monkeypatch.setattr(segments, "warm", warmed.append)
    monkeypatch.setattr(segments, "warm_limit", lambda _: 0)  # nothing of old segments stays
    options = replace(SMALL, segment_bytes=1 << 20, journal_limit=8 << 20)
    rig = StoreRig(options=options)
    rig.store.create_volume("a", 1 << 20, block_size=4096)
    for number in range((4 << 20) // length):
        rig.clock.advance(0.001)
        rig.tend()
        assert rig.write("a", number * length % (1 << 20), bytes(length)) == 0
    assert rig.store.destage()
    assert bool(warmed) is read_first
    rig.tend()
    rig.clock.advance(PAUSE_S)
    rig.tend()
    ready = rig.store._journal.queue()[1]
    heads = [rig.disk.open(segment_path(slot)).pread(512, 0) for slot in ready]
    assert all(head == bytes(512) for head in heads) is not read_first
